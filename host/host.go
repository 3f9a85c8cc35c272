// Package host holds the nouns that the rest of the daemon is written in:
// workspaces, principals, runs, approvals, receipts and their ids.
//
// It knows what these things are and which states they can be in. It must not
// know how they are stored, decided, shown or performed.
package host

import (
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/label"
)

// Workspace names a tenant: [a-z][a-z0-9-]{1,31}. One daemon serves exactly one.
type Workspace string

var workspaceForm = regexp.MustCompile(`^[a-z][a-z0-9-]{1,31}$`)

// Check says why w is not a name.
func (w Workspace) Check() error {
	if !workspaceForm.MatchString(string(w)) {
		return fmt.Errorf("workspace %q: a lower-case letter, then 1 to 31 letters, digits or -", string(w))
	}
	return nil
}

// Ids are "<kind>_<26 character lower-case ULID>" and never used twice.
type (
	RunID       string
	ApprovalID  string
	PrincipalID string
	TokenID     string
	GrantID     string
	ReceiptID   string // "rcpt_<leaf index>": the audit leaf it stands for
)

// NewID returns a fresh id of a kind: run, appr, prin, tok, grant. The time is the
// caller's, the rest is random.
func NewID(kind string, now time.Time) string {
	return kind + "_" + strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
}

// CheckID says why s is not an id of the kind.
func CheckID(kind, s string) error {
	rest, ok := strings.CutPrefix(s, kind+"_")
	if ok && rest == strings.ToLower(rest) {
		if _, err := ulid.ParseStrict(strings.ToUpper(rest)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%q is not an id of the form %s_<26 characters>", s, kind)
}

// Role is what a principal may do in the workspace.
type Role string

const (
	RoleOwner  Role = "owner"  // everything, also other admins
	RoleAdmin  Role = "admin"  // configuration, skills, approvals
	RoleMember Role = "member" // runs skills; what they do counts as the member's wish
	RoleViewer Role = "viewer" // looks; runs started by a viewer reach nothing
)

// Principal is a person or a service that acts.
type Principal struct {
	ID    PrincipalID `json:"id"`
	Name  string      `json:"name"`
	Email string      `json:"email,omitempty"`
	Role  Role        `json:"role"`
}

// Gate narrows what an operation's effect says. It can never widen it.
type Gate string

const (
	GateDefault Gate = ""     // as the effect says
	GateAsk     Gate = "ask"  // a person is asked, for reads too
	GateDeny    Gate = "deny" // never
)

// Ceiling is the most that the operator lets any workspace grant.
type Ceiling struct {
	Operation string      `yaml:"operation" json:"operation"`
	Resource  abi.Pattern `yaml:"resource" json:"resource"`
}

// TokenScope is one thing that a token may be used for.
type TokenScope string

const (
	ScopeRead    TokenScope = "read"
	ScopeRun     TokenScope = "run"
	ScopeApprove TokenScope = "approve"
	ScopeAdmin   TokenScope = "admin"
)

// Caller is who makes a request, as its token says.
type Caller struct {
	Principal
	Token  TokenID
	Scopes []TokenScope
}

// Has reports whether the token covers the scope.
func (c Caller) Has(s TokenScope) bool {
	for _, x := range c.Scopes {
		if x == s {
			return true
		}
	}
	return false
}

// RunState is where a run stands.
type RunState string

const (
	StateQueued    RunState = "queued"
	StateRunning   RunState = "running"
	StateWaiting   RunState = "waiting" // see WaitKind; holds no worker
	StateSucceeded RunState = "succeeded"
	StateFailed    RunState = "failed"
	StateCancelled RunState = "cancelled"
	StateDiverged  RunState = "diverged" // replay asked something else than was recorded
)

// Ended reports whether the state is final.
func (s RunState) Ended() bool {
	switch s {
	case StateSucceeded, StateFailed, StateCancelled, StateDiverged:
		return true
	case StateQueued, StateRunning, StateWaiting:
	}
	return false
}

// WaitKind is what a waiting run waits for.
type WaitKind string

const (
	WaitApproval WaitKind = "approval"
	WaitBudget   WaitKind = "budget"
	WaitTimer    WaitKind = "timer"
	WaitTurn     WaitKind = "turn" // to ask: its person has been asked often enough for now
	WaitUnknown  WaitKind = "outcome_unknown"
	// WaitConnector is for a server, a folder or a credential that the operator took away.
	WaitConnector WaitKind = "connector"
	WaitRestored  WaitKind = "restored" // for a person, since the database was put back from a backup
	WaitPinned    WaitKind = "pinned"   // for a host that can replay it: it began under another
	WaitSkill     WaitKind = "skill"    // for a run that it called (skill.call) to end
	WaitModel     WaitKind = "model"    // for a model that is slow: the daemon's call goes on, the worker is free
)

// WaitKinds lists every kind.
func WaitKinds() []WaitKind {
	return []WaitKind{WaitApproval, WaitBudget, WaitTimer, WaitTurn, WaitUnknown, WaitConnector, WaitPinned, WaitSkill, WaitModel, WaitRestored}
}

// Owner says whose turn it is while a run waits. Every kind has one; what is not known
// has none.
func (k WaitKind) Owner() string {
	switch k {
	case WaitApproval:
		return "whoever may approve it"
	case WaitBudget:
		return "an admin, who can raise the cap"
	case WaitTimer:
		return "the clock"
	case WaitTurn:
		return "its person, who has been asked often enough in this hour"
	case WaitUnknown:
		return "a person, who looks at the other side"
	case WaitConnector:
		return "the operator, who brings the connection back"
	case WaitPinned:
		return "the operator, who starts the binary that it began under"
	case WaitSkill:
		return "the run that it called"
	case WaitModel:
		return "the model's endpoint"
	case WaitRestored:
		return "a person, who lets it go on after the restore"
	}
	return ""
}

// WaitView is what a run waits for, for people.
type WaitView struct {
	Kind  WaitKind `json:"kind"`
	Owner string   `json:"owner"` // whose turn it is
	// Expires is when the wait ends whatever happens; Next is when it is looked at
	// again at the latest. Neither is set after a restore: only a person ends that wait.
	Expires time.Time `json:"expires_at,omitzero"`
	Next    time.Time `json:"next_look_at,omitzero"`
}

// RecordVersion is the form of journal records that this binary writes and reads.
const RecordVersion = 1

// Pins are what an unfinished run needs of a host to go on.
type Pins struct {
	Run    RunID    `json:"run"`
	Skill  string   `json:"skill"`
	State  RunState `json:"state"`
	Wait   WaitKind `json:"wait,omitempty"`
	Engine string   `json:"engine"`
	ABI    int      `json:"abi_version"`
	Record int      `json:"record_version"`
	Module string   `json:"module_sha256"`
}

// Unmet says what of the pins a host with this engine and the versions of this
// binary does not have; it is empty if the host can replay the run.
func (p Pins) Unmet(engine string, abiVersion int) string {
	switch {
	case p.Engine != engine:
		return fmt.Sprintf("the run is pinned to the engine %s, this binary has %s", p.Engine, engine)
	case p.ABI != abiVersion:
		return fmt.Sprintf("the run is pinned to version %d of the ABI, this binary has %d", p.ABI, abiVersion)
	case p.Record > RecordVersion:
		return fmt.Sprintf("the run's journal has records of version %d, this binary reads up to %d", p.Record, RecordVersion)
	}
	return ""
}

// Resolution is what became of an attempt whose outcome was unknown.
type Resolution string

const (
	Happened     Resolution = "happened"       // the guest is told so; nothing is sent again
	DidNotHappen Resolution = "did_not_happen" // it may be attempted again
	Abandoned    Resolution = "abandoned"      // nobody can tell: the guest is told that
)

// Run is one execution of a skill. Digests pin what runs, also after a restart.
type Run struct {
	ID         RunID        `json:"id"`
	Workspace  Workspace    `json:"workspace"`
	Skill      string       `json:"skill"`
	Root       RunID        `json:"root"`
	Parent     RunID        `json:"parent,omitempty"`
	OnBehalfOf Principal    `json:"on_behalf_of"`
	Attended   bool         `json:"attended"`
	Module     abi.Digest   `json:"-"`
	Image      abi.Digest   `json:"-"`
	State      RunState     `json:"state"`
	Wait       WaitKind     `json:"wait,omitempty"`
	WakeAt     time.Time    `json:"wake_at,omitzero"`
	Budget     abi.MicroUSD `json:"budget_micro_usd"` // ceiling of this run
	Estimate   Estimate     `json:"estimate"`
	Spent      abi.MicroUSD `json:"spent_micro_usd"`    // settled
	Reserved   abi.MicroUSD `json:"reserved_micro_usd"` // open reservations
	Calls      int          `json:"calls"`
	CreatedAt  time.Time    `json:"created_at"`
	StartedAt  time.Time    `json:"started_at,omitzero"`
	EndedAt    time.Time    `json:"ended_at,omitzero"`
	// ErasedAt is when the content was erased: since then there are headers and digests.
	ErasedAt time.Time `json:"erased_at,omitzero"`
	// Failure says why the run did not succeed, for a person.
	Failure string `json:"failure,omitempty"`
	// Receipt is the two-line receipt of an ended run.
	Receipt string `json:"receipt,omitempty"`
	// ReceiptID names the audit leaf of the run's end.
	ReceiptID ReceiptID `json:"receipt_id,omitempty"`

	Label label.Set `json:"-"` // initial label: that of the input
}

// Node is one run of a tree, for people.
type Node struct {
	ID     RunID        `json:"id"`
	Parent RunID        `json:"parent,omitempty"`
	Skill  string       `json:"skill"`
	State  RunState     `json:"state"`
	Wait   WaitKind     `json:"wait,omitempty"`
	WakeAt time.Time    `json:"wake_at,omitzero"`
	Calls  int          `json:"calls"`
	Budget abi.MicroUSD `json:"budget_micro_usd"`
	Spent  abi.MicroUSD `json:"spent_micro_usd"` // with what its children spent
}

// Estimate is what a run is expected to cost, shown and stored before it starts.
type Estimate struct {
	P50     abi.MicroUSD `json:"p50_micro_usd"`     // of earlier runs of the same module
	P95     abi.MicroUSD `json:"p95_micro_usd"`     // of earlier runs of the same module
	Runs    int          `json:"runs"`              // how many there were; 0 means that only the ceiling is known
	Ceiling abi.MicroUSD `json:"ceiling_micro_usd"` // cannot be exceeded
}

// ApprovalState is where an approval stands.
type ApprovalState string

const (
	ApprovalPending  ApprovalState = "pending"
	ApprovalApproved ApprovalState = "approved" // a person said yes; not used yet
	ApprovalRejected ApprovalState = "rejected"
	ApprovalUsed     ApprovalState = "used" // the one effect was attempted
	ApprovalExpired  ApprovalState = "expired"
	ApprovalVoid     ApprovalState = "void" // the run ended, or what it was bound to changed
	// ApprovalSuperseded: a person changed what is asked for; the new bytes ask anew.
	ApprovalSuperseded ApprovalState = "superseded"
)

// Approval is a question to a person about one frozen action.
type Approval struct {
	ID          ApprovalID    `json:"id"`
	Run         RunID         `json:"run"`
	Skill       string        `json:"skill"`
	Call        uint32        `json:"call"`
	Operation   string        `json:"operation"`
	Effect      abi.Effect    `json:"effect"`
	Destination string        `json:"destination"`
	State       ApprovalState `json:"state"`
	// Digest is the action digest; a decision must name it.
	Digest string `json:"digest"`
	// Why says which rule asks.
	Why       string       `json:"why"`
	Ceiling   abi.MicroUSD `json:"ceiling_micro_usd"`
	CreatedAt time.Time    `json:"created_at"`
	ExpiresAt time.Time    `json:"expires_at"`
	DecidedBy string       `json:"decided_by,omitempty"` // name of the principal
	DecidedAt time.Time    `json:"decided_at,omitzero"`
	Requester PrincipalID  `json:"requester"`
	// Chain says how the run came about: "digest, called by assistant, started by Ann".
	Chain string `json:"chain,omitempty"`
	// Groups are those of the workspace that an approver has to belong to, each.
	Groups []string `json:"groups,omitempty"`
}

// Preview is what the host shows of frozen bytes. Nothing of it comes from the
// guest unescaped, and nothing is left out.
type Preview struct {
	Title    string         `json:"title"`
	Fields   []PreviewField `json:"fields"`
	Body     string         `json:"body"`
	Bytes    int            `json:"bytes"`
	SHA256   string         `json:"sha256"` // of the message or body as it will be sent
	Warnings []string       `json:"warnings,omitempty"`
	Raw      bool           `json:"raw,omitempty"` // no renderer covers it: shown as it is
}

// PreviewField is one line of a preview.
type PreviewField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Skill is an uploaded module under its name.
type Skill struct {
	Name        string       `json:"name"`
	Version     string       `json:"version"`
	Description string       `json:"description"`
	Module      string       `json:"module_sha256"` // what was uploaded
	Image       string       `json:"image_sha256"`  // what runs
	Engine      string       `json:"engine"`
	Size        int64        `json:"size"`
	PushedBy    string       `json:"pushed_by"`
	PushedAt    time.Time    `json:"pushed_at"`
	Manifest    abi.Manifest `json:"manifest"`
	Granted     bool         `json:"granted"` // at least one grant names this very module
}

// CallView is one host call of a run, for people: no payloads.
type CallView struct {
	Call      uint32       `json:"call"`
	Time      time.Time    `json:"time"`
	Op        abi.Op       `json:"op"`
	Operation string       `json:"operation,omitempty"`
	Resource  string       `json:"resource,omitempty"`
	Effect    abi.Effect   `json:"effect"`
	Outcome   string       `json:"outcome"` // ok, waiting, outcome_unknown, NotCarriedOut, or the code of the refusal
	Reason    string       `json:"reason,omitempty"`
	Cost      abi.MicroUSD `json:"cost_micro_usd"`
	Receipt   ReceiptID    `json:"receipt,omitempty"`
}

// NotCarriedOut is the outcome of a call that still waited when its run ended: nothing of
// it has left.
const NotCarriedOut = "not_carried_out"

// Event is one thing that happened in a run, for people who watch it.
type Event struct {
	Seq  int64     `json:"seq"` // grows by one within a run
	Time time.Time `json:"time"`
	Kind EventKind `json:"kind"`
	// Text is for people. Guest is set when the guest wrote it: show it as such.
	Text  string `json:"text"`
	Guest bool   `json:"guest,omitempty"`
	// Percent is set with progress, 0 to 100.
	Percent int `json:"percent,omitempty"`
	// Approval is set with waiting for one.
	Approval ApprovalID `json:"approval,omitempty"`
	State    RunState   `json:"state,omitempty"`
}

// EventKind is a closed set.
type EventKind string

const (
	EventState    EventKind = "state"
	EventProgress EventKind = "progress"
	EventLog      EventKind = "log"
	EventCall     EventKind = "call"
	EventStream   EventKind = "stream" // words of a model as they arrive
	EventApproval EventKind = "approval"
	EventWarning  EventKind = "warning"
)

// The errors that other packages map to problems and exit codes. Each wraps more
// detail for the person who meets it.
var (
	ErrNotFound  = errors.New("not found")
	ErrInvalid   = errors.New("invalid")
	ErrForbidden = errors.New("forbidden")
	ErrConflict  = errors.New("conflict")
	ErrTooLarge  = errors.New("too large")
	ErrOverload  = errors.New("overloaded")
)

// Problem is an error with a code and a remedy that a client may see.
type Problem struct {
	Kind   error  // one of the errors above
	Code   string // closed, for programs: such as MODULE_COMPONENT, GRANT_SKILL_UNKNOWN
	Detail string // one sentence
	Remedy string // what to do next
}

// Error gives all three.
func (p *Problem) Error() string {
	s := p.Code + ": " + p.Detail
	if p.Remedy != "" {
		s += " (" + p.Remedy + ")"
	}
	return s
}

// Unwrap returns the kind.
func (p *Problem) Unwrap() error { return p.Kind }
