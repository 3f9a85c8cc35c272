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

// stray is what comes of a call for files once a run is sealed. A C library may make one
// by itself, and does without.
var stray = refuse(unix.EPERM)
