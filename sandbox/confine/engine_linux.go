//go:build !cgo

package confine

import seccomp "github.com/elastic/go-seccomp-bpf"

// engineCalls and engineClone are what this build needs beyond base.
func engineCalls() []string { return nil }

const engineClone = threadFlags

// engineRefused is what it is refused without a report, as it asks in good faith.
func engineRefused() []seccomp.SyscallGroup { return nil }
