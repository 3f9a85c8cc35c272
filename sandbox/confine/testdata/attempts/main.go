//go:build linux

// Attempts confines itself exactly like a worker and then tries, on request, what a
// worker may not do. It exists for tests; no product contains it.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/confine"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "attempts:", err)
		os.Exit(1)
	}
}

func run() error {
	var cfg confine.Config
	flag.DurationVar(&cfg.CPU, "cpu", 0, "")
	flag.IntVar(&cfg.Parent, "parent", 0, "")
	flag.BoolVar(&cfg.Insecure, "insecure-dev", false, "")
	flag.Parse()
	cfg.Mode, cfg.Dir = confine.Mode(flag.Arg(0)), flag.Arg(1)
	c, err := confine.Enter(cfg)
	if err != nil {
		return err
	}
	// In stage A the directory can be read, and nothing else.
	before := fmt.Sprint(open(cfg.Dir), " / ", open("/etc/passwd"))
	if err := c.Seal(); err != nil {
		return err
	}
	f := os.NewFile(wire.FD, "host")
	ready := wire.Ready{Protocol: wire.Version, Engine: "attempts: " + before, Enforced: c.Enforced()}
	if err := wire.WriteFrame(f, wire.KindReady, wire.EncodeJSON(ready)); err != nil {
		return err
	}
	r := bufio.NewReader(f)
	for {
		_, name, err := wire.ReadFrame(r, wire.KindInput)
		if err != nil {
			return nil // the host has seen enough
		}
		if err := wire.WriteFrame(f, wire.KindLog, []byte(attempt(string(name)))); err != nil {
			return err
		}
	}
}

// attempt returns the name of the error, or "ALLOWED".
func attempt(name string) string {
	word, arg, _ := strings.Cut(name, " ")
	err := try(word, arg)
	var e unix.Errno
	switch {
	case err == nil:
		return "ALLOWED"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func raw(nr uintptr, a ...uintptr) error {
	var v [6]uintptr
	copy(v[:], a)
	if _, _, e := unix.Syscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5]); e != 0 {
		return e
	}
	return nil
}

func path(s string) uintptr {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0
	}
	return uintptr(unsafe.Pointer(b))
}

func open(name string) error {
	f, err := os.Open(name)
	if err == nil {
		err = f.Close()
	}
	return err
}

func socket(domain, typ int) error {
	_, err := unix.Socket(domain, typ, 0)
	return err
}

func try(name, arg string) error {
	switch name {
	case "inet":
		return socket(unix.AF_INET, unix.SOCK_STREAM)
	case "inet6":
		return socket(unix.AF_INET6, unix.SOCK_DGRAM)
	case "packet":
		return socket(unix.AF_PACKET, unix.SOCK_RAW)
	case "netlink":
		return socket(unix.AF_NETLINK, unix.SOCK_RAW)
	case "vsock":
		return socket(unix.AF_VSOCK, unix.SOCK_STREAM)
	case "unix":
		return socket(unix.AF_UNIX, unix.SOCK_STREAM)
	case "socketpair":
		_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return err
	case "connect":
		return unix.Connect(wire.FD, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
	case "open":
		return open(arg)
	case "create":
		return os.WriteFile(arg, []byte("x"), 0o600)
	case "execve":
		return raw(unix.SYS_EXECVE, path("/bin/true"), 0, 0)
	case "fork": // EINVAL if it ever reached the kernel
		return raw(unix.SYS_CLONE, unix.CLONE_SIGHAND|uintptr(unix.SIGCHLD))
	case "clone3":
		return raw(unix.SYS_CLONE3, 0, 0)
	case "ptrace": // PEEKDATA of process 0; TRACEME would leave this process stopped
		return raw(unix.SYS_PTRACE, unix.PTRACE_PEEKDATA)
	case "bpf":
		return raw(unix.SYS_BPF, 99)
	case "unshare":
		return raw(unix.SYS_UNSHARE, 0)
	case "io_uring":
		var p [120]byte
		return raw(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p[0])))
	case "openat2":
		return raw(unix.SYS_OPENAT2, 0, 0, 0, 0)
	case "memfd":
		return raw(unix.SYS_MEMFD_CREATE, path("x"), 0)
	case "mmap-wx":
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	case "mprotect-wx":
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("mmap: %w", err)
		}
		return unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
	case "kill-parent":
		return raw(unix.SYS_KILL, uintptr(os.Getppid()), 0)
	case "kill":
		return raw(unix.SYS_KILL, 1, 0)
	case "sendmsg":
		return unix.Sendmsg(wire.FD, []byte{0}, unix.UnixRights(2), nil, 0)
	case "prctl":
		return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	case "seccomp":
		return raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0)
	case "setrlimit":
		return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{})
	case "flood":
		for range 500 {
			_ = socket(unix.AF_INET, unix.SOCK_STREAM)
		}
		return nil
	case "soak":
		return soak()
	}
	return fmt.Errorf("unknown attempt %q", name)
}

// soak holds 60 threads in the kernel at once, with garbage collection and timers.
func soak() error {
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			for range 5 {
				ts := unix.Timespec{Nsec: 20e6}
				_ = unix.Nanosleep(&ts, nil)
				_ = make([]byte, 1<<20)
				<-time.After(time.Millisecond)
			}
		})
	}
	wg.Wait()
	return nil
}
