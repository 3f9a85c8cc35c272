//go:build !wasmtime

package sandbox_test

import (
	"bytes"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/sandbox"
	. "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// TestLinuxMemoryInHugePages: a guest that touches the 1536 pages of its 6 MiB waits for
// some tens of faults, not for one a page.
func TestLinuxMemoryInHugePages(t *testing.T) {
	needsHugePages(t)
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

// TestLinuxCodeInHugePages: what was compiled before is loaded into huge pages, which can
// be executed and not written. (Protecting the code splits the last one.)
func TestLinuxCodeInHugePages(t *testing.T) {
	needsHugePages(t)
	b, _ := Guest()
	for i := range 4000 {
		b.Func("i", "i", 0, LocalGet(0), Repeat(100, I32Const(int32(i+1)), LocalGet(0), Add, Add))
	}
	module, stored := Run(b, I32Const(0)), &bytes.Buffer{}
	for _, compiled := range []bool{false, true} {
		cfg := sandbox.EngineConfig{Store: stored}
		if compiled {
			cfg = sandbox.EngineConfig{Compiled: stored.Bytes()}
		}
		e, err := sandbox.NewEngine(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if _, err := e.Compile(module); err != nil {
			t.Fatal(err)
		}
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	code, huge := 0, 0 // KiB
	for _, m := range regexp.MustCompile(`(?s) r-xp 00000000 00:00 0 *\nSize: +(\d+) kB\n.*?\nAnonHugePages: +(\d+) kB\n`).FindAllStringSubmatch(string(maps), -1) {
		size, err1 := strconv.Atoi(m[1])
		of, err2 := strconv.Atoi(m[2])
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		code, huge = code+size, huge+of
	}
	t.Logf("%d KiB of code, %d of them in huge pages", code, huge)
	if code < 6<<10 || huge < 2<<10 { // how many fit depends on where the kernel put it; unadvised there is none
		t.Errorf("%d KiB of %d KiB of code are in huge pages", huge, code)
	}
}

func needsHugePages(t *testing.T) {
	t.Helper()
	if given, _ := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); !strings.Contains(string(given), "[madvise]") && !strings.Contains(string(given), "[always]") {
		t.Skip("this kernel gives no huge pages")
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
