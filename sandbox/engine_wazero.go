//go:build !wasmtime

package sandbox

// NewEngine returns the engine of this build: wazero, or wasmtime with the build tag
// of that name.
func NewEngine(cfg EngineConfig) (Engine, error) { return NewWazero(cfg) }

// Fingerprint is what a run of this binary's engine is pinned to.
func Fingerprint() string { return WazeroFingerprint() }
