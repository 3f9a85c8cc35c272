package confine

import "golang.org/x/sys/unix"

const (
	architecture = unix.AUDIT_ARCH_X86_64
	// foreign is where the numbers of another interface begin, of the same architecture:
	// x32 has the calls of amd64 and some of its own.
	foreign = 1 << 30
)

// pluginArch is what a runtime needs to find its thread.
func pluginArch() []rule {
	const setFS = 0x1002 // ARCH_SET_FS
	return []rule{{call: unix.SYS_ARCH_PRCTL, then: allow, when: []condition{equal(0, setFS)}}}
}
