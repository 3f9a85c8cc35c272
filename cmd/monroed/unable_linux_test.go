package main_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// unable makes this program become the program of its arguments, without the
// capabilities that kernel programs take, for good.
const unable = "MONROE_TEST_UNABLE"

func init() {
	if os.Getenv(unable) == "" {
		return
	}
	if err := os.Unsetenv(unable); err != nil {
		panic(err)
	}
	runtime.LockOSThread() // the bounding set is this thread's, which goes on
	for _, c := range []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			panic(err)
		}
	}
	panic(syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
}

// TestRootUpWithoutTheCapabilities: where the kernel gives monroe up no programs it says so
// and goes on, and doctor tells why and what remains; who asked for them gets no daemon.
func TestRootUpWithoutTheCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root has capabilities to drop here")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const why = "kernel programs for control groups cannot be used here: CAP_BPF and CAP_NET_ADMIN are needed"
	up := func(d *daemon, egress string) []string {
		return []string{self, program("monroe"), "--home", d.home, "-w", "team", "up", "--egress", egress}
	}
	d := newDaemon(t, "spare_workers: 0\n")
	d.by, d.env = up(d, "auto"), []string{unable + "=1"}
	d.up()
	if said := d.said.String(); !strings.Contains(said, "no kernel programs behind the sandbox (layers L4 and L5): "+why) {
		t.Errorf("monroe up said %s", said)
	}
	out, _ := cli(t, "--home", d.home, "-w", "team", "doctor", "--json")
	for _, want := range []string{why, "what remains: L0+L1+L2", "what remains: every connection of the daemon is made by one dialer"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	d = newDaemon(t, "")
	by := up(d, "enforce")
	cmd := exec.CommandContext(t.Context(), by[0], by[1:]...)
	cmd.Env = []string{unable + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + d.home}
	said, err := cmd.CombinedOutput()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(said), why) {
		t.Errorf("--egress enforce: %v: %s", err, said)
	}
}
