//go:build cgo

package confine

import "golang.org/x/sys/unix"

// engine is what a build with cgo needs beyond base: the C library's heap, where a
// refusal would look like success, and its threads. It asks in good faith whether
// standard error is a terminal, and is refused without a report.
var engine = [...]rule{
	{unix.SYS_BRK, allow, nil},
	{unix.SYS_MREMAP, allow, nil},
	{unix.SYS_SET_ROBUST_LIST, allow, nil},
	{unix.SYS_RSEQ, allow, nil},
	{unix.SYS_CLONE, allow, []condition{equal(0, threadFlags|unix.CLONE_SETTLS|unix.CLONE_PARENT_SETTID|unix.CLONE_CHILD_CLEARTID)}},
	{unix.SYS_IOCTL, refuse(unix.ENOTTY), []condition{equal(1, unix.TCGETS)}},
}

// stray are calls that a C library may make by itself in a healthy worker, such as to ask
// how memory is lent when it gives some back. It does without, and nobody is told.
var stray = files
