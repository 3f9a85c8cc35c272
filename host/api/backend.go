// Package api is what the workspace tells and is told over HTTP: the views, and the
// Backend that fills them. Package rest serves it, package client calls it.
//
// It knows shapes. It must not know HTTP, connectors, the sandbox or SQL.
package api

import (
	"context"
	"encoding/json"
	"time"

	"github.com/getmonroe/monroe/host"
)

// Backend is the workspace as the API needs it. Every method gets the caller; it
// trusts that api checked the token's scope, and checks roles itself. Errors wrap
// those of package host.
type Backend interface {
	// Authenticate resolves a token's text. An unknown or expired one is ErrForbidden.
	Authenticate(ctx context.Context, token string) (host.Caller, error)

	Workspace(ctx context.Context, c host.Caller) (WorkspaceView, error)
	// Apply replaces the workspace's configuration; on an error nothing changes.
	Apply(ctx context.Context, c host.Caller, in ApplyInput) (ApplyResult, error)

	// PushSkill admits, compiles and stores a module. progress may be called from
	// another goroutine.
	PushSkill(ctx context.Context, c host.Caller, module []byte) (host.Skill, error)
	Skills(ctx context.Context, c host.Caller) ([]host.Skill, error)
	Skill(ctx context.Context, c host.Caller, name string) (host.Skill, error)

	// Estimate tells what a run of the skill is expected to cost under a ceiling in
	// dollars; empty means the one that a run has where nobody names one.
	Estimate(ctx context.Context, c host.Caller, skill, maxUSD string) (host.Estimate, error)
	StartRun(ctx context.Context, c host.Caller, in StartInput) (host.Run, error)
	Runs(ctx context.Context, c host.Caller, limit int) ([]host.Run, error)
	Run(ctx context.Context, c host.Caller, id host.RunID) (RunView, error)
	CancelRun(ctx context.Context, c host.Caller, id host.RunID) error
	// EraseRun takes the content of a run that has ended away for good. Headers, digests
	// and the audit log stay.
	EraseRun(ctx context.Context, c host.Caller, id host.RunID) (host.Run, error)
	// ReleaseRun lets a run go on that is held since the database was restored.
	ReleaseRun(ctx context.Context, c host.Caller, id host.RunID) (host.Run, error)
	// Keys tells of the workspace's keys, and shows none.
	Keys(ctx context.Context, c host.Caller) (KeysView, error)
	// RotateKeys makes a new sealing key the one that seals.
	RotateKeys(ctx context.Context, c host.Caller) (KeysView, error)
	// Pins lists what the runs that have not ended need of a host to go on.
	Pins(ctx context.Context, c host.Caller) ([]host.Pins, error)
	// Resolve records a person's word on an attempt whose outcome is unknown. A run
	// that waits for none is ErrConflict.
	Resolve(ctx context.Context, c host.Caller, id host.RunID, in ResolveInput) (host.Run, error)
	// Events returns what happened after the event numbered after and a channel that
	// is closed when something more may have happened. done says that the run ended
	// and the list is complete.
	Events(ctx context.Context, c host.Caller, id host.RunID, after int64) (list []host.Event, more <-chan struct{}, done bool, err error)

	Approvals(ctx context.Context, c host.Caller, state host.ApprovalState) ([]host.Approval, error)
	Approval(ctx context.Context, c host.Caller, id host.ApprovalID) (ApprovalView, error)
	// Decide records a person's answer.
	Decide(ctx context.Context, c host.Caller, id host.ApprovalID, in Decision) (host.Approval, error)
	// Edit changes what is asked for. The approval is closed; the new bytes are asked
	// for by another.
	Edit(ctx context.Context, c host.Caller, id host.ApprovalID, in EditInput) (host.Approval, error)

	Spend(ctx context.Context, c host.Caller) (SpendView, error)
	// Audit returns at most limit leaves from an index on, with the newest signed
	// checkpoint.
	Audit(ctx context.Context, c host.Caller, from int64, limit int) (AuditView, error)
	// ProveLeaf returns what shows somebody without the other leaves that one is in the
	// newest signed log and, where since is not 0, that the log began as one of so many
	// leaves did.
	ProveLeaf(ctx context.Context, c host.Caller, leaf, since int64) (AuditProof, error)
	Doctor(ctx context.Context, c host.Caller) (DoctorView, error)
	// Egress tells what left this host, as the kernel counted it.
	Egress(ctx context.Context, c host.Caller) (EgressView, error)
}

// WorkspaceView is the workspace in force.
type WorkspaceView struct {
	Workspace host.Workspace `json:"workspace"`
	Caller    host.Principal `json:"caller"`
	Version   int64          `json:"policy_version" doc:"grows with every change of grants, policies or connectors"`
	CapUSD    string         `json:"cap_usd" doc:"monthly cap in dollars"`
	Config    string         `json:"config" doc:"the workspace.yaml in force"`
	Level     string         `json:"confinement" doc:"the walls around guests, such as L0+L1+L2"`
}

// ApplyInput is a workspace.yaml and the Cedar files that it names.
type ApplyInput struct {
	Config   string            `json:"config" doc:"the text of workspace.yaml"`
	Policies map[string]string `json:"policies,omitempty" doc:"Cedar text by the file name that workspace.yaml uses"`
}

// ApplyResult says what changed.
type ApplyResult struct {
	Version int64    `json:"policy_version"`
	Grants  int      `json:"grants"`
	Changes []string `json:"changes" doc:"one sentence for each change"`
}

// StartInput starts a run.
type StartInput struct {
	Skill  string          `json:"skill"`
	Input  json.RawMessage `json:"input,omitempty"`
	MaxUSD string          `json:"max_usd,omitempty" doc:"ceiling of this run in dollars; at most the rest of the monthly cap"`
}

// ResolveInput says what became of the attempt that a run waits for.
type ResolveInput struct {
	Outcome host.Resolution `json:"outcome" enum:"happened,did_not_happen,abandoned" doc:"happened: the guest is told so and nothing is sent again; did_not_happen: it may be attempted again; abandoned: the guest is told that nobody knows"`
	Call    uint32          `json:"call,omitempty" doc:"the call that you looked at; another one than the run waits for is refused"`
}

// RunView is a run with its calls.
type RunView struct {
	host.Run
	Module string          `json:"module_sha256"`
	Result json.RawMessage `json:"result,omitempty" doc:"what the guest wrote; guest-made"`
	// Waiting is set while it waits.
	Waiting *host.WaitView  `json:"waiting,omitempty" doc:"what it waits for, whose turn it is and when the wait ends"`
	Tree    []host.Node     `json:"tree" doc:"the runs that belong together by skill.call, callers first; the run alone if there are no others"`
	Log     []host.CallView `json:"log" doc:"one line for each host call, of the current segment"`
	// Segments are all of a run that continued (run.continue); absent for one that did not.
	Segments     []Segment `json:"segments,omitempty"`
	Records      int64     `json:"journal_records" doc:"of all segments"`
	JournalBytes int64     `json:"journal_bytes" doc:"sealed bodies of all segments"`
	Notice       string    `json:"notice,omitempty" doc:"set while the journal of the current segment is large"`
}

// Segment is a part of a run that began with a state of its own.
type Segment struct {
	Number int       `json:"number"`
	Since  time.Time `json:"since"`
	After  uint32    `json:"after_call" doc:"the call that it began with"`
	Calls  uint32    `json:"calls,omitempty" doc:"how many it made, once it has ended"`
}

// ApprovalView is an approval with what a person has to see.
type ApprovalView struct {
	host.Approval
	Preview host.Preview `json:"preview"`
	Readers []string     `json:"readers" doc:"who will be able to read it"`
	Origins []string     `json:"origins" doc:"what the run had read"`
	Label   string       `json:"label"`
	// Args are the fields that can be edited.
	Args json.RawMessage `json:"args,omitempty" doc:"the operation's arguments while it waits, as the guest or a person wrote them; what can be edited"`
}

// SpendView is the ledger of the current month (UTC).
type SpendView struct {
	Period   string `json:"period"`
	CapMicro int64  `json:"cap_micro_usd"`
	Settled  int64  `json:"settled_micro_usd"`
	Reserved int64  `json:"reserved_micro_usd" doc:"for calls under way and for questions that wait for a person"`
	Warned   int    `json:"warned_percent" doc:"the highest percentage of the cap that was warned of this month: 0, 50, 75 or 90"`
	Waiting  int    `json:"waiting_runs" doc:"runs that wait for a higher cap or the next month"`
	Notice   string `json:"notice,omitempty" doc:"set while a run waits for budget"`
}

// AuditView is a part of the transparency log.
type AuditView struct {
	Checkpoint string      `json:"checkpoint" doc:"signed note: origin, size, root hash"`
	Verifier   string      `json:"verifier" doc:"the public key of the notes"`
	Leaves     []AuditLeaf `json:"leaves"`
	// Journal holds, for each run that has a leaf in this part, the chain of its
	// records as they are stored now.
	Journal []JournalChain `json:"journal,omitempty"`
}

// AuditLeaf is one leaf; its hash is that of RFC 6962 over Body.
type AuditLeaf struct {
	Index int64  `json:"index"`
	Body  []byte `json:"body"`
}

// AuditProof shows that a leaf is in the log that the checkpoint signs, as RFC 6962
// (2.1.1) does. Nobody has to be believed for it but the holder of the signing key.
type AuditProof struct {
	Checkpoint string    `json:"checkpoint" doc:"signed note: origin, size, root hash"`
	Verifier   string    `json:"verifier" doc:"the public key of the notes; compare it with one from elsewhere"`
	Leaf       AuditLeaf `json:"leaf"`
	Inclusion  [][]byte  `json:"inclusion" doc:"the hashes beside the leaf's way up to the root"`
	Since      int64     `json:"since,omitempty" doc:"the size of an earlier log, as asked for"`
	Extends    [][]byte  `json:"extends,omitempty" doc:"the proof that the log began as that one (RFC 6962, 2.1.2)"`
}

// JournalChain is the recomputed head of a run's journal at one record.
type JournalChain struct {
	Run  host.RunID `json:"run"`
	Seq  int64      `json:"seq"`
	Head string     `json:"head" doc:"chained SHA-256 of headers and ciphertexts, hexadecimal"`
}

// KeysView tells of the workspace's keys.
type KeysView struct {
	Keys       int    `json:"keys" doc:"sealing keys of the set; the newest seals, all open"`
	KEK        string `json:"kek,omitempty" doc:"what seals the keyset's file; absent: nothing, it is in clear text"`
	Rewrapping bool   `json:"rewrapping" doc:"rows that an earlier key sealed are being sealed anew"`
	Stale      string `json:"stale,omitempty" doc:"why nothing new is done: the key service has not answered for too long"`
}

// EgressView is what left this host, as the kernel counted it, beside the calls that it
// left for.
type EgressView struct {
	Mode    string         `json:"mode" doc:"enforce: a connection without a lease is denied; audit: it is reported; off: the kernel is not asked"`
	Matched int64          `json:"matched" doc:"flows since the daemon's start that belong to a call, or to the store or key service that the operator named"`
	Daemon  EgressCounters `json:"daemon" doc:"connections of the daemon's control group"`
	Workers EgressCounters `json:"workers" doc:"attempts in the workers' control group, all of which are denied"`
	// Flows are the newest thousand, then those that are open.
	Flows      []EgressFlow      `json:"flows"`
	Violations []EgressViolation `json:"violations" doc:"attempts and flows that belong to no call; equal ones in one line"`
}

// EgressCounters are the kernel's.
type EgressCounters struct {
	Allowed uint64 `json:"allowed" doc:"connections with a lease"`
	Denied  uint64 `json:"denied" doc:"attempts without; in mode audit they passed"`
	Lost    uint64 `json:"lost" doc:"of these, reports that a flood overran"`
	Cut     uint64 `json:"cut" doc:"packets of connections that were cut"`
}

// EgressFlow is one connection.
type EgressFlow struct {
	host.Cause
	Purpose  string     `json:"purpose,omitempty" doc:"store or keys, where no call asked for it"`
	To       string     `json:"to" doc:"address and port"`
	Proto    string     `json:"proto" doc:"tcp or udp"`
	BytesOut int64      `json:"bytes_out" doc:"in packets, headers included; 0 while it is open"`
	BytesIn  int64      `json:"bytes_in"`
	Began    time.Time  `json:"began"`
	Ended    *time.Time `json:"ended,omitempty"`
}

// EgressViolation is what belongs to no call.
type EgressViolation struct {
	By     string    `json:"by" doc:"daemon or worker: the control group; doctor: an examination; resolver: a connect of a datagram socket to port 9, as name resolution does; neither of the last two is an alarm"`
	Hook   string    `json:"hook" doc:"where the kernel met it; flow: it passed without a lease of this daemon"`
	To     string    `json:"to,omitempty"`
	Proto  string    `json:"proto,omitempty"`
	Denied bool      `json:"denied"`
	PID    int       `json:"pid,omitempty" doc:"process of the last one"`
	Bytes  int64     `json:"bytes,omitempty"`
	Count  int64     `json:"count"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

// DoctorView is the state of the daemon and of the machine.
type DoctorView struct {
	Time time.Time `json:"time"`
	OK   bool      `json:"ok" doc:"no check failed; the walls of the operator's minimum stand"`
	Walls
	Checks []DoctorCheck `json:"checks"`
}

// Walls is what stands around guests, found by attempts that fail.
type Walls struct {
	Level    string   `json:"level" doc:"the layers that are enforced, such as L0+L1+L2"`
	Layers   []Wall   `json:"layers"`
	Parts    []Wall   `json:"parts" doc:"walls within a layer that others of that layer hide"`
	Full     Wall     `json:"full" doc:"every attempt against all layers together"`
	Findings []string `json:"findings" doc:"outcomes that differ from what is expected of a layer"`
	Host     Machine  `json:"host"`
}

// Wall is one layer of the confinement.
type Wall struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Enforced bool     `json:"enforced"`
	Attempts int      `json:"attempts"`
	Denied   int      `json:"denied"`
	Reported int      `json:"reported" doc:"of the denied attempts, those that the host was told of"`
	Open     []string `json:"open" doc:"attempts that this layer alone does not stop"`
	Why      string   `json:"why" doc:"what it consists of here, or why it does not stand"`
}

// Machine is what the walls are built on.
type Machine struct {
	Kernel       string   `json:"kernel"`
	Arch         string   `json:"arch"`
	UID          int      `json:"uid"`
	WorkerUID    int      `json:"worker_uid"`
	Spawner      string   `json:"spawner" doc:"who forks workers: direct is the daemon itself"`
	Capabilities string   `json:"capabilities" doc:"effective set of the daemon, hexadecimal"`
	Landlock     int      `json:"landlock" doc:"version of its interface, 0: none"`
	Namespaces   string   `json:"namespaces" doc:"yes, or why not"`
	Groups       []string `json:"groups" doc:"limits by control group"`
	GroupsWhy    []string `json:"groups_why,omitempty"`
	Store        string   `json:"store" doc:"where the state is kept, and how"`
	CommitUS     int64    `json:"commit_us" doc:"one durable commit, in microseconds"`
}

// DoctorCheck is one finding.
type DoctorCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Decision answers an approval.
type Decision struct {
	Decision Answer `json:"decision" enum:"approve,reject"`
	Digest   string `json:"digest" doc:"the digest that was shown; a decision about another one is refused"`
	// SeenBytes is needed for a yes to a preview that is raw.
	SeenBytes bool `json:"seen_bytes,omitempty" doc:"the person looked at bytes that no renderer could show"`
}

// EditInput changes what is asked for.
type EditInput struct {
	Digest string                     `json:"digest" doc:"the digest that was shown; an edit of another one is refused"`
	Fields map[string]json.RawMessage `json:"fields" doc:"arguments of the operation by name, such as subject or to; null takes one away"`
}

// Answer is a person's word.
type Answer string

const (
	Approve Answer = "approve"
	Reject  Answer = "reject"
)
