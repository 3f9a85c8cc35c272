package confine

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// base is what every worker needs. There is no socket call in it: os.File on a
// stream socket uses read and write only.
func base() []string {
	return []string{
		// descriptors already held
		"read", "write", "close", "fcntl",
		// memory; mmap and mprotect are among the conditions
		"munmap", "madvise",
		// signals: the runtime preempts with tgkill
		"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill",
		// time
		"nanosleep", "clock_gettime", "clock_nanosleep",
		// threads; clone is among the conditions
		"futex", "sched_yield", "gettid", "getpid", "exit", "exit_group", "restart_syscall",
		// Go reads affinity and cpu.max again from time to time; it holds the file open
		"sched_getaffinity", "pread64",
		"getrandom",
		// the poller
		"epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2",
	}
}

// reading is what loading a module from the directory needs. Landlock narrows it to
// that directory; a filter cannot read paths.
func reading() []string {
	stat := "newfstatat"
	if runtime.GOARCH == "arm64" {
		stat = "fstatat" // the table's name for the same call
	}
	return []string{"openat", stat, "fstat", "lseek", "getdents64", "readlinkat", "faccessat2"}
}

// writing is what storing compiled code needs on top.
func writing() []string {
	return []string{"unlinkat", "renameat", "fsync", "ftruncate", "mkdirat"}
}

const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

func when(name string, arg uint32, op seccomp.Operation, v uint64) seccomp.NameWithConditions {
	return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{{Argument: arg, Operation: op, Value: v}}}
}

// allowed is the first filter. Its default stands for user notification; see
// install.
func allowed(mode Mode) seccomp.Policy {
	names := append(append(base(), engineCalls()...), reading()...)
	if mode == ModeCompile {
		names = append(names, writing()...)
	}
	return seccomp.Policy{
		DefaultAction: seccomp.ActionTrap,
		Syscalls: append(engineRefused(), []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: names, NamesWithCondtions: []seccomp.NameWithConditions{
				when("clone", 0, seccomp.Equal, threadFlags),
				// Go on amd64 without cgo adds CLONE_SETTLS. Without this line short
				// tests pass; the process dies when it needs one more thread.
				when("clone", 0, seccomp.Equal, threadFlags|unix.CLONE_SETTLS),
				when("clone", 0, seccomp.Equal, engineClone),
				// Not executable, or not writable.
				when("mmap", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
				when("mmap", 2, seccomp.BitsNotSet, unix.PROT_WRITE),
				when("mprotect", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
				when("mprotect", 2, seccomp.BitsNotSet, unix.PROT_WRITE),
				// For the hand-over and the filters that follow, which take them away.
				when("sendmsg", 0, seccomp.Equal, wire.FD),
				when("seccomp", 0, seccomp.Equal, unix.SECCOMP_SET_MODE_FILTER),
			}},
			// ENOSYS makes libraries fall back where EPERM makes them give up.
			{Action: errno(unix.ENOSYS), Names: []string{"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "openat2"}},
		}...),
	}
}

// without is a further filter: of all filters the strictest answer counts.
func without(names []string) seccomp.Policy {
	return seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Action: errno(unix.EPERM), Names: names}},
	}
}

func errno(e unix.Errno) seccomp.Action { return seccomp.ActionErrno | seccomp.Action(e) }

// install puts a filter on every thread. With notify it returns the listener:
// forbidden calls then wait for the answer of whoever holds it, and return ENOSYS
// once nobody does.
func install(p seccomp.Policy, notify bool) (listener int, err error) {
	insts, err := p.Assemble()
	if err != nil {
		return -1, fmt.Errorf("the filter cannot be assembled: %w", err)
	}
	if notify {
		// The library refuses user notification as a default action, so the
		// policy has ActionTrap there and that one constant is rewritten.
		for i, in := range insts {
			if rc, ok := in.(bpf.RetConstant); ok && rc.Val == uint32(seccomp.ActionTrap) {
				insts[i] = bpf.RetConstant{Val: uint32(seccomp.ActionUserNotify)}
			}
		}
	}
	raw, err := bpf.Assemble(insts)
	if err != nil {
		return -1, fmt.Errorf("the filter cannot be assembled: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if !notify {
		return set(&prog, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	const listen = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	// WAIT_KILLABLE_RECV (5.19) keeps preemption signals from repeating a report.
	listener, err = set(&prog, listen|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if errors.Is(err, unix.EINVAL) {
		listener, err = set(&prog, listen)
	}
	return listener, err
}

func set(prog *unix.SockFprog, flags uintptr) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}
