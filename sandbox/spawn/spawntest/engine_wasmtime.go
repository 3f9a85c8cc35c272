//go:build wasmtime

package spawntest

// Wasmtime says that Build builds with the other engine.
const Wasmtime = true
