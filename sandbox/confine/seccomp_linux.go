package confine

import (
	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// base is what every worker needs. There is no socket call in it: os.File on a
// stream socket uses read and write only.
var base = [...]uint32{
	// descriptors already held
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FCNTL, unix.SYS_FSTAT,
	// memory; mmap and mprotect are among the conditions
	unix.SYS_MUNMAP, unix.SYS_MADVISE,
	// signals: the runtime preempts with tgkill
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL,
	// time
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
	// threads; clone is among the conditions
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL,
	// Go reads affinity and cpu.max again from time to time; it holds the file open
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_PREAD64,
	unix.SYS_GETRANDOM,
	// the poller
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
}

// files are calls by which libraries look for files. No worker has any of them.
var files = [...]uint32{
	unix.SYS_OPENAT, unix.SYS_NEWFSTATAT, unix.SYS_LSEEK, unix.SYS_GETDENTS64, unix.SYS_READLINKAT, unix.SYS_FACCESSAT2,
}

// plugin is what a program needs on top that starts under the filter, listens on a
// Unix stream socket and speaks gRPC over what it accepts.
//
// Datagram sockets stay out, and pairs of them: they name a destination with each
// send, so that leaving connect out would say nothing.
//
// A call that takes a path, but for bind, is not here: the host is asked, which lets those
// go on that a plugin makes while it starts (Process.NoFiles in sandbox/spawn).
var plugin = [...]rule{
	{unix.SYS_BIND, allow, nil},
	{unix.SYS_LISTEN, allow, nil},
	{unix.SYS_ACCEPT4, allow, nil},
	{unix.SYS_GETSOCKNAME, allow, nil},
	{unix.SYS_PIPE2, allow, nil},
	{unix.SYS_LSEEK, allow, nil},
	{unix.SYS_GETDENTS64, allow, nil},
	{unix.SYS_SOCKET, allow, []condition{equal(0, unix.AF_UNIX), equal(1, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)}},
	{unix.SYS_SETSOCKOPT, allow, []condition{equal(1, unix.SOL_SOCKET), equal(2, unix.SO_REUSEADDR)}},
	{unix.SYS_PRLIMIT64, allow, []condition{equal(0, 0)}}, // its own; a hard limit does not rise again
	// What healthy plugins ask for and do without is refused and not reported: logging
	// libraries look for a terminal, go-plugin syncs its output, gRPC reads options of
	// its sockets for statistics.
	{unix.SYS_IOCTL, refuse(unix.ENOTTY), nil},
	{unix.SYS_FSYNC, refuse(unix.EPERM), nil},
	{unix.SYS_GETSOCKOPT, refuse(unix.EPERM), nil},
	// A worker of ours never asks for io_uring, so that one that does is reported; a
	// plugin's library may look whether it is there.
	{unix.SYS_IO_URING_SETUP, refuse(unix.ENOSYS), nil},
	{unix.SYS_IO_URING_ENTER, refuse(unix.ENOSYS), nil},
	{unix.SYS_IO_URING_REGISTER, refuse(unix.ENOSYS), nil},
}

const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// conditional is what is allowed with some arguments alone.
var conditional = [...]rule{
	{unix.SYS_CLONE, allow, []condition{equal(0, threadFlags)}},
	// Go on amd64 without cgo adds CLONE_SETTLS. Without this line short
	// tests pass; the process dies when it needs one more thread.
	{unix.SYS_CLONE, allow, []condition{equal(0, threadFlags|unix.CLONE_SETTLS)}},
	// Not executable, or not writable.
	{unix.SYS_MMAP, allow, []condition{noneOf(2, unix.PROT_EXEC)}},
	{unix.SYS_MMAP, allow, []condition{noneOf(2, unix.PROT_WRITE)}},
	{unix.SYS_MPROTECT, allow, []condition{noneOf(2, unix.PROT_EXEC)}},
	{unix.SYS_MPROTECT, allow, []condition{noneOf(2, unix.PROT_WRITE)}},
	// For the hand-over and the filters that follow, which take them away.
	{unix.SYS_SENDMSG, allow, []condition{equal(0, wire.FD)}},
	{unix.SYS_SECCOMP, allow, []condition{equal(0, unix.SECCOMP_SET_MODE_FILTER)}},
}

// absent makes libraries fall back where EPERM makes them give up.
var absent = [...]uint32{unix.SYS_CLONE3, unix.SYS_OPENAT2}

// allowed is the first filter.
func allowed(mode Mode) policy {
	p := policy{rules: make([]rule, 0, 128), rest: notify}
	p.each(allow, base[:]...)
	p.rules = append(append(p.rules, engine[:]...), conditional[:]...)
	p.each(refuse(unix.ENOSYS), absent[:]...)
	switch mode {
	case ModeRun, ModeCompile:
		p.each(refuse(unix.EPERM), stray[:]...)
	case ModePlugin:
		p.rules = append(append(p.rules, plugin[:]...), pluginArch[:]...)
	case ModeCanary: // has no engine, and is to see that a call is told of
	}
	return p
}

// without is a further filter: of all filters the strictest answer counts.
func without(calls ...uint32) policy {
	p := policy{rest: allow}
	p.each(refuse(unix.EPERM), calls...)
	return p
}

// each gives the same verdict to several calls.
func (p *policy) each(v verdict, calls ...uint32) {
	for _, c := range calls {
		p.rules = append(p.rules, rule{call: c, then: v})
	}
}
