//go:build !wasmtime

package sandbox_test

import (
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/sandbox"
	. "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// TestLinuxMemoryInHugePages: a guest that touches the 1536 pages of its 6 MiB waits for
// some tens of faults, not for one a page.
func TestLinuxMemoryInHugePages(t *testing.T) {
	if given, _ := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); !strings.Contains(string(given), "[madvise]") && !strings.Contains(string(given), "[always]") {
		t.Skip("this kernel gives no huge pages")
	}
	b, _ := Guest()
	b.Raw(5, Cat(U32(1), []byte{0}, U32(96)))
	fill := Cat(I32Const(0), I32Const(1), I32Const(96*65536), []byte{0xfc, 11, 0})
	m, err := newEngine(t).Compile(Run(b, fill, I32Const(0)))
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := faults(t)
	if status, _, err := sandbox.Run(m, sandbox.NewHost(sandbox.Config{Call: echo})); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	n := faults(t) - before
	t.Logf("%d faults", n)
	if n > 300 {
		t.Errorf("%d faults for 1536 pages", n)
	}
}

// faults are the calling thread's so far.
func faults(t *testing.T) int64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return u.Minflt
}
