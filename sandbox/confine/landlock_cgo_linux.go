//go:build cgo

package confine

import (
	"errors"
	"fmt"
	"os"
	"syscall"

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
	if err := dieWithParent(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs cannot be set: %w", err)
	}
	fd, err := ruleset(version, append(places, place{self, readFile}))
	if err != nil {
		return err
	}
	if err := restrictSelf(fd, 0); err != nil { // the descriptor closes with the execution
		return err
	}
	err = syscall.Exec(self, append([]string{again}, os.Args[1:]...), os.Environ())
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
