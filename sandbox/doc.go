// Package sandbox runs one WebAssembly guest that can do nothing but ask.
//
// Laws, each with its test:
//
//   - Nothing of an upload reaches an engine before Admit has read all of it and
//     found it within the profile and the limits (TestAdmitRefuses, FuzzAdmit).
//   - A guest imports four host functions and a fixed list of WASI functions;
//     there is no file, socket, clock, randomness or environment behind them
//     (TestAdmitListsUnknownImports, TestWASIIsDeterministic).
//   - What a guest observes is a pure function of module, limits, seed, input and
//     replies, so that a run can be replayed (TestWASIIsDeterministic).
//   - Guest memory is copied once and decided on the copy; a span is checked
//     before it is used and before the effect (TestHostileGuests).
//   - A limit ends the guest with a Fault and never the process; what no check can
//     stop (time, memory of the engine) is stopped by the kernel, outside of this
//     package (sandbox/confine, sandbox/spawn).
//
// It knows Wasm binaries, engines, the host functions and limits.
//
// It must not know grants, labels, credentials, networks, frames of the wire or
// the host: a request is bytes that it hands to one function.
package sandbox
