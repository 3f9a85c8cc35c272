package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// Bounds of a tree of runs. A run waits for each that it calls, so of a tree one run
// is at work at a time; what has to be bounded is how many there are in all.
const (
	MaxDepth    = 4   // runs from the root to the lowest, both included
	MaxChildren = 32  // that one run calls
	MaxTree     = 128 // runs of a root, itself included
	// SkillLife is how long a run waits for one that it called, which is ended then.
	SkillLife = 30 * 24 * time.Hour
)

// Birth is what a run that is called begins with.
type Birth struct {
	Skill  string
	Input  []byte    // canonical JSON
	Label  label.Set // of all that its caller held
	Budget abi.MicroUSD
	Tree   uint32 // host calls that the whole tree may make
}

// Kin makes and watches the runs that skill.call asks for (host/workspace).
type Kin interface {
	// Bear makes the row of a run that parent calls, and stores nothing. A skill that
	// is not there is host.ErrNotFound.
	Bear(tx *store.Tx, parent host.Run, b Birth) (store.Run, error)
	// Start lets a stored run begin. If a crash comes before it, the sweep does.
	Start(child host.RunID)
	// Await waits until a run ends or waits itself, at most for d, and not at all while
	// the caller's worker is in the way of the callee's.
	Await(ctx context.Context, child host.RunID, d time.Duration)
	// Result opens what an ended run left, with the label of all that it held.
	Result(child *store.Run) ([]byte, label.Set, error)
	// Cancel ends a run and all that it called.
	Cancel(child host.RunID) error
}

// callSkill starts the run that the call asks for, once, and waits for its end. The
// call and the run are written in one transaction: after a crash there are both or
// neither.
func (b *Broker) callSkill(ctx context.Context, s *Session, c *call, past *pastEntry) error {
	c.value = false
	if b.Kin == nil {
		c.denial = abi.Deny(abi.Unsupported, "this host does not offer skill.call", "do without")
		return nil
	}
	var child host.RunID
	if past != nil {
		child = past.Child
	} else {
		var err error
		if child, err = b.bear(ctx, s, c); err != nil || c.denial != nil {
			return err
		}
		b.Kin.Start(child)
	}
	b.Kin.Await(ctx, child, b.KeepWorker)
	return b.callee(ctx, s, c, child)
}

// bear stores the callee with what is carved out for it.
func (b *Broker) bear(ctx context.Context, s *Session, c *call) (child host.RunID, err error) {
	var a abi.SkillArgs
	if !args(c, &a) {
		return "", nil
	}
	if a.Budget != nil && *a.Budget < 0 {
		invalid(c, "budget_micro_usd is negative")
		return "", nil
	}
	if len(a.Input) == 0 {
		a.Input = json.RawMessage("null")
	}
	var row store.Run
	err = s.write(ctx, b.Store, func(tx *store.Tx) error {
		var err error
		if c.denial, err = tooMany(tx, s); err != nil || c.denial != nil {
			return err
		}
		own, err := tx.SpendTotal(store.RunScope(s.Run.ID))
		if err != nil {
			return err
		}
		want := s.Run.Budget - own.Settled - own.Reserved
		if a.Budget != nil {
			want = *a.Budget
		}
		row, err = b.Kin.Bear(tx, s.Run, Birth{Skill: a.Skill, Input: a.Input, Label: c.held, Budget: max(want, 0), Tree: s.Tree})
		if errors.Is(err, host.ErrNotFound) {
			c.denial = abi.Deny(abi.NotFound, fmt.Sprintf("there is no skill %q", clip(a.Skill)), "a person of the workspace can upload it")
			return nil
		}
		if err != nil {
			return err
		}
		short, err := spend.Carve(tx, s.Run, row.ID, row.Budget)
		if short != spend.Enough && err == nil {
			c.denial = abi.Deny(abi.Budget, fmt.Sprintf("%s were asked for %s, which is more than is left of this run's %s", row.Budget, row.Skill, s.Run.Budget), "give it less")
			return nil
		}
		if err := errors.Join(err, tx.InsertRun(row)); err != nil {
			return err
		}
		if _, err := audit.Append(tx, audit.Leaf{
			TimeMS: c.started.UnixMilli(), Kind: audit.KindStart, Run: row.ID, Who: row.OnBehalfOf.ID, Skill: row.Skill, Module: row.Module.String(),
			Reserved: row.Budget, Chain: row.Chain.String(), Detail: "called by " + string(s.Run.ID),
		}); err != nil {
			return err
		}
		c.recorded = true
		return s.Log.Add(journal.Call, c.n, c.started, journal.Body{
			Op: c.req.Op, Fingerprint: c.fp, Request: c.raw, Effect: abi.EffectNone, Rule: c.verdict.Rule, Resource: "skill:" + row.Skill, Child: row.ID,
		}, c.held)
	})
	if err == nil && c.denial == nil {
		s.emit(host.Event{Kind: host.EventCall, Text: fmt.Sprintf("%s is called: %s, budget %s", row.Skill, row.ID, row.Budget)})
	}
	return row.ID, err
}

// tooMany refuses what would let a tree grow without end.
func tooMany(tx *store.Tx, s *Session) (*abi.Denial, error) {
	k, err := tx.Kin(s.Run.Root, s.Run.ID)
	if err != nil {
		return nil, err
	}
	deny := func(format string, a ...any) (*abi.Denial, error) {
		return abi.Deny(abi.Rate, fmt.Sprintf(format, a...), "do the rest without skill.call"), nil
	}
	switch {
	case len(s.Subject.Chain)+2 > MaxDepth:
		return deny("the run is the %dth of a chain of calls already; at most %d are allowed", len(s.Subject.Chain)+1, MaxDepth)
	case k.Children >= MaxChildren:
		return deny("the run has called %d others; at most %d are allowed", k.Children, MaxChildren)
	case k.Runs >= MaxTree:
		return deny("the run that this one belongs to has become %d; at most %d are allowed", k.Runs, MaxTree)
	}
	return nil, nil
}

// callee takes the end of the run that was called, or parks the caller.
func (b *Broker) callee(ctx context.Context, s *Session, c *call, child host.RunID) error {
	until := c.started.Add(SkillLife)
	var row store.Run
	look := func(tx *store.Tx) (err error) { row, err = tx.Run(child); return err }
	if err := b.Store.Read(ctx, look); err != nil {
		return err
	}
	if !row.State.Ended() && !b.Now().Before(until) {
		c.denial = &abi.Denial{
			Code: abi.Timeout, Effect: abi.OutcomeMay, Reason: fmt.Sprintf("%s did not end within %v", row.Skill, SkillLife), Remedy: "it is ended now; look at what it did before you call it again",
		}
		return b.Kin.Cancel(child)
	}
	if !row.State.Ended() {
		err := s.write(ctx, b.Store, func(tx *store.Tx) error {
			if err := look(tx); err != nil || row.State.Ended() {
				return err
			}
			return tx.SetState(s.Run.ID, host.StateWaiting, host.WaitSkill, until, b.Now(), host.StateRunning)
		})
		if err != nil {
			return err
		}
	}
	if !row.State.Ended() {
		s.emit(host.Event{Kind: host.EventState, State: host.StateWaiting, Text: fmt.Sprintf("waits for %s, %s", row.Skill, row.ID)})
		return ErrSuspended
	}
	c.child = &row
	return s.Count(ctx, b.Store)
}

// Count learns how many host calls the rest of the run's tree has made.
func (s *Session) Count(ctx context.Context, st *store.Store) error {
	return st.Read(ctx, func(tx *store.Tx) error {
		k, err := tx.Kin(s.Run.Root, s.Run.ID)
		if err != nil {
			return err
		}
		own, err := tx.Run(s.Run.ID)
		s.Others = Others(k, &own)
		return err
	})
}

// Others is how many host calls the runs that are called in a tree have made, a run's
// own left out. The root's are not counted here: it may go on in many segments, each
// of which is bounded by itself.
func Others(k store.Kin, own *store.Run) uint32 {
	if own.Parent == "" {
		return uint32(k.Calls)
	}
	return uint32(max(k.Calls-own.Calls, 0))
}

// doSkill answers with what the callee left. Its failure is a refusal in words of the
// host; what the callee wrote about it stays with it.
func doSkill(ctx context.Context, b *Broker, _ *Session, c *call) error {
	row := c.child
	result, lab, err := b.Kin.Result(row)
	if err != nil {
		return err
	}
	c.label = label.Join(c.label, lab)
	if row.State != host.StateSucceeded {
		c.denial, err = b.failed(ctx, row, result)
		return err
	}
	if canon, err := abi.Canonical(result); err == nil {
		result = canon
	} else if result, err = json.Marshal(strings.ToValidUTF8(string(result), "�")); err != nil {
		return err
	}
	c.result = abi.SkillResult{Result: result}
	return nil
}

// failed says what became of a callee that did not succeed.
func (b *Broker) failed(ctx context.Context, row *store.Run, result []byte) (*abi.Denial, error) {
	d := &abi.Denial{Code: abi.Upstream, Effect: abi.OutcomeNone, Reason: fmt.Sprintf("%s (%s) %s: %s", row.Skill, row.ID, row.State, row.Failure)}
	if row.State == host.StateCancelled {
		d.Code, d.Remedy = abi.Denied, "a person ended it; do not call it again unasked"
	} else if code := saidCode(row.Failure, result); code != "" {
		d.Code = code
	}
	acted := false
	err := b.Store.Read(ctx, func(tx *store.Tx) (err error) { acted, err = tx.Acted(row.ID); return err })
	if acted {
		d.Effect, d.Remedy = abi.OutcomeMay, "it had done some of its work; look at what before you call it again"
	}
	return d, err
}

// saidCode is the code of the denial that a run failed by, if it names one: in the
// host's words, or in its own result (SPEC 2.3).
func saidCode(failure string, result []byte) abi.Code {
	if head, _, ok := strings.Cut(failure, ": "); ok && abi.Code(head) != abi.Internal && slices.Contains(abi.Codes(), abi.Code(head)) {
		return abi.Code(head)
	}
	var said struct {
		Error struct {
			Code abi.Code `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(result, &said) == nil && said.Error.Code != abi.Internal && slices.Contains(abi.Codes(), said.Error.Code) {
		return said.Error.Code
	}
	return ""
}
