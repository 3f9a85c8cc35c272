//go:build !wasmtime

package confine_test

// sealedEnds says that a call for files ends a sealed process.
const sealedEnds = true
