//go:build cgo

package confine

import "golang.org/x/sys/unix"

// engine is what a build with cgo needs beyond base: the C library's heap, where a
// refusal would look like success, and its threads. It asks in good faith whether
// standard error is a terminal, and is refused without a report.
func engine() []rule {
	const thread = threadFlags | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	return append(each(allow, unix.SYS_BRK, unix.SYS_MREMAP, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ),
		rule{unix.SYS_CLONE, allow, []condition{equal(0, thread)}},
		rule{unix.SYS_IOCTL, refuse(unix.ENOTTY), []condition{equal(1, unix.TCGETS)}})
}
