package confine

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
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

// plugin is what a program needs on top that starts under the filter, listens on a
// Unix stream socket and speaks gRPC over what it accepts.
//
// Datagram sockets stay out, and pairs of them: they name a destination with each
// send, so that leaving connect out would say nothing.
func plugin() ([]string, []seccomp.NameWithConditions) {
	const stream = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	conditions := []seccomp.NameWithConditions{
		{Name: "socket", Conditions: seccomp.ArgumentConditions{
			{Argument: 0, Operation: seccomp.Equal, Value: unix.AF_UNIX},
			{Argument: 1, Operation: seccomp.Equal, Value: stream},
		}},
		{Name: "setsockopt", Conditions: seccomp.ArgumentConditions{
			{Argument: 1, Operation: seccomp.Equal, Value: unix.SOL_SOCKET},
			{Argument: 2, Operation: seccomp.Equal, Value: unix.SO_REUSEADDR},
		}},
		when("prlimit64", 0, seccomp.Equal, 0), // its own; a hard limit does not rise again
	}
	if runtime.GOARCH == "amd64" {
		const setFS = 0x1002 // ARCH_SET_FS, how a runtime finds its thread
		conditions = append(conditions, when("arch_prctl", 0, seccomp.Equal, setFS))
	}
	// unlinkat, because the name of the socket is tried with a file first.
	return []string{"bind", "listen", "accept4", "getsockname", "pipe2", "unlinkat"}, conditions
}

const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

func when(name string, arg uint32, op seccomp.Operation, v uint64) seccomp.NameWithConditions {
	return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{{Argument: arg, Operation: op, Value: v}}}
}

// allowed is the first filter. Its default is user notification; see install.
func allowed(mode Mode) seccomp.Policy {
	names := append(append(base(), engineCalls()...), reading()...)
	if mode == ModeCompile {
		names = append(names, writing()...)
	}
	p := seccomp.Policy{
		DefaultAction: seccomp.ActionUserNotify,
		Syscalls: []seccomp.SyscallGroup{
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
		},
	}
	if mode == ModePlugin {
		more, conditions := plugin()
		p.Syscalls[0].Names = append(p.Syscalls[0].Names, more...)
		p.Syscalls[0].NamesWithCondtions = append(p.Syscalls[0].NamesWithCondtions, conditions...)
		// What healthy plugins ask for and do without is refused and not reported: logging
		// libraries look for a terminal, go-plugin syncs its output, gRPC reads options of
		// its sockets for statistics.
		p.Syscalls = append(p.Syscalls,
			seccomp.SyscallGroup{Action: errno(unix.ENOTTY), Names: []string{"ioctl"}},
			seccomp.SyscallGroup{Action: errno(unix.EPERM), Names: []string{"fsync", "getsockopt"}})
	}
	p.Syscalls = append(p.Syscalls, engineRefused()...)
	return p
}

// without is a further filter: of all filters the strictest answer counts.
func without(names []string) seccomp.Policy {
	return seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Action: errno(unix.EPERM), Names: names}},
	}
}

func errno(e unix.Errno) seccomp.Action { return seccomp.ActionErrno | seccomp.Action(e) }

// assemble writes the program of a policy. The library's own assembler is not used: it
// compares the next name with what the last condition loaded, which is an argument, so
// that whoever chooses that argument gets past other conditions (TestLinuxStaleArgument).
// Here the number is loaded anew after each condition, and no jump leaves its block.
func assemble(p seccomp.Policy) ([]bpf.Instruction, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	const number, architecture, arguments = 0, 4, 16 // in struct seccomp_data
	ret := func(a seccomp.Action) bpf.Instruction { return bpf.RetConstant{Val: uint32(a)} }
	load := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	code := []bpf.Instruction{
		load(architecture),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		ret(p.DefaultAction), // the 32-bit calls
		load(number),
	}
	if info.ID == arch.X86_64.ID {
		code = append(code, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(arch.X32.SeccompMask), SkipFalse: 1}, ret(errno(unix.ENOSYS)))
	}
	for _, g := range p.Syscalls {
		for _, name := range g.Names {
			nr, ok := info.SyscallNames[name]
			if !ok {
				return nil, fmt.Errorf("there is no system call %s", name)
			}
			code = append(code, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: 1}, ret(g.Action))
		}
		for _, c := range g.NamesWithCondtions {
			nr, ok := info.SyscallNames[c.Name]
			if !ok {
				return nil, fmt.Errorf("there is no system call %s", c.Name)
			}
			rest := 4*len(c.Conditions) + 1 // two loads and two tests for each, and the return
			block := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: uint8(rest)}}
			for _, x := range c.Conditions {
				if x.Operation != seccomp.Equal && x.Operation != seccomp.BitsNotSet {
					return nil, fmt.Errorf("a condition of %s is of another kind", c.Name)
				}
				// Little-endian, as every architecture of ours: the high half comes second.
				for _, half := range []struct{ off, val uint32 }{{4, uint32(x.Value >> 32)}, {0, uint32(x.Value)}} {
					block = append(block, load(arguments+8*x.Argument+half.off))
					rest -= 2
					test := bpf.JumpIf{Cond: bpf.JumpEqual, Val: half.val, SkipFalse: uint8(rest)}
					if x.Operation == seccomp.BitsNotSet {
						test = bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: half.val, SkipTrue: uint8(rest)}
					}
					block = append(block, test)
				}
			}
			code = append(code, append(block, ret(g.Action), load(number))...)
		}
	}
	return append(code, ret(p.DefaultAction)), nil
}

// install puts a filter on every thread. With notify it returns the listener:
// forbidden calls then wait for the answer of whoever holds it, and return ENOSYS
// once nobody does.
func install(p seccomp.Policy, notify bool) (listener int, err error) {
	if notify {
		p.DefaultAction = seccomp.ActionUserNotify
	}
	insts, err := assemble(p)
	if err != nil {
		return -1, fmt.Errorf("the filter cannot be assembled: %w", err)
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
