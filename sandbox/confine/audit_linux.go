package confine

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// auditDescriptors refuses to start with anything inherited but the standard
// streams and the socket to the host. A socket belongs to the namespace and cgroup
// that it was made in, so a foreign one would escape every later wall.
//
// An inherited descriptor is one that survived exec, so it lacks close-on-exec;
// those that the Go runtime opened itself have it.
func auditDescriptors(mode Mode) error {
	fds, err := openDescriptors()
	if err != nil {
		return err
	}
	found := false
	for _, fd := range fds {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err == nil && (fd != wire.FD || domain != unix.AF_UNIX) {
			return fmt.Errorf("descriptor %d is an inherited socket of family %d; start the worker with descriptors 0 to %d only", fd, domain, wire.FD)
		}
		if fd == wire.FD {
			found = err == nil
			continue
		}
		if fd < wire.FD || fd == wire.ProgramFD && mode == ModePlugin {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("descriptor %d was inherited; start the worker with descriptors 0 to %d only", fd, wire.FD)
		}
	}
	if !found {
		return fmt.Errorf("descriptor %d is not a socket; this program is started by monroed, not by hand", wire.FD)
	}
	return nil
}

// openDescriptors lists /proc/self/fd. It does not use package os, which would add
// a poller to the list.
func openDescriptors() ([]int, error) {
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the open descriptors cannot be listed, mount /proc: %w", err)
	}
	defer unix.Close(dir) //nolint:errcheck // opened for reading
	var fds []int
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return nil, fmt.Errorf("the open descriptors cannot be listed: %w", err)
		}
		if n == 0 {
			return fds, nil
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if fd, err := strconv.Atoi(name); err == nil && fd != dir {
				fds = append(fds, fd)
			}
		}
	}
}
