package spawn

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// owner is whose a directory is.
type owner struct{ uid, gid int }

const (
	// maxLent is how many entries a worker may leave in a directory that was lent to it.
	maxLent = 1024
	// maxDepth is how deep they may lie.
	maxDepth = 8
)

// lend gives a directory to the workers' user until takeBack, and to the lender's group.
// It returns a descriptor of its own.
func (n *nursery) lend(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the directory cannot be lent: %w", err)
	}
	lent := os.NewFile(uintptr(fd), "lent")
	if err := errors.Join(lent.Chown(int(n.uid), n.lender.gid), lent.Chmod(0o770|fs.ModeSetgid)); err != nil {
		return nil, errors.Join(fmt.Errorf("the directory cannot be lent: %w", err), lent.Close())
	}
	return lent, nil
}

// takeBack makes the lender own what lies in a directory, after the worker's end: a
// worker may leave what only its user can read or remove. The lender may be hostile and
// move things about meanwhile, so that nothing is done by a path: an entry changes hands
// only if it is, through its own descriptor, the workers' user's, and if a file has no
// other name.
func (n *nursery) takeBack(lent *os.File) error {
	left := maxLent
	if err := n.takeBackAt(int(lent.Fd()), ".", maxDepth, &left); err != nil {
		return fmt.Errorf("the worker's directory cannot be taken back: %w", err)
	}
	return nil
}

func (n *nursery) takeBackAt(parent int, name string, deep int, left *int) error {
	if deep == 0 {
		return fmt.Errorf("it is deeper than %d", maxDepth)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close() //nolint:errcheck // opened for reading
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != n.uid {
		return nil // what the lender made there is its own
	}
	if err := errors.Join(unix.Fchown(fd, n.lender.uid, n.lender.gid), unix.Fchmod(fd, 0o700)); err != nil {
		return err
	}
	names, err := dir.Readdirnames(*left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if *left -= len(names); *left < 0 {
		return fmt.Errorf("it holds more than %d entries", maxLent)
	}
	for _, name := range names {
		if err := n.takeBackEntry(fd, name, deep, left); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func (n *nursery) takeBackEntry(parent int, name string, deep int, left *int) error {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was opened
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return n.takeBackAt(parent, name, deep-1, left)
	case st.Uid != n.uid || st.Nlink > 1:
		return nil
	}
	return unix.Fchownat(fd, "", n.lender.uid, n.lender.gid, unix.AT_EMPTY_PATH)
}
