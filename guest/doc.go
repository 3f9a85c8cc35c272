// Package guest is the Go SDK for guests: skills and agents that run as
// WebAssembly modules and can do nothing but ask their host.
//
// A guest is an ordinary Go program whose work is registered by Main:
//
//	package main
//
//	import "github.com/getmonroe/monroe/guest"
//
//	var _ = guest.Main(run)
//
//	func main() {} // Go wants one; the host calls run instead
//
//	func run(r *guest.Run) error {
//		var in struct {
//			Folder string `json:"folder"`
//		}
//		if err := r.Input(&in); err != nil {
//			return err
//		}
//		list, err := r.Files(in.Folder).List(".")
//		if err != nil {
//			return err
//		}
//		return r.Result(map[string]int{"files": len(list.Entries)})
//	}
//
// It is compiled by the Go toolchain alone:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o skill.wasm .
//
// Compiled for the machine at hand, the same package runs in plain unit tests
// against the host in package guesttest.
//
// A refusal is not a fault: each call returns it as a *abi.Denial, which
// Denied finds in an error, and the guest decides how to go on.
//
// A run may be stopped while it waits for a person and started again from the
// beginning later, with the recorded replies. So a guest must make the same
// calls whenever it gets the same replies. Goroutines, maps, clocks and math/rand
// are deterministic under a host; keep nothing outside the run's own memory.
//
// It knows the ABI from the guest's side. It must not know how a host decides.
package guest
