// Package cgroup gives each worker a control group of its own, whose limits the
// kernel enforces and whose directory an egress program can be attached to.
//
// Laws, each with its test:
//
//   - A process is in its group from its first instruction: in version 2 it is made
//     there, in version 1 by a thread that is there (TestRootMembership).
//   - What Tree.Enforces names has been tried on this machine; what cannot be had is
//     said, never pretended (TestRootEnforces).
//   - No group is left behind, also after a crash of the daemon (TestRootSweep).
//
// It knows the two versions of control groups and hybrids of them.
//
// It must not know workers, programs or who is limited.
package cgroup

import "errors"

// Limits of one group. Zero means that there is none.
type Limits struct {
	Memory int64   // bytes, with the page cache and without swap where the kernel counts it
	PIDs   int     // processes and threads
	CPU    float64 // processors
}

// ErrUnsupported is wrapped by Open where no group can be made.
var ErrUnsupported = errors.New("control groups cannot be used here")
