//go:build !wasip1

package guest

// Main registers the guest's work, as a package-level variable:
//
//	var _ = guest.Main(run)
//
// Compiled for anything but WebAssembly it does nothing: tests hand run to
// package guesttest.
func Main(run func(*Run) error) Program { return Program{run} }
