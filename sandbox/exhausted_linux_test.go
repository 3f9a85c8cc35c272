package sandbox

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

// TestLinuxNoPagesForCode: a compiler that gets no memory from the kernel is told apart
// from one that cannot compile a module.
func TestLinuxNoPagesForCode(t *testing.T) {
	b, _ := wasmtest.Guest()
	module := wasmtest.Run(b, wasmtest.I32Const(0))
	for refusal, want := range map[error]wire.FaultCode{unix.ENOMEM: wire.FaultTooLarge, unix.EPERM: wire.FaultModule} {
		e, err := NewWazero(EngineConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		mmap := mapper.mmap
		mapper.mmap = func(uintptr, uintptr, int, int, int, int64) (uintptr, error) { return 0, refusal }
		_, err = e.Compile(module)
		mapper.mmap = mmap
		var f *Fault
		if !errors.As(err, &f) || f.Code != want {
			t.Errorf("%v came to %v", refusal, err)
		}
	}
}
