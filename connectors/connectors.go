// Package connectors is the contract between the door and the outside systems.
//
// A connector never touches the world. It declares operations, plans a call into
// frozen bytes, and reads the answer that came back for exactly those bytes:
//
//	Resolve  optional: what must be looked up first, by nested reads through the door
//	Plan     pure: no dialer, no resolver, no clock; yields the frozen bytes
//	         (the host decides, records, and performs the frozen bytes itself)
//	Parse    reads the answer
//
// Between Plan and Parse stands host/egress, which owns the one dialer. So a
// vendor's SDK can be used freely: it is run once against a capturing transport
// and once against the stored answer (package capture).
//
// It knows operations, effects, resources, frozen bytes and answers. It must not
// know credentials, grants, labels' consequences, or other connectors. A new
// connector is one folder beside this file and one line in cmd/monroed.
package connectors

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/getmonroe/monroe/abi"
)

// Connector is one outside system. Its methods are called concurrently.
type Connector interface {
	// Operations are the descriptors, fixed for the life of the process. The
	// operator pins them by digest.
	Operations() []Operation
	// Plan turns a call into the exact bytes that would leave. It is pure: equal
	// arguments give equal plans, and nothing outside is touched.
	Plan(Call) (Plan, *abi.Denial)
	// Parse reads the answer to a plan. It may be run again over the same stored
	// bytes after a crash.
	Parse(context.Context, Call, Plan, *Answer) (Result, *abi.Denial)
}

// Resolver is a connector whose Plan depends on something that only the other
// system knows (a parent folder, a revision).
type Resolver interface {
	// Resolve looks up what Plan will need and returns it. Every look-up is a read
	// through the door, so it is decided and recorded like any other call.
	Resolve(context.Context, Call, Lookup) (json.RawMessage, *abi.Denial)
}

// Prober is a connector that can look for the effect of an attempt whose answer was
// lost. Its operations of the class probe need it.
type Prober interface {
	// Probe plans the look-up for what the plan would have left behind. It is pure,
	// and what it plans is a read.
	Probe(Call, Plan) (Plan, *abi.Denial)
	// Found reads the answer to the look-up: the result that the call would have had,
	// or nil if its effect is not there. A denial means that nobody can tell.
	Found(ctx context.Context, c Call, p, probe Plan, a *Answer) (*Result, *abi.Denial)
}

// Lookup performs one nested read.
type Lookup func(ctx context.Context, operation string, args any) abi.Reply

// Operation is a pinned descriptor: what a call of it may do, never taken from a
// guest, a plugin or the other side.
type Operation struct {
	Name    string          `json:"name"` // connector.verb, such as files.read
	Version int             `json:"version"`
	Effect  abi.Effect      `json:"effect"`
	Replay  abi.ReplayClass `json:"replay"`
	// Summary is one sentence for people and models.
	Summary string `json:"summary"`
	// Args is the JSON Schema of the arguments, which a model is offered as it is.
	Args json.RawMessage `json:"args"`
	// Window is how long the other side is sure to know an idempotency key again,
	// counted from the first attempt. Keyed operations have one, others none.
	Window time.Duration `json:"window_ns,omitempty"`
	// Renderer shows the frozen bytes to the person who approves.
	Renderer Renderer `json:"renderer"`
	// Allow lists the only HTTP requests that the operation may make.
	Allow []Request `json:"allow,omitempty"`
	// Op is the ABI op that reaches the operation when it is not tool.call or send.
	Op abi.Op `json:"op,omitempty"`
	// Price is what one call costs at most, where that is the same for each. A metered
	// operation may have a price for each call instead.
	Price abi.MicroUSD `json:"price_micro_usd,omitempty"`
}

// Request is a pattern of one HTTP request: the method, and a scope pattern of
// the URL without its query.
type Request struct {
	Method string      `json:"method"`
	URL    abi.Pattern `json:"url"`
}

// Renderer is one of the host's fixed renderers. What none covers is shown raw
// and flagged.
type Renderer string

const (
	RenderRaw  Renderer = "raw"
	RenderHTTP Renderer = "http"
	RenderMail Renderer = "mail"
	RenderFile Renderer = "file"
)

// Call is one invocation. Args is canonical JSON, checked by nobody yet.
type Call struct {
	Operation string
	Args      json.RawMessage
	// Key is the idempotency key: equal for every attempt of this call, different
	// for every other call. 32 hexadecimal digits.
	Key string
	// Now is when the guest asked; a plan has no other clock.
	Now time.Time
	// Resolved is what Resolve returned.
	Resolved json.RawMessage
	// NotAfter is the moment after which nothing of this attempt may leave any more;
	// zero means that only the plan's timeout bounds it. A plan does not see it.
	NotAfter time.Time
	// Repeated says that the answer to an earlier attempt of this call was lost. Only
	// Parse sees it.
	Repeated bool
}

// Plan is what a call would do.
type Plan struct {
	// Resources are what it acts on, normalised (abi.CheckResource). A grant must
	// cover every one of them. It may not be empty.
	Resources []string
	// Destination is where the bytes go, for people, with immutable ids.
	Destination string
	// Account is the id of the connection whose credential is used, or empty.
	Account string
	// Audience are the readers of the request's bytes, such as "host:example.com",
	// "mail:ann@example.com", "model" or "workspace" (only the workspace itself sees
	// them). It may not be empty.
	Audience []string
	// Frozen is what leaves, exactly.
	Frozen Frozen
	// Ceiling is the most that the call can cost.
	Ceiling abi.MicroUSD
	// Timeout bounds the attempt, 0 means DefaultTimeout.
	Timeout time.Duration
	// MaxAnswer bounds the answer's body in bytes, 0 means DefaultAnswer.
	MaxAnswer int64
}

// TimeLimit is how long the attempt may take.
func (p Plan) TimeLimit() time.Duration {
	if p.Timeout == 0 {
		return DefaultTimeout
	}
	return p.Timeout
}

const (
	DefaultTimeout = 30 * time.Second
	DefaultAnswer  = 4 << 20
)

// Answer is what came back for the frozen bytes.
type Answer struct {
	// Status and Header are those of an HTTP answer. Credentials are scrubbed.
	Status int
	Header map[string][]string
	// Body is read once. It ends with an error if the answer was cut off or is
	// larger than the plan allows (ErrAnswerTooLarge).
	Body io.Reader
	// Files describe what a file_read (exactly one) or a file_list answered with,
	// sorted by path. They are empty for every other kind.
	Files []FileEntry
	// Truncated says that a file_list held more than the plan allows.
	Truncated bool
	// Emit shows people what has arrived so far, such as streamed words. Never nil.
	Emit func(text string)
}

// FileEntry is one regular file.
type FileEntry struct {
	Path     string    `json:"path"` // relative to the folder, clean, with slashes
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// Result is what the guest will see and what the host has to know about it.
type Result struct {
	// Reply is encoded as JSON and given to the guest.
	Reply any
	// Provenance labels it.
	Provenance Provenance
	// Cost is what it really cost; nil means unknown, and then the whole ceiling
	// stays spent.
	Cost *abi.MicroUSD
	// ProviderID is the other side's id of what happened, for the receipt.
	ProviderID string
}

// Provenance is where a reply came from. The zero value is the strictest: outside
// words that nobody may read on.
type Provenance struct {
	// Internal says that a member of the workspace wrote it. Without it, it counts
	// as written by anybody outside.
	Internal bool
	// Readers may see it; "everyone" for public things.
	Readers []string
	// Origins are the resources that it came from.
	Origins []string
}

// Everyone as a reader makes something public.
const Everyone = "everyone"
