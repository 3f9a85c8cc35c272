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
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/canary"
	"github.com/getmonroe/monroe/sandbox/confine"
)

// told is the signal that the parent's death sends to the thread that was forked.
var told int

// The first thread stays here: Enter has to work on any other.
func init() {
	if os.Args[0] == "plugin" { // it has become one; see spawn.Process.passes
		for {
			_ = unix.Pause()
		}
	}
	runtime.LockOSThread()
	var signal int32
	if _, _, e := unix.Syscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&signal)), 0); e == 0 {
		told = int(signal)
	}
}

func main() {
	done := make(chan error)
	go func() { done <- run() }()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, "attempts:", err)
		os.Exit(1)
	}
}

func run() error {
	var cfg confine.Config
	flag.DurationVar(&cfg.CPU, "cpu", 0, "")
	flag.Int64Var(&cfg.Memory, "memory", 0, "")
	flag.IntVar(&cfg.Parent, "parent", 0, "")
	flag.BoolVar(&cfg.Insecure, "insecure-dev", false, "")
	flag.Parse()
	cfg.Mode, cfg.Dir, cfg.Files = confine.Mode(flag.Arg(0)), flag.Arg(1), []string{"own", "absent"}
	if cfg.Mode == confine.ModePlugin {
		cfg.Files = nil
	}
	c, err := confine.Enter(cfg)
	if err != nil {
		return err
	}
	if cfg.Mode == confine.ModePlugin {
		return launch(c)
	}
	f := os.NewFile(wire.FD, "host")
	ready := wire.Ready{Protocol: wire.Version, Engine: fmt.Sprint("attempts: ", syscall.Signal(told)), Enforced: c.Enforced()}
	if err := wire.WriteFrame(f, wire.KindReady, wire.EncodeJSON(ready)); err != nil {
		return err
	}
	r := bufio.NewReader(f)
	for {
		_, name, err := wire.ReadFrame(r, wire.KindInput)
		if err != nil {
			return nil // the host has seen enough
		}
		if err := wire.WriteFrame(f, wire.KindLog, []byte(attempt(c, string(name)))); err != nil {
			return err
		}
	}
}

// launch becomes the program that it was given, as a worker does, on this thread.
func launch(c *confine.Confinement) error {
	ready := wire.Ready{Protocol: wire.Version, Engine: "attempts", Enforced: c.Enforced()}
	if err := wire.WriteFrame(os.NewFile(wire.FD, "host"), wire.KindReady, wire.EncodeJSON(ready)); err != nil {
		return err
	}
	syscall.CloseOnExec(wire.FD)
	syscall.CloseOnExec(wire.ProgramFD)
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", wire.ProgramFD), []string{"plugin"}, os.Environ())
}

// attempt returns the name of the error, or canary.Allowed.
func attempt(c *confine.Confinement, text string) string {
	name, arg, _ := strings.Cut(text, " ")
	err, known := try(c, name, arg)
	var e unix.Errno
	switch {
	case !known:
		return canary.Try(text)
	case err == nil:
		return canary.Allowed
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

func open(name string) error {
	f, err := os.Open(name)
	if err == nil {
		err = f.Close()
	}
	return err
}

// try is what only tests try; the rest is the canary's.
func try(c *confine.Confinement, name, arg string) (err error, known bool) { //nolint:revive // the error is the answer
	switch name {
	case "clone-as-mmap": // the high half is mmap's number; the low half contradicts itself
		err = raw(unix.SYS_CLONE, unix.SYS_MMAP<<32|unix.CLONE_SIGHAND, 0, 0, 0, 0)
	case "mmap-as-sendmsg": // the protection is sendmsg's number on amd64: read, write, execute and more
		err = raw(unix.SYS_MMAP, wire.FD, 4096, unix.SYS_SENDMSG|unix.PROT_EXEC|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE, ^uintptr(0), 0)
	case "inet6":
		_, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	case "connect":
		err = unix.Connect(wire.FD, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
	case "own": // the files that it has in any case; the other one is not there
		switch f := c.File("own"); {
		case f == nil || c.File("absent") != nil && arg == "read":
			err = os.ErrNotExist
		case arg == "read":
			_, err = f.Read(make([]byte, 1))
		default:
			_, err = f.Write([]byte("x"))
		}
	case "open":
		err = open(arg)
	case "stat":
		err = unix.Fstatat(unix.AT_FDCWD, arg, &unix.Stat_t{}, 0)
	case "readlink":
		_, err = unix.Readlinkat(unix.AT_FDCWD, arg, make([]byte, 64))
	case "access":
		err = unix.Faccessat2(unix.AT_FDCWD, arg, unix.R_OK, 0)
	case "unlink":
		err = unix.Unlinkat(unix.AT_FDCWD, arg, 0)
	case "rename":
		err = unix.Renameat(unix.AT_FDCWD, arg, unix.AT_FDCWD, arg+"-moved")
	case "mkdir":
		err = unix.Mkdirat(unix.AT_FDCWD, arg, 0o700)
	case "create":
		err = os.WriteFile(arg, []byte("x"), 0o600)
	case "clone3":
		err = raw(unix.SYS_CLONE3, 0, 0)
	case "openat2":
		err = raw(unix.SYS_OPENAT2, 0, 0, 0, 0)
	case "mprotect-wx":
		var b []byte
		b, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			err = unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
		}
	case "kill-parent":
		err = raw(unix.SYS_KILL, uintptr(os.Getppid()), 0)
	case "sendmsg":
		err = unix.Sendmsg(wire.FD, []byte{0}, unix.UnixRights(2), nil, 0)
	case "prctl":
		err = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	case "seccomp":
		err = raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0)
	case "setrlimit":
		err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{})
	case "flood":
		for range 500 {
			_, _ = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		}
	case "soak":
		err = soak()
	default:
		return nil, false
	}
	return err, true
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
