package sandbox

import "github.com/getmonroe/monroe/abi"

// A hostFunc is one function that a guest may import. Its parameters arrive in
// the stack and its result, if any, leaves in stack[0]; an error traps. It is
// written once and every engine calls it.
type hostFunc struct {
	module, name string
	sig          signature
	fn           func(h *Host, stack []uint64) error
}

// A signature holds one letter per value: i is i32, I is i64, f is f32, F is f64,
// v is v128, n is funcref, x is externref.
type signature struct{ params, results string }

func (s signature) String() string { return "(" + s.params + ") -> (" + s.results + ")" }

const wasiModule = "wasi_snapshot_preview1"

// hostFuncs is everything that a guest can import.
func hostFuncs() []hostFunc {
	return append([]hostFunc{
		{abi.ImportModule, "call", signature{"iiii", "I"}, (*Host).call},
		{abi.ImportModule, "read", signature{"iii", "I"}, (*Host).read},
		{abi.ImportModule, "write", signature{"iii", "I"}, (*Host).write},
		{abi.ImportModule, "close", signature{"i", "i"}, (*Host).close},
	}, wasiFuncs()...)
}
