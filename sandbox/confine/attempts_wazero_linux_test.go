//go:build !wasmtime

package confine_test

// strayIsSilent says that nobody is told of a call that a C library may make by itself.
const strayIsSilent = false
