package sandbox

import "io"

// An Engine compiles and runs modules. Its implementations differ in speed, never
// in what a guest observes, except for what their fingerprints tell apart.
type Engine interface {
	// Fingerprint names what a run is pinned to: engine, version, architecture and
	// NaN policy, such as "wazero/v1.12.0 amd64 nan=native".
	Fingerprint() string
	// Compile compiles an admitted module, or loads what an earlier process compiled
	// of it. It cannot be interrupted: it runs in a process
	// that can be killed. An error is a *Fault.
	Compile(module []byte) (Module, error)
	// Close frees the engine and everything that it compiled.
	Close() error
}

// A Module makes instances.
type Module interface {
	// Instantiate gives the module memory within the limits of h and runs its start
	// function, not _initialize. h serves this instance only. An error is a *Fault.
	Instantiate(h *Host) (Instance, error)
}

// An Instance is one run's guest. It is not safe for concurrent use.
type Instance interface {
	// Has reports whether a function is exported.
	Has(name string) bool
	// Call runs an exported function without parameters and returns its results,
	// at most one. An error is a *Fault; the instance is then unusable.
	Call(name string) ([]uint64, error)
	// Close frees the memory.
	Close() error
}

// EngineConfig says how an engine compiles.
type EngineConfig struct {
	// Compiled is what an earlier process stored of the module that is to be compiled; nil
	// is nothing. Whoever writes it decides what runs: only the compile process may.
	Compiled []byte
	// Store takes what is compiled, once; nil means that nothing is kept.
	Store io.Writer
}
