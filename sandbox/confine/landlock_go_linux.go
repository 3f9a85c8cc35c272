//go:build !cgo

package confine

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// secondImage says that this process has put Landlock on itself and become itself again,
// which a build without cgo need not.
func secondImage() bool { return false }

// restrict leaves these places and nothing else, on every thread: from version 8 on the
// kernel carries it there, before that Go's runtime does.
func restrict(version int, places []place) error {
	fd, err := ruleset(version, places)
	if err != nil {
		return err
	}
	if version >= 8 {
		err = restrictBySync(fd)
	} else if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		err = fmt.Errorf("no_new_privs cannot be set: %w", e)
	} else if _, _, e := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0, 0); e != 0 {
		err = e
	}
	return errors.Join(err, unix.Close(fd))
}

func restrictBySync(fd int) error {
	runtime.LockOSThread() // which has no_new_privs; the others get it with the rules
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs cannot be set: %w", err)
	}
	return restrictSelf(fd, unix.LANDLOCK_RESTRICT_SELF_TSYNC)
}
