// Package broker is the door. Whatever a guest wants of the world, it wants it of
// Do, and there is no second way.
//
// Laws, each with a test:
//
//  1. Every call leaves a decision and an audit leaf before its answer is seen.
//  2. Nothing of the world is touched before the decision: planning is pure.
//  3. No effect without a durable attempt; no answer without a durable result.
//  4. A refusal is an answer, recorded like any other. An error stops the run.
//  5. Whatever is unclear denies: an unknown op, a policy error, a lost lease, a full
//     disk. A connector's panic is a refusal (host/egress), one within a transaction
//     undoes it (host/store).
//
// It knows the order of the stages. It must not know HTTP, Wasm, SQL or any
// concrete connector.
package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// World plans and performs the operations of connectors (host/egress).
type World interface {
	// Operations are the pinned descriptors.
	Operations() []connectors.Operation
	// Pinned is the digest of an operation's descriptor.
	Pinned(operation string) abi.Digest
	// Plan freezes what would leave. It touches nothing.
	Plan(context.Context, connectors.Call) (connectors.Plan, *abi.Denial)
	// Perform sends exactly the frozen bytes that the permit covers.
	Perform(context.Context, grant.Permit, connectors.Call, connectors.Plan, func(text string)) Outcome
	// PlanProbe freezes the look for what a plan's attempt may have left behind. A
	// denial says that it cannot be looked for.
	PlanProbe(connectors.Call, connectors.Plan) (connectors.Plan, *abi.Denial)
	// Probe looks. A denial says that nobody can tell.
	Probe(ctx context.Context, p grant.Permit, c connectors.Call, plan, probe connectors.Plan) Outcome
	// Ready reports what a plan needs and the operator does not have any more.
	Ready(context.Context, connectors.Plan) *abi.Denial
	// Preview shows frozen bytes to a person.
	Preview(operation string, p connectors.Plan) host.Preview
}

// Outcome is what an attempt came to.
type Outcome struct {
	Result            connectors.Result
	Denial            *abi.Denial
	BytesOut, BytesIn int64
	// Found says that a probe found the effect; Result is that of the call then.
	Found bool
}

// Scanner labels bytes that leave or enter. A nil Scanner finds nothing.
type Scanner interface {
	// Out looks at frozen bytes. A denial holds them back.
	Out(context.Context, connectors.Plan) (label.Set, *abi.Denial)
	// In looks at a reply before the guest sees it.
	In(ctx context.Context, reply []byte) label.Set
}

// Rules are the workspace's rules at one moment. A snapshot is immutable.
type Rules struct {
	Policy *grant.Policy
	Cap    abi.MicroUSD // monthly
	Owner  string       // the owner's address
	// Identical is how many calls with an effect or a price a run may make with the
	// same request; 0 means DefaultIdentical. After twice as many the run is stopped.
	Identical int
	// Questions is how many questions of one person's runs are asked within an hour or
	// are open; 0 means DefaultQuestions. What is beyond waits its turn.
	Questions int
}

// DefaultQuestions is Rules.Questions where nobody says otherwise.
const DefaultQuestions = 20

// DefaultIdentical is Rules.Identical where nobody says otherwise.
const DefaultIdentical = 10

// Config wires a Broker. All fields but Scanner and Kin are needed.
type Config struct {
	Store   *store.Store
	Keys    *vault.Keyset
	World   World
	Scanner Scanner
	Rules   func() Rules
	Now     func() time.Time
	// DoubtLife is how long a person is asked what became of an attempt whose outcome
	// is unknown; 0 means DefaultDoubtLife. Then the guest is told that it is unknown.
	DoubtLife time.Duration
	// KeepWorker is the longest sleep, the longest wait for a run that was called and the
	// longest call of a model for which the guest keeps its worker; what is longer frees it.
	KeepWorker time.Duration
	// BudgetLife is how long a run waits for a higher cap or the next month; 0 means
	// DefaultBudgetLife. Then it is ended.
	BudgetLife time.Duration
	// Expiry is the clock that approvals expire by; nil means Now.
	Expiry func() time.Time
	// Kin starts the runs that skill.call asks for; nil refuses them.
	Kin Kin
}

// Broker is the door of one workspace. It is safe for concurrent use by many
// sessions.
type Broker struct {
	Config
	ops map[string]connectors.Operation
}

// New returns a door.
func New(c Config) *Broker {
	b := &Broker{Config: c, ops: map[string]connectors.Operation{}}
	if b.Expiry == nil {
		b.Expiry = b.Now
	}
	if b.DoubtLife <= 0 {
		b.DoubtLife = DefaultDoubtLife
	}
	if b.BudgetLife <= 0 {
		b.BudgetLife = DefaultBudgetLife
	}
	for _, op := range c.World.Operations() {
		b.ops[op.Name] = op
	}
	return b
}

// ErrSuspended says that the run waits. Nothing is lost: the same call, asked again
// later, goes on where it stopped.
var ErrSuspended = errors.New("the run waits")

// CancelledError says that somebody cancelled the run, or one that it belongs to.
type CancelledError struct{ Why string }

func (e *CancelledError) Error() string { return e.Why }

// DefaultBudgetLife is Config.BudgetLife where nobody says otherwise: the next month is
// always tried.
const DefaultBudgetLife = 35 * 24 * time.Hour

// ErrBroke says that nobody raised the cap while the run waited for it.
var ErrBroke = errors.New("the month's cap was reached and not raised in time")

// ErrFreed says that the call was answered after it had freed the run's worker: the
// run goes on by replay.
var ErrFreed = errors.New("the worker was freed while the call went on")

// ErrLoop says that the run asks the same again and again and has to be stopped.
var ErrLoop = errors.New("the run makes the same call again and again")

// ErrContinued says that the run goes on in a new segment, with a new instance.
var ErrContinued = errors.New("the run continues in a new segment")

// ErrOvergrown says that the run did not heed the refusals of a full journal and has
// to be stopped.
var ErrOvergrown = errors.New("the run goes on although its journal is full; run.continue would have begun a new segment")

// Reply is what the guest gets, and when.
type Reply struct {
	Bytes []byte
	At    time.Time
}

// Do answers one host call. n counts the run's calls from 1; raw is the guest's
// request, already copied. A refusal is a reply; an error stops the run, and
// ErrSuspended parks it.
func (b *Broker) Do(ctx context.Context, s *Session, n uint32, raw []byte) (Reply, error) {
	// 1. What was answered once is answered again; today's rules do not apply to it.
	fp, req, denial := abi.ReadRequest(raw)
	past, err := s.Log.RecallAsked(n, fp, func() journal.Ask { return b.asked(req) })
	if err != nil {
		return Reply{}, err
	}
	if past != nil && past.Answer != nil {
		return s.restore(past.Answer), nil
	}
	// 2. Freeze the bytes that would leave. Frozen bytes are never rebuilt.
	c := &call{n: n, started: b.Now(), fp: fp, raw: raw, req: req, denial: denial, held: s.Held, label: s.Held, lost: past != nil && past.Attempts > 0}
	if past == nil {
		if err := s.full(c); err != nil {
			return Reply{}, err
		}
	}
	b.plan(ctx, s, c, past)
	// An attempt without an answer comes first: what became of it is asked before
	// anything is decided anew.
	if err := b.settleDoubt(ctx, s, c, past, ""); err != nil {
		return Reply{}, err
	}
	if c.answered {
		b.scanIn(ctx, c)
		return b.settle(ctx, s, c)
	}
	if c.denial == nil {
		c.denial = c.gone
	}
	// 3. Scan them, if they leave the workspace.
	b.scanOut(ctx, s, c)
	// 4. and 5. Decide, reserve, take the approval, write the attempt: one
	// transaction. No record, no effect.
	permit, err := b.decide(ctx, s, c, past)
	if err != nil {
		return Reply{}, err
	}
	// 6. Perform. A permit covers the frozen bytes and nothing else; the zero permit
	// covers nothing.
	if c.denial == nil {
		if err := b.perform(ctx, s, c, permit); err != nil {
			return Reply{}, err
		}
	}
	if c.inDoubt() {
		why := c.denial.Reason
		c.denial = nil
		attempted, err := s.Log.Recall(n, fp)
		if err == nil {
			err = b.settleDoubt(ctx, s, c, attempted, why)
		}
		if err != nil {
			return Reply{}, err
		}
		if !c.answered { // it may be attempted again at once
			return b.Do(ctx, s, n, raw)
		}
	}
	// 7. Label what came back.
	b.scanIn(ctx, c)
	// 8. Settle: reply, cost and audit leaf in one transaction. Only then may the
	// guest see it.
	reply, err := b.settle(ctx, s, c)
	switch {
	case err != nil:
		return Reply{}, err
	case c.loop:
		return Reply{}, ErrLoop
	case c.next != nil && c.denial == nil:
		return Reply{}, ErrContinued
	}
	if err == nil && c.freed {
		return Reply{}, ErrFreed
	}
	return reply, nil
}

// call is one host call on its way through the stages.
type call struct {
	n       uint32
	started time.Time
	fp      abi.Digest
	raw     []byte
	req     *abi.Request

	own       ownOp                // set for what the host does itself
	op        connectors.Operation // set for an operation of a connector
	invoke    connectors.Call
	plan      connectors.Plan
	action    grant.Action
	recorded  bool // the CALL record exists
	attempts  int
	approval  host.ApprovalID
	held      label.Set // what the run held when it asked
	verdict   grant.Verdict
	reserved  abi.MicroUSD
	period    string // the month that reserved belongs to
	decided   bool   // a decision leaf exists
	attempted bool
	overgrown bool        // the journal is full
	loop      bool        // the run did not heed a refusal as too many of the same
	lost      bool        // an earlier attempt's outcome was lost in a crash
	answered  bool        // what became of an earlier attempt is the answer
	gone      *abi.Denial // the operation is not there any more, though it was attempted

	denial *abi.Denial // the answer so far, when it is a refusal
	result any
	label  label.Set // of the reply
	out    Outcome
	cost   abi.MicroUSD
	writes func(*store.Tx) error // of an own op, in the settling transaction
	closes func(*store.Tx) error // books earlier attempts, in the settling transaction
	value  bool                  // no effect: the record may wait for the next commit
	child  *store.Run            // the run that was called, when it has ended
	edited *journal.Edited       // what a person made of it
	short  time.Time             // since when it waits for budget
	freed  bool                  // it has freed the run's worker
	next   *journal.Body         // the segment that begins after it
}

// plan freezes what the request would do, or leaves a denial.
func (b *Broker) plan(ctx context.Context, s *Session, c *call, past *pastEntry) {
	if c.denial != nil {
		return
	}
	if c.req.V != 1 {
		c.denial = abi.Deny(abi.Unsupported, fmt.Sprintf("version %d of %s is not known to this host", c.req.V, c.req.Op), "use version 1; host.describe lists what is there")
		return
	}
	if o, ok := own(c.req.Op); ok {
		b.planOwn(c, o, past)
		return
	}
	operation, args, denial := b.operation(c.req)
	c.op = b.ops[operation]
	if denial != nil {
		if past == nil || past.Attempts == 0 {
			c.denial = denial
			return
		}
		c.gone, operation = denial, past.Operation
		c.op = connectors.Operation{Name: operation, Effect: past.Effect, Replay: abi.ReplayBlind}
	}
	c.invoke = connectors.Call{Operation: operation, Args: args, Now: c.started}
	if past != nil && past.Edited != nil {
		c.edited, c.invoke.Args = past.Edited, past.Edited.Args
	}
	if past != nil && past.Planned {
		b.replan(c, past)
		return
	}
	key, err := b.Keys.IdempotencyKey(s.Run.ID, c.n, operation)
	if err != nil {
		c.denial = abi.Deny(abi.Internal, "the host could not derive an idempotency key", "")
		return
	}
	c.invoke.Key = key
	if c.plan, c.denial = b.World.Plan(ctx, c.invoke); c.denial != nil {
		c.action = grant.Action{Op: c.req.Op, Operation: operation, Effect: c.op.Effect}
		return
	}
	b.act(c)
}

// asked says what a request asks for, in words of the host: what a guest made up is not
// among them.
func (b *Broker) asked(req *abi.Request) (a journal.Ask) {
	if req == nil {
		return a
	}
	a.Op = req.Op
	if _, ok := own(req.Op); ok {
		return a
	}
	if name, _, denial := b.operation(req); denial == nil {
		a.Operation = name
	}
	return a
}

// replan takes the frozen plan of a call that stopped before its answer.
func (b *Broker) replan(c *call, past *pastEntry) {
	c.recorded = true
	c.started, c.invoke.Now, c.invoke.Key = past.Started, past.Started, past.Key
	c.plan, c.held, c.attempts = past.Plan, *past.Label, past.Attempts
	c.approval, c.short = past.Approval, past.Short
	b.act(c)
}

// act derives the action that is decided from the plan.
func (b *Broker) act(c *call) {
	digest, err := c.plan.Digest()
	if err != nil {
		c.denial = abi.Deny(abi.Internal, "the plan could not be frozen: "+err.Error(), "")
		return
	}
	c.action = grant.Action{
		Op: c.req.Op, Operation: c.op.Name, Effect: c.op.Effect, Resources: c.plan.Resources, Destination: c.plan.Destination,
		Account: c.plan.Account, Audience: readers(c.plan.Audience), Digest: digest, Ceiling: c.plan.Ceiling,
	}
}

func readers(names []string) label.Readers {
	for _, n := range names {
		if n == connectors.Everyone {
			return label.Everyone()
		}
	}
	return label.Only(names...)
}

// operation finds which operation a request reaches, and by which op it may be
// reached: a read by tool.call, an effect by send, and some by an op of their own.
func (b *Broker) operation(r *abi.Request) (name string, args []byte, d *abi.Denial) {
	for _, op := range b.ops {
		if op.Op == r.Op {
			return op.Name, r.Args, nil
		}
	}
	if r.Op != abi.OpToolCall && r.Op != abi.OpSend {
		return "", nil, abi.Deny(abi.Unsupported, fmt.Sprintf("this host does not offer %s", r.Op), "host.describe lists the ops that it offers")
	}
	var a abi.CallArgs
	if d := abi.DecodeArgs(r.Args, &a); d != nil {
		return "", nil, d
	}
	op, ok := b.ops[a.Operation]
	if !ok {
		return "", nil, abi.Deny(abi.NotFound, fmt.Sprintf("there is no operation %q", clip(a.Operation)), "tool.list lists the operations that are granted")
	}
	want := abi.OpSend
	if op.Effect == abi.EffectRead {
		want = abi.OpToolCall
	}
	if op.Op != "" {
		want = op.Op
	}
	if r.Op != want {
		return "", nil, abi.Deny(abi.Invalid, fmt.Sprintf("%s has the effect %s and is reached by %s, not %s", op.Name, op.Effect, want, r.Op), fmt.Sprintf("use the op %s", want))
	}
	if len(a.Args) == 0 {
		a.Args = []byte("{}")
	}
	return op.Name, a.Args, nil
}

// clip bounds text of a guest that is repeated to it.
func clip(s string) string {
	if len(s) > abi.MaxName {
		return s[:abi.MaxName] + "…"
	}
	return s
}

func (b *Broker) scanOut(ctx context.Context, s *Session, c *call) {
	if b.Scanner == nil || c.denial != nil || c.own.do != nil {
		return
	}
	found, denial := b.Scanner.Out(ctx, c.plan)
	c.held = label.Join(c.held, found)
	c.denial = denial
}

func (b *Broker) scanIn(ctx context.Context, c *call) {
	if b.Scanner == nil || c.denial != nil || c.own.do != nil {
		return
	}
	c.label = label.Join(c.label, b.Scanner.In(ctx, abi.OK(c.result).Encode()))
}
