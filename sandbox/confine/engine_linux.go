//go:build !wasmtime

package confine

import seccomp "github.com/elastic/go-seccomp-bpf"

// everyThread is why Landlock cannot reach every thread of this build; nil: it can.
func everyThread() error { return nil }

// engineCalls and engineClone are what the engine of this build needs beyond base.
func engineCalls() []string { return nil }

const engineClone = threadFlags

// engineRefused is what it is refused without a report, as it asks in good faith.
func engineRefused() []seccomp.SyscallGroup { return nil }
