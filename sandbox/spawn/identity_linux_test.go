package spawn

import (
	"errors"
	"os"
	"regexp"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRootAs: a thread is somebody else for a moment, with its capabilities, and itself
// again afterwards, its groups included; and where it cannot be, that is told apart.
func TestRootAs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change the user")
	}
	const nobody = 65534
	thread(t, func() {
		header, can := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		err := errors.Join(setGroups([]int{7, 8}), unix.Capget(&header, &can[0]))
		can[0].Effective &^= 1 << unix.CAP_SYS_BOOT // one that it could use and does not
		if err := errors.Join(err, unix.Capset(&header, &can[0])); err != nil {
			t.Error(err)
		}
		before := credentials(t)
		if err := as(nobody, func() error {
			in := credentials(t)
			if in["Uid"] != "65534 65534 0 65534" || in["Gid"] != in["Uid"] || in["Groups"] != "" || in["CapEff"] != before["CapEff"] {
				t.Errorf("meanwhile %q, groups %q of %q, capabilities %s of %s", in["Uid"], in["Groups"], in["Gid"], in["CapEff"], before["CapEff"])
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if after := credentials(t); after["Uid"] != "0 0 0 0" || after["Gid"] != before["Gid"] || after["Groups"] != "7 8" || after["CapEff"] != before["CapEff"] {
			t.Errorf("afterwards %q, groups %q of %q, capabilities %s of %s", after["Uid"], after["Groups"], after["Gid"], after["CapEff"], before["CapEff"])
		}
		if err := as(nobody, func() error { return unix.ENOEXEC }); !errors.Is(err, unix.ENOEXEC) || errors.Is(err, errChanged) {
			t.Errorf("what it was for failed: %v", err)
		}
	})
	thread(t, func() {
		err := as(nobody, func() error { // takes the way back away
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
				return e
			}
			var none [2]unix.CapUserData
			return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
		})
		if !errors.Is(err, errChanged) {
			t.Errorf("it cannot be itself again: %v", err)
		}
	})
}

// thread runs f on a thread that ends with it.
func thread(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		f()
	}()
	<-done
}

// credentials of the calling thread, as the kernel writes them.
func credentials(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Error(err)
	}
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+):[ \t]*(.*?)[ \t]*$`).FindAllStringSubmatch(string(text), -1) {
		found[m[1]] = regexp.MustCompile(`\s+`).ReplaceAllString(m[2], " ")
	}
	return found
}

// TestRootBusyCopy: while a child of somebody else's has the hidden program open for writing,
// as one has that was forked at that moment, it cannot be executed. Workers have nobody mapped
// all the same, a moment later.
func TestRootBusyCopy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can open what nobody may write")
	}
	n, err := newNursery("/bin/true") // which also says nothing when it is asked for its engine
	if err != nil {
		t.Fatal(err)
	}
	defer func() { n.stop(); _ = n.close() }()
	held, err := os.OpenFile(n.path(anonymous), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.try(anonymous); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("while it is open for writing: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = held.Close() })
	if err := n.tryNamespaces(); err != nil || n.whyMapped != nil {
		t.Errorf("after it was closed: %v, %v", n.whyMapped, err)
	}
}
