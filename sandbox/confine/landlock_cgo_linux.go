//go:build cgo

package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Landlock is put on one thread, and before Linux can do it for all (ABI 8) somebody has
// to carry it to the others. With cgo that is a library that looks for them in /proc; in
// a process namespace the numbers there are others, and it waits for ever. So this build
// puts it on one thread, and that thread becomes this program again: what it has
// then covers the process, and every thread that comes.

// again is the name that the second image has, where the first has the program's.
const again = "monroe-worker within Landlock"

// secondImage says that this process has put Landlock on itself and become itself again.
func secondImage() bool { return os.Args[0] == again }

// restrict leaves these places and nothing else, but that the program itself can be
// read. It returns in the second image only, or with an error.
func restrict(version int, places []place) error {
	if secondImage() {
		return stands()
	}
	const self = "/proc/self/exe"
	runtime.LockOSThread() // never unlocked
	// The parent's death is told to the thread that it forked, which may be another one.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("the end of the parent would be missed: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs cannot be set: %w", err)
	}
	if err := restrictThread(version, append(places, place{self, readFile})); err != nil {
		return err
	}
	err := syscall.Exec(self, append([]string{again}, os.Args[1:]...), os.Environ())
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w; a worker that is built with cgo has to be static, as it can read no library (go build -ldflags '-linkmode=external -extldflags=-static'); or build it with CGO_ENABLED=0", err)
	}
	return fmt.Errorf("it cannot become itself again: %w", err)
}

// stands believes no name: a file that every process may read has to be refused.
func stands() error {
	fd, err := unix.Open("/proc/self/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		return errors.Join(errors.New("it does not stand in the second image"), unix.Close(fd))
	}
	if !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("it cannot be seen whether it stands: %w", err)
	}
	return nil
}

func restrictThread(version int, places []place) error {
	attr := handled(version)
	ruleset, err := llsys.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return fmt.Errorf("no rule set: %w", err)
	}
	defer unix.Close(ruleset) //nolint:errcheck // it is on the thread by then
	for _, p := range places {
		fd, err := unix.Open(p.path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		err = llsys.LandlockAddPathBeneathRule(ruleset, &llsys.PathBeneathAttr{ParentFd: fd, AllowedAccess: p.access & attr.HandledAccessFS}, 0)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	}
	return llsys.LandlockRestrictSelf(ruleset, 0)
}

// handled is all that a version can refuse.
func handled(version int) (a llsys.RulesetAttr) {
	a.HandledAccessFS = llsys.AccessFSMakeSym<<1 - 1
	for _, more := range []struct {
		since          int
		fs, net, scope uint64
	}{
		{since: 2, fs: llsys.AccessFSRefer},
		{since: 3, fs: llsys.AccessFSTruncate},
		{since: 4, net: llsys.AccessNetBindTCP | llsys.AccessNetConnectTCP},
		{since: 5, fs: llsys.AccessFSIoctlDev},
		{since: 6, scope: llsys.ScopeAbstractUnixSocket | llsys.ScopeSignal},
		{since: 9, fs: llsys.AccessFSResolveUnix},
		{since: 10, net: llsys.AccessNetBindUDP | llsys.AccessNetConnectSendUDP},
	} {
		if version >= more.since {
			a.HandledAccessFS |= more.fs
			a.HandledAccessNet |= more.net
			a.Scoped |= more.scope
		}
	}
	return a
}
