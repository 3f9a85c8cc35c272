package confine

import "golang.org/x/sys/unix"

const (
	architecture = unix.AUDIT_ARCH_X86_64
	// foreign is where the numbers of another interface begin, of the same architecture:
	// x32 has the calls of amd64 and some of its own.
	foreign = 1 << 30
)

// pluginArch is what a runtime needs to find its thread: ARCH_SET_FS.
var pluginArch = [...]rule{{unix.SYS_ARCH_PRCTL, allow, []condition{equal(0, 0x1002)}}}
