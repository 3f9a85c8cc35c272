package main_test

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/host"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// lacking makes this program stand in for a kernel without a system call: it becomes the
// program of its arguments, in which the call does not exist.
const lacking = "MONROE_TEST_LACKING"

func init() {
	call, err := strconv.ParseUint(os.Getenv(lacking), 10, 32)
	if err != nil {
		return
	}
	runtime.LockOSThread() // the filter is this thread's, which goes on
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(call)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		panic(e)
	}
	panic(syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
}

// TestLinuxBelowTheMinimum: where the kernel lacks a wall of the minimum no worker starts,
// and whoever wanted one is told which wall it is and what to do. With --insecure-dev
// guests run.
func TestLinuxBelowTheMinimum(t *testing.T) {
	for wall, call := range map[string]int{"Landlock": unix.SYS_LANDLOCK_CREATE_RULESET, "seccomp with user notification": unix.SYS_SECCOMP} {
		t.Run(wall, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			module := with(func(*wt.Builder) {})
			start := func(more ...string) *daemon {
				d := newDaemon(t, "spare_workers: 0\n")
				d.by = append([]string{self, program("monroed"), "--home", d.home, "--workspace", "team"}, more...)
				d.env = []string{lacking + "=" + strconv.Itoa(call)}
				d.up()
				return d
			}
			d := start()
			_, err = d.PushSkill(d.ctx(), module)
			p := refused(t, err, 503, "UNCONFINED")
			if !strings.Contains(p.Detail, wall+" is not available") || !strings.Contains(p.Remedy, "--insecure-dev") {
				t.Errorf("%q, %q", p.Detail, p.Remedy)
			}
			d = start("--insecure-dev")
			d.push(module)
			if v := d.finished(d.start("fixture", "")); v.State != host.StateSucceeded {
				t.Errorf("with --insecure-dev a run %s: %s", v.State, v.Failure)
			}
			d.stop() // and a wall is taken away from who has the module
			d.by = d.by[:len(d.by)-1]
			d.up()
			v := d.finished(d.start("fixture", ""))
			if v.State != host.StateFailed || !strings.HasPrefix(v.Failure, "UNCONFINED: ") || !strings.Contains(v.Failure, wall+" is not available") {
				t.Errorf("a run %s: %s", v.State, v.Failure)
			}
		})
	}
}
