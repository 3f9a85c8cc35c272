package spawn

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// The kernel's structures of seccomp user notification.
type (
	notification struct {
		id         uint64
		pid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}
)

// watch serves a listener until the process ends.
func (p *Process) watch(s *Spawner, fd int) error {
	// A hostile worker may hand over anything, such as a file that is always ready.
	if kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || kind != "anon_inode:seccomp notify" {
		return errors.Join(fmt.Errorf("no hand-over of its filter: the descriptor is %q", kind), err, unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	names, err := arch.GetInfo("")
	if err != nil {
		return errors.Join(err, f.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return f.Close()
	}
	p.listener = f
	p.workers.Go(func() {
		// The poller wakes for each notification, and with POLLHUP when no thread
		// uses the filter any more.
		_ = raw.Read(func(fd uintptr) bool {
			for {
				ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(ready, 0)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil || ready[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
					return true
				}
				if n == 0 {
					return false // wait for the next
				}
				if err := p.answer(s, fd, names); err != nil {
					return true
				}
			}
		})
	})
	return nil
}

// answer takes one notification, reports it and refuses the call. It lets one go on in
// two cases only, see passes: arguments may be pointers into memory that another thread
// rewrites between the check and the use.
// Without an answer a call waits until the listener is closed, and then fails.
func (p *Process) answer(s *Spawner, fd uintptr, names *arch.Info) error {
	var n notification
	_, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
	if e == unix.ENOENT || e == unix.EINTR {
		return nil // the caller was killed or interrupted meanwhile
	}
	if e != 0 {
		return e
	}
	v := Violation{Name: fmt.Sprintf("syscall %d", n.nr), Args: n.args, PID: int(n.pid)}
	if name, ok := names.SyscallNumbers[int(n.nr)]; ok && uint32(names.ID) == n.arch {
		v.Name = name
	}
	if i, ok := paths[v.Name]; ok {
		v.Path = pathAt(fd, &n, n.args[i])
	}
	if p.passes(fd, n.id, v) {
		return nil
	}
	p.note(s, v) // before the answer, while the worker waits
	r := response{id: n.id, err: -int32(unix.EPERM)}
	// An error means that the caller is gone: there is nobody to refuse.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	return nil
}

// paths are the calls by which somebody looks for files, and the argument that points to
// the path. The names are those of package arch.
var paths = map[string]int{
	"openat": 1, "openat2": 1, "newfstatat": 1, "fstatat": 1, "statx": 1, "readlinkat": 1, "faccessat": 1, "faccessat2": 1, "execve": 0, "execveat": 1,
	"unlinkat": 1, "renameat": 1, "renameat2": 1, "mkdirat": 1, "linkat": 1, "symlinkat": 2, "open": 0, "creat": 0, "stat": 0, "lstat": 0, "access": 0,
	"readlink": 0, "unlink": 0, "rename": 0, "mkdir": 0, "rmdir": 0, "link": 0, "symlink": 1,
}

// maxPath is how many bytes of a path are told.
const maxPath = 256

// pathAt reads a path out of the memory of whoever made a call, for those who are told of
// it; empty where this process may not. Root may, and so may the owner of a worker's user
// namespace that has a user (kind mapped). Another thread may change it meanwhile, which
// is why nothing is decided by it.
func pathAt(fd uintptr, n *notification, at uint64) string {
	text := make([]byte, maxPath)
	// An end of what is mapped is at the end of a page, and what crosses it is read in part.
	first := min(maxPath, int(uint64(os.Getpagesize())-at%uint64(os.Getpagesize())))
	far := []unix.RemoteIovec{{Base: uintptr(at), Len: first}, {Base: uintptr(at) + uintptr(first), Len: maxPath - first}}
	near := []unix.Iovec{{Base: &text[0], Len: maxPath}}
	got, err := unix.ProcessVMReadv(int(n.pid), near, far, 0)
	if err != nil || got <= 0 {
		return ""
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, uintptr(unsafe.Pointer(&n.id))); e != 0 {
		return "" // the caller is gone, and the memory may have been another's
	}
	return unix.ByteSliceToString(text[:got])
}

// note records a forbidden call and tells of it.
func (p *Process) note(s *Spawner, v Violation) {
	p.mu.Lock()
	p.refused++
	report := len(p.seen) < MaxViolations
	if report {
		p.seen = append(p.seen, v)
	}
	p.mu.Unlock()
	if report && s.OnViolation != nil {
		s.OnViolation(p, v)
	}
}

// ofPlugins are the calls with a path that a plugin may make while it starts. fstatat is
// newfstatat on arm64.
var ofPlugins = []string{"openat", "newfstatat", "fstatat", "readlinkat", "faccessat2", "unlinkat"}

// passes lets two kinds of call go on and reports whether this was one of them. Nothing is
// decided by what an argument points to, so nothing can be swapped.
//
// The one execve of a plugin's launcher: until that call has happened the process runs our
// own program alone, which makes it once. All that follow are refused, and one goroutine
// answers them in order.
//
// A starting plugin's calls for files, which its runtime and its libraries make: Landlock
// leaves them its own directory, and whoever started it is told.
func (p *Process) passes(fd uintptr, id uint64, v Violation) bool {
	p.mu.Lock() // until it is counted: becomes asks as soon as the call has happened
	defer p.mu.Unlock()
	launch := p.launches > 0 && v.Name == "execve"
	if !launch && !(p.starting && slices.Contains(ofPlugins, v.Name)) {
		return false
	}
	if !launch && p.look != nil && p.looked < MaxViolations {
		p.looked++
		p.look(v)
	}
	r := response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	if launch && e != unix.ENOENT { // interrupted before the answer: it will ask again
		p.launches--
	}
	return true
}
