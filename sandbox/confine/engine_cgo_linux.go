//go:build cgo

package confine

import (
	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// engineCalls and engineClone are what a build with cgo needs beyond base: the C
// library's heap, where a refusal would look like success, and its threads.
func engineCalls() []string {
	return []string{"brk", "mremap", "set_robust_list", "rseq"}
}

const engineClone = threadFlags | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// engineRefused is what it is refused without a report, as it asks in good faith:
// whether standard error is a terminal.
func engineRefused() []seccomp.SyscallGroup {
	return []seccomp.SyscallGroup{{Action: errno(unix.ENOTTY), NamesWithCondtions: []seccomp.NameWithConditions{when("ioctl", 1, seccomp.Equal, unix.TCGETS)}}}
}
