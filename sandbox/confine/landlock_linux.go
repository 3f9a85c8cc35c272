package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// landlockVersion is the version of the kernel's interface, 0 where there is none.
func landlockVersion() (int, error) {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0, e
	}
	return int(v), nil
}

// A place stays reachable, with what is beneath it.
type place struct {
	path   string
	access uint64
}

// What may be done in a place. Executing is here because a program is in a plugin's; the
// filter refuses it.
const (
	readFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	readDir  = readFile | unix.LANDLOCK_ACCESS_FS_READ_DIR
	writeDir = readDir | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | removing | making
	removing = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	making   = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
)

// ruleset is a descriptor of what leaves these places and nothing else.
func ruleset(version int, places []place) (int, error) {
	attr := handled(version)
	r, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return -1, fmt.Errorf("no rule set: %w", e)
	}
	for _, p := range places {
		if err := p.add(int(r), attr.Handled_access_fs); err != nil {
			_ = unix.Close(int(r))
			return -1, fmt.Errorf("%s: %w", p.path, err)
		}
	}
	return int(r), nil
}

// add leaves a place, with what of its access the version knows.
func (p place) add(ruleset int, known uint64) error {
	fd, err := unix.Open(p.path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was opened
	beneath := unix.LandlockPathBeneathAttr{Allowed_access: p.access & known, Parent_fd: int32(fd)}
	_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&beneath)), 0, 0, 0)
	if e != 0 && e != unix.EBADFD { // which is not in a tree of names, such as a program in memory: it is left in any case
		return e
	}
	return nil
}

// restrictSelf puts a rule set on the calling thread.
func restrictSelf(ruleset int, flags uintptr) error {
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), flags, 0); e != 0 {
		return e
	}
	return nil
}

// handled is all that a version can refuse.
func handled(version int) (a unix.LandlockRulesetAttr) {
	a.Handled_access_fs = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
	for _, more := range []struct {
		since          int
		fs, net, scope uint64
	}{
		{since: 2, fs: unix.LANDLOCK_ACCESS_FS_REFER},
		{since: 3, fs: unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{since: 4, net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
		{since: 5, fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
		{since: 6, scope: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
		{since: 9, fs: unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX},
		{since: 10, net: unix.LANDLOCK_ACCESS_NET_BIND_UDP | unix.LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP},
	} {
		if version >= more.since {
			a.Handled_access_fs |= more.fs
			a.Handled_access_net |= more.net
			a.Scoped |= more.scope
		}
	}
	return a
}
