// Package doctor finds out which walls stand around workers on this machine: it
// starts canaries through the spawner that starts workers, and counts what they
// could not do. Nothing is believed that was only configured.
//
// Laws, each with its test:
//
//   - Every attempt succeeds where there is no wall: one that always fails would prove
//     nothing (TestRootBaseline).
//   - With all walls every attempt is denied (TestRootFullStack).
//   - Each wall alone denies what the table says and leaves open what it says, or the
//     difference is a finding (TestRootMatrix, TestFindings).
//   - What does not stand is said (TestRootLikeFargate).
//   - Kernel programs count where they refused and counted it (TestRootBackstop).
//
// It knows attempts, stages and what they should come to. It must not know policy, or
// what a workspace needs.
package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/sandbox/canary"
	"github.com/getmonroe/monroe/sandbox/ebpf"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// Subject is what is looked at.
type Subject struct {
	Program string // the worker
	UID     uint32 // its user as of spawn.Spawner, where this process forks
	// Up is what forks instead of this process; nil for nothing.
	Up *spawn.Remote
	// Backstop is what this process got of the kernel programs; nil for nothing.
	Backstop *ebpf.Backstop
	// NoBackstop is why it got nothing, where that is known.
	NoBackstop string
}

// user is whom workers run as, 0 for this process's own.
func (s Subject) user() uint32 {
	if s.Up != nil {
		return s.Up.UID()
	}
	return s.UID
}

// spawner is a new one.
func (s Subject) spawner() (*spawn.Spawner, error) {
	if s.Up != nil {
		return s.Up.New(true)
	}
	return spawn.New(s.Program, true)
}

// Report is what was found. Its JSON form is part of the command line's interface.
type Report struct {
	Level  string  `json:"level"` // such as L0+L1+L2: the layers that are enforced
	Layers []Layer `json:"layers"`
	// Parts are walls within a layer that others of that layer hide.
	Parts []Layer `json:"parts"`
	// Full is every attempt with all layers together.
	Full Layer `json:"full"`
	// Findings are outcomes that differ from what is expected of a layer.
	Findings []string `json:"findings"`
	Host     Host     `json:"host"`
}

// Layer is one wall, or all of them.
type Layer struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Enforced bool     `json:"enforced"`
	Attempts int      `json:"attempts"`
	Denied   int      `json:"denied"`
	Reported int      `json:"reported"` // of the denied ones, how many the host was told of
	Open     []string `json:"open"`     // attempts that this wall alone does not stop
	Why      string   `json:"why"`      // what it consists of here, or why it does not stand
}

// Host is what the machine offers.
type Host struct {
	Kernel       string   `json:"kernel"`
	Arch         string   `json:"arch"`
	UID          int      `json:"uid"`
	WorkerUID    int      `json:"worker_uid"`
	Spawner      string   `json:"spawner"`      // who forks workers
	Capabilities string   `json:"capabilities"` // effective set of this process, hexadecimal
	Landlock     int      `json:"landlock"`     // ABI version, 0: none
	Namespaces   string   `json:"namespaces"`   // "yes", "yes, but …" or why not
	Groups       []string `json:"groups"`       // limits by control group
	GroupsWhy    []string `json:"groups_why,omitempty"`
}

// stage is a set of walls to look at.
type stage string

const (
	bare       stage = "bare" // no wall at all
	process    stage = "process"
	kernel     stage = "kernel" // seccomp and Landlock
	isolated   stage = "isolated"
	fenced     stage = "fenced" // kernel programs at the workers' control group
	files      stage = "files"  // Landlock alone
	everything stage = "everything"
)

// outcome that is expected of an attempt.
type outcome byte

const (
	open   outcome = 'o'
	denied outcome = 'd'
	either outcome = '?' // the kernel's version or its settings decide
)

// row is an attempt and what each stage should make of it.
type row struct {
	canary.Attempt
	// With a privileged spawner (root, a user of the workers' own) and without.
	process, unprivileged, kernel, isolated, files outcome
	report                                         string // system call that is reported
	fatal                                          bool   // the denial ends the process; nothing but process denies it
}

// table is the expectation, open rows included. Columns: the process of its own as
// root starts it, as anybody else does, seccomp with Landlock, namespaces, and Landlock
// alone, which seccomp hides.
var table = []row{
	{canary.TCP, open, open, denied, denied, either, "socket", false},
	{canary.UDP, open, open, denied, denied, open, "socket", false},
	{canary.MPTCP, open, open, denied, denied, open, "socket", false},
	{canary.RawIP, denied, either, denied, either, open, "socket", false},
	{canary.Packet, denied, either, denied, either, open, "socket", false},
	{canary.Netlink, open, open, denied, open, open, "socket", false},
	{canary.VSock, either, either, denied, either, either, "socket", false},
	{canary.Abstract, open, open, denied, denied, either, "socket", false},
	{canary.UnixPath, denied, open, denied, open, either, "socket", false},
	{canary.SocketPair, open, open, denied, open, open, "socketpair", false},
	{canary.IOUring, either, either, denied, either, either, "io_uring_setup", false},
	{canary.Exec, open, open, denied, open, open, "execve", false},
	{canary.Process, open, open, denied, open, open, "clone", false},
	{canary.Ptrace, denied, either, denied, denied, denied, "ptrace", false},
	{canary.Signal, denied, open, denied, denied, either, "kill", false},
	{canary.BPF, either, either, denied, either, either, "bpf", false},
	{canary.Namespaces, open, open, denied, open, open, "unshare", false},
	{canary.Mount, denied, either, denied, either, denied, "mount", false},
	{canary.SetUID, denied, either, denied, either, open, "setresuid", false},
	{canary.ReadSystem, open, open, denied, open, denied, "openat", false},
	{canary.ReadHost, denied, open, denied, open, denied, "openat", false},
	{canary.ReadModule, open, open, denied, open, open, "openat", false},
	{canary.WriteTemp, open, open, denied, open, denied, "openat", false},
	{canary.WriteExec, open, open, denied, open, open, "mmap", false},
	{canary.MemoryFile, open, open, denied, open, open, "memfd_create", false},
	{canary.Descriptors, denied, denied, denied, denied, denied, "", false},
	{canary.Threads, denied, either, open, open, open, "", true},
	{canary.Memory, denied, denied, open, open, open, "", true},
}

// expected is what a stage should make of an attempt.
func (r row) expected(s stage, privileged bool) outcome {
	switch s {
	case bare:
	case process:
		if privileged {
			return r.process
		}
		return r.unprivileged
	case kernel:
		return r.kernel
	case isolated:
		return r.isolated
	case files:
		return r.files
	case fenced: // nothing but IP is their business
		if r.ip() || r.Attempt == canary.Descriptors {
			return denied
		}
		return open
	case everything:
		return denied
	}
	return either
}

// ip says that the attempt needs a socket of IP.
func (r row) ip() bool {
	return slices.Contains([]canary.Attempt{canary.TCP, canary.UDP, canary.MPTCP, canary.RawIP}, r.Attempt)
}

// result is what came of one attempt.
type result struct {
	row
	answer   string
	denied   bool
	reported bool
}

// judge compares a stage's results with the table.
// futile are attempts that this process cannot make anyway, also without walls.
func judge(s stage, privileged bool, groups []string, futile []canary.Attempt, results []result) (findings []string) {
	for _, r := range results {
		want := r.expected(s, privileged)
		if want != denied && s == process && r.ip() {
			want = either // its group is the workers', where the kernel may hold a program
		}
		if want == open && slices.Contains(futile, r.Attempt) || r.Attempt == canary.Threads && !slices.Contains(groups, "pids") {
			want = either
		}
		if want != either && (want == denied) != r.denied {
			findings = append(findings, fmt.Sprintf("%s: %s came to %s", s, r.Attempt, r.answer))
		}
		told := r.report == "" || r.reported
		if s == fenced { // the programs count what they refuse, but for what this process could not have asked for
			told = !r.ip() || r.reported || r.Attempt == canary.RawIP && slices.Contains(futile, r.Attempt)
		}
		if r.denied && !told && (s == kernel || s == everything || s == fenced) {
			findings = append(findings, fmt.Sprintf("%s: %s was denied and not reported", s, r.Attempt))
		}
	}
	return findings
}

// layer counts.
func layer(id, name string, results []result) Layer {
	l := Layer{ID: id, Name: name, Open: []string{}}
	for _, r := range results {
		l.attempt(string(r.Attempt), r.denied, r.reported)
	}
	return l
}

// attempt counts one, and names it if nothing stopped it.
func (l *Layer) attempt(name string, denied, reported bool) {
	l.Attempts++
	if !denied {
		l.Open = append(l.Open, name)
		return
	}
	l.Denied++
	if reported {
		l.Reported++
	}
}

func level(layers []Layer) string {
	var stand []string
	for _, l := range layers {
		if l.Enforced {
			stand = append(stand, l.ID)
		}
	}
	if len(stand) == 0 {
		return "none"
	}
	return strings.Join(stand, "+")
}
