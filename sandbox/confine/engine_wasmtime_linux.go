//go:build wasmtime

package confine

import (
	"errors"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// everyThread is why Landlock cannot reach every thread of this build. It is a call for
// one thread until Linux can do it for all; without cgo Go's runtime carries it to the
// others, with cgo a C library does so by reading /proc, which a worker does not have.
func everyThread() error {
	return errors.New("a build with cgo cannot put it on every thread")
}

// engineCalls and engineClone are what the engine of this build needs beyond base: the
// C library's heap, where a refusal would look like success, and its threads.
func engineCalls() []string {
	return []string{"brk", "mremap", "set_robust_list", "rseq"}
}

const engineClone = threadFlags | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// engineRefused is what it is refused without a report, as it asks in good faith:
// whether standard error is a terminal.
func engineRefused() []seccomp.SyscallGroup {
	return []seccomp.SyscallGroup{{Action: errno(unix.ENOTTY), NamesWithCondtions: []seccomp.NameWithConditions{when("ioctl", 1, seccomp.Equal, unix.TCGETS)}}}
}
