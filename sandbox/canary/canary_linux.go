package canary

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// Allowed is the answer to an attempt that succeeded. Any other answer is the name of
// an error.
const Allowed = "ALLOWED"

// Serve answers attempts that come over the socket to the host, until it closes. An
// attempt is an Input frame with the name, a space and the argument; the answer is a
// Log frame.
func Serve(host io.ReadWriter) error {
	r := bufio.NewReader(host)
	for {
		_, text, err := wire.ReadFrame(r, wire.KindInput)
		if err != nil {
			return err
		}
		if err := wire.WriteFrame(host, wire.KindLog, []byte(Try(string(text)))); err != nil {
			return err
		}
	}
}

// Try makes one attempt.
func Try(text string) string {
	name, argument, _ := strings.Cut(text, " ")
	err := try(Attempt(name), argument)
	var e unix.Errno
	switch {
	case err == nil:
		return Allowed
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func call(nr uintptr, a ...uintptr) error {
	var v [6]uintptr
	copy(v[:], a)
	if _, _, e := unix.Syscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5]); e != 0 {
		return e
	}
	return nil
}

func cString(s string) uintptr {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0
	}
	return uintptr(unsafe.Pointer(b))
}

func socket(domain, typ, protocol int) error {
	fd, err := unix.Socket(domain, typ, protocol)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// connect makes a socket and connects it, and sends a byte where connecting sends none.
func connect(domain, typ, protocol int, to unix.Sockaddr) error {
	fd, err := unix.Socket(domain, typ, protocol)
	if err != nil {
		return err
	}
	if err = unix.Connect(fd, to); err == nil && typ == unix.SOCK_DGRAM {
		_, err = unix.Write(fd, []byte("x"))
	}
	return errors.Join(err, unix.Close(fd))
}

func address(s string) unix.Sockaddr {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return &unix.SockaddrInet4{}
	}
	return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
}

func number(s string) uintptr {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 1 << 30 // no process
	}
	return uintptr(n)
}

func read(name string) error {
	f, err := os.Open(name)
	if err == nil {
		err = f.Close()
	}
	return err
}

func try(what Attempt, arg string) error {
	switch what {
	case TCP:
		return connect(unix.AF_INET, unix.SOCK_STREAM, 0, address(arg))
	case UDP:
		return connect(unix.AF_INET, unix.SOCK_DGRAM, 0, address(arg))
	case MPTCP:
		return connect(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, address(arg))
	case RawIP:
		return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	case Packet:
		return socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case Netlink:
		return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	case VSock:
		return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case Abstract:
		return connect(unix.AF_UNIX, unix.SOCK_STREAM, 0, &unix.SockaddrUnix{Name: "@" + arg})
	case UnixPath:
		return connect(unix.AF_UNIX, unix.SOCK_STREAM, 0, &unix.SockaddrUnix{Name: arg})
	case SocketPair:
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = errors.Join(unix.Close(pair[0]), unix.Close(pair[1]))
		}
		return err
	case IOUring:
		var p [120]byte
		fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p[0])), 0)
		if e != 0 {
			return e
		}
		return unix.Close(int(fd))
	case Exec: // a name that is not there: only the refusal differs
		return missing(call(unix.SYS_EXECVE, cString("/monroe-canary-not-there"), 0, 0))
	case Process: // flags that contradict each other
		return invalid(call(unix.SYS_CLONE, unix.CLONE_SIGHAND|uintptr(unix.SIGCHLD)))
	case Ptrace:
		return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, number(arg), 0, 0)
	case ReadMemory: // of no length, at no address
		return call(unix.SYS_PROCESS_VM_READV, number(arg), 0, 0, 0, 0, 0)
	case Signal:
		return call(unix.SYS_KILL, number(arg), 0)
	case BPF:
		return invalid(call(unix.SYS_BPF, 99))
	case Namespaces:
		return call(unix.SYS_UNSHARE, 0)
	case Mount:
		// Changes the flags of what is no mount point: refused as invalid by a kernel that
		// would have changed one.
		return invalid(call(unix.SYS_MOUNT, 0, cString(arg), 0, unix.MS_REMOUNT|unix.MS_BIND, 0))
	case SetUID:
		return call(unix.SYS_SETRESUID, 0, ^uintptr(0), ^uintptr(0)) // the real user alone, of this thread
	case ReadSystem:
		return read("/etc/passwd")
	case ReadHost:
		return read(arg)
	case ReadModule:
		return read("/proc/self/cwd")
	case WriteTemp:
		f, err := os.OpenFile(arg, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			err = errors.Join(f.Close(), os.Remove(arg))
		}
		return err
	case WriteExec:
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			err = unix.Munmap(b)
		}
		return err
	case MemoryFile:
		fd, err := unix.MemfdCreate("canary", 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	case Descriptors:
		return descriptors()
	case Threads:
		return threads(int(number(arg)))
	case Memory:
		return memory(int(number(arg)))
	}
	return fmt.Errorf("unknown attempt %q", what)
}

// missing says that a call came as far as looking for a file.
func missing(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// invalid says that a call came as far as its arguments, which are wrong on purpose.
func invalid(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// descriptors looks for what was inherited: it lacks close-on-exec, which the Go
// runtime sets on its own.
func descriptors() error {
	for fd := wire.FD + 1; fd < 256; fd++ {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			return nil
		}
	}
	return unix.EBADF
}

// threads holds n threads at once. The runtime ends the process when it gets none.
func threads(n int) error {
	var ready sync.WaitGroup
	hold := make(chan struct{})
	for range n {
		ready.Add(1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			ready.Done()
			<-hold
		}()
	}
	ready.Wait()
	close(hold)
	return nil
}

// memory touches every page of so many MiB.
func memory(mib int) error {
	b, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	return unix.Munmap(b)
}
