package spawn

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi"
)

// as runs f while the calling thread, which must be locked, has another user and group
// and is in no other group. It keeps its capabilities: they are this user namespace's,
// and a child that is born in one of its own has none of them. What Go's calls do to all
// threads is done to this one here.
//
// After an error that wraps errChanged the thread is not what it was.
func as(id uint32, f func() error) error {
	groups, err := unix.Getgroups()
	if err != nil {
		return err
	}
	user, group := unix.Geteuid(), unix.Getegid()
	header, can := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &can[0]); err != nil {
		return err
	}
	err = errors.Join(setGroups(nil), setIDs(unix.SYS_SETRESGID, int(id)), setIDs(unix.SYS_SETRESUID, int(id)), unix.Capset(&header, &can[0]))
	if err == nil {
		err = f()
	}
	back := errors.Join(setIDs(unix.SYS_SETRESUID, user), unix.Capset(&header, &can[0]), setIDs(unix.SYS_SETRESGID, group), setGroups(groups))
	if back != nil {
		back = fmt.Errorf("%w: %w", errChanged, back)
	}
	return errors.Join(err, back)
}

var errChanged = errors.New("the forking thread cannot be itself again")

// setIDs sets the real and the effective one, and leaves the saved one as the way back.
func setIDs(call uintptr, id int) error {
	const leave = ^uintptr(0)
	if _, _, e := unix.RawSyscall(call, uintptr(id), uintptr(id), leave); e != 0 {
		return e
	}
	return nil
}

func setGroups(groups []int) error {
	list := make([]uint32, len(groups)+1) // never empty, as its address is taken
	for i, g := range groups {
		list[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0); e != 0 {
		return e
	}
	return nil
}

// hide copies a program that was hashed to where it can be executed and not read. The
// kernel lets nobody look into a process that runs such a program but who may look into
// any: not even the owner of its user namespace, who may otherwise do there what he likes.
func hide(program *os.File, digest abi.Digest) (*os.File, error) {
	const execute = 0x10 // MFD_EXEC, since Linux 6.3
	fd, err := unix.MemfdCreate("monroe-worker", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|execute)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("monroe-worker", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	written := os.NewFile(uintptr(fd), "monroe-worker")
	defer written.Close() //nolint:errcheck // what is open for writing cannot be executed
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(written, h), io.NewSectionReader(program, 0, 1<<62)); err != nil {
		return nil, err
	}
	if abi.Digest(h.Sum(nil)) != digest {
		return nil, errors.New("the program was changed meanwhile")
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(written.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, err
	}
	read, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", written.Fd()))
	if err != nil {
		return nil, err
	}
	defer read.Close() //nolint:errcheck // opened for reading
	if err := read.Chmod(0o111); err != nil {
		return nil, err
	}
	high, err := unix.FcntlInt(read.Fd(), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(high), "monroe-worker"), nil
}
