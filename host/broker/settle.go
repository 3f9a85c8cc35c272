package broker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// perform sends the frozen bytes and takes in what came back.
// Only a batch, a called skill and a slow model can fail: when one of its parts stops
// the run, when what the skill left cannot be read, and when the wait is not recorded.
func (b *Broker) perform(ctx context.Context, s *Session, c *call, permit grant.Permit) error {
	if c.own.do != nil {
		return c.own.do(ctx, b, s, c)
	}
	var err error
	if c.out, err = b.carryOut(ctx, s, c, permit); err != nil {
		return err
	}
	c.denial, c.result = c.out.Denial, c.out.Result.Reply
	c.label = label.Join(c.held, provenance(c.out.Result.Provenance))
	if c.denial != nil { // words of the other side may be in the reason
		c.label = label.Join(c.held, label.Set{Integrity: label.External, Readers: c.held.Readers, Origins: c.plan.Resources})
	}
	return nil
}

// cause marks the context of what leaves for a call.
func (c *call) cause(ctx context.Context, s *Session) context.Context {
	return host.WithCause(ctx, host.Cause{Run: s.Run.ID, Call: c.n, Operation: c.op.Name})
}

// carryOut performs the call. A model that is slow frees the worker: the run waits, the
// call goes on here, and what is recorded of it is all that a crash would leave as well.
func (b *Broker) carryOut(ctx context.Context, s *Session, c *call, permit grant.Permit) (Outcome, error) {
	perform := func() Outcome {
		return b.World.Perform(c.cause(ctx, s), permit, c.invoke, c.plan, func(text string) {
			s.emit(host.Event{Kind: host.EventStream, Text: text, Guest: true})
		})
	}
	if c.action.Effect != abi.EffectMetered || s.Free == nil {
		return perform(), nil
	}
	done := make(chan Outcome, 1)
	go func() { done <- perform() }()
	slow := time.NewTimer(b.KeepWorker)
	defer slow.Stop()
	select {
	case o := <-done:
		return o, nil
	case <-slow.C:
	}
	// After the last moment of the attempt the sweep looks: nobody is at it any more then.
	until := c.invoke.NotAfter.Add(settleMargin)
	err := s.write(ctx, b.Store, func(tx *store.Tx) error {
		return tx.SetState(s.Run.ID, host.StateWaiting, host.WaitModel, until, b.Now(), host.StateRunning)
	})
	if err != nil {
		<-done // it has the session's events
		return Outcome{}, err
	}
	s.Free()
	c.freed = true
	return <-done, nil
}

func provenance(p connectors.Provenance) label.Set {
	l := label.Set{Readers: readers(p.Readers), Origins: p.Origins}
	if p.Internal {
		l.Integrity = label.Internal
	}
	return l
}

// settle records the answer with its cost and its audit leaf, and gives it to the
// guest. What had no effect waits in memory for the next transaction: if a crash
// loses it, nothing in the world has seen it.
func (b *Broker) settle(ctx context.Context, s *Session, c *call) (Reply, error) {
	now := b.Now()
	var reply []byte
	if c.edited != nil && c.denial == nil { // the guest is shown what a person typed
		c.label = label.Join(c.label, typed)
	}
	finish := func(tx *store.Tx) error {
		if err := b.book(tx, s, c); err != nil {
			return err
		}
		c.doubt()
		receipt := host.ReceiptID("")
		if tx != nil {
			n, err := s.nextLeaf(tx)
			if err != nil {
				return err
			}
			receipt = audit.Receipt(n)
		}
		reply = b.encode(c, receipt)
		if err := b.remember(s, c, reply, receipt, now); err != nil {
			return err
		}
		l, err := b.describe(s, c, outcomeKind(c), now)
		if err != nil {
			return err
		}
		l.Verdict, l.Cost, l.BytesOut, l.BytesIn = "ok", c.cost, c.out.BytesOut, c.out.BytesIn
		l.Period = c.period
		if c.attempted && c.cost > c.reserved {
			l.Detail = audit.OverReserved
		}
		if c.denial != nil {
			l.Verdict, l.Code = "refused", c.denial.Code
		}
		if c.next != nil && c.denial == nil {
			l.Detail = fmt.Sprintf("segment %d begins", c.next.Segment)
		}
		s.witness(l)
		return nil
	}
	var err error
	if c.value && c.denial == nil && s.room() {
		err = finish(nil)
	} else {
		err = s.write(ctx, b.Store, finish)
	}
	if err != nil {
		return Reply{}, err
	}
	s.Held = label.Join(s.Held, c.label)
	b.tell(s, c)
	return Reply{Bytes: reply, At: now}, nil
}

// typed is the label of words that a person of the workspace typed.
var typed = label.Set{Integrity: label.User, Readers: label.Only("workspace", "model")}

// book settles the money and writes what an own op changes.
func (b *Broker) book(tx *store.Tx, s *Session, c *call) error {
	if c.writes != nil && c.denial == nil {
		if err := c.writes(tx); err != nil {
			return err
		}
	}
	if c.closes != nil {
		return c.closes(tx)
	}
	if c.reserved == 0 {
		if c.approval != "" && !c.attempted { // refused: nobody has to answer, nothing is held any more
			return tx.VoidApproval(s.Run.ID, c.n)
		}
		return nil
	}
	cost := c.out.Result.Cost
	if c.denial != nil && c.denial.Effect == abi.OutcomeNone {
		cost = new(abi.MicroUSD) // provably not sent, so provably free
	}
	booked, err := spend.Settle(tx, s.Run, c.n, c.attempts, c.reserved, cost)
	c.cost = booked
	return err
}

// doubt corrects a refusal that speaks of this attempt alone: an earlier one, whose
// outcome a crash took, may have had its effect.
func (c *call) doubt() {
	if c.lost && c.denial != nil && c.denial.Effect == abi.OutcomeNone && c.op.Replay != abi.ReplayPure {
		d := *c.denial
		d.Effect = abi.OutcomeMay
		c.denial = &d
	}
}

// encode makes the bytes that the guest gets.
func (b *Broker) encode(c *call, receipt host.ReceiptID) []byte {
	if c.denial != nil {
		d := *c.denial
		d.Receipt = string(receipt)
		return abi.Refuse(&d).Encode()
	}
	r := abi.OK(c.result)
	if c.edited != nil {
		r.Edited = &abi.Edited{Fields: c.edited.Fields, Args: c.edited.Args}
	}
	reply := r.Encode()
	if len(reply) > abi.MaxReply {
		c.denial = abi.Deny(abi.TooLarge, fmt.Sprintf("the answer has %d bytes, at most %d are allowed", len(reply), abi.MaxReply), "ask for less at a time")
		if c.attempted && c.action.Effect.Asks() {
			c.denial.Effect = abi.OutcomeSent
		}
		if c.req != nil && c.req.Op == abi.OpBatch { // its parts have answers of their own in the journal
			c.denial.Effect = abi.OutcomeMay
		}
		return b.encode(c, receipt)
	}
	return reply
}

// remember writes the record that answers the call from now on.
func (b *Broker) remember(s *Session, c *call, reply []byte, receipt host.ReceiptID, now time.Time) error {
	body := journal.Body{Reply: reply, Cost: c.cost, Provider: c.out.Result.ProviderID, Receipt: receipt}
	if c.denial != nil {
		body.Code = c.denial.Code
	}
	kind := journal.Result
	if !c.recorded {
		kind = journal.Value
		body.Fingerprint, body.Request, body.Operation = c.fp, c.raw, c.op.Name
		body.Effect, body.Rule, body.Resource = c.verdict.Effect, c.verdict.Rule, first(c.plan.Resources)
		if c.req != nil {
			body.Op = c.req.Op
		}
	}
	if c.overgrown { // the refusal is recorded, what was asked is not
		body.Request = nil
	}
	if c.next != nil && c.denial == nil {
		kind = journal.Continue
		body.State, body.Seed, body.Segment = c.next.State, c.next.Seed, c.next.Segment
		body.Request, body.Reply = nil, nil // the state is in it
	}
	return s.Log.Add(kind, c.n, now, body, c.label)
}

func outcomeKind(c *call) audit.Kind {
	if c.decided {
		return audit.KindOutcome
	}
	return audit.KindCall
}

// tell shows the call to people who watch. Own ops speak for themselves.
func (b *Broker) tell(s *Session, c *call) {
	if c.own.do != nil && c.denial == nil {
		return
	}
	what := c.op.Name
	if what == "" && c.req != nil && known(c.req.Op) {
		what = string(c.req.Op)
	}
	text := fmt.Sprintf("%s %s", what, first(c.plan.Resources))
	if c.denial != nil {
		text += fmt.Sprintf(": %s, %s", c.denial.Code, c.denial.Reason)
	} else if c.cost > 0 {
		text += fmt.Sprintf(" (%s)", c.cost)
	}
	s.emit(host.Event{Kind: host.EventCall, Text: text})
}

func known(op abi.Op) bool { return slices.Contains(abi.Ops(), op) }

// Views lists a run's calls for people: no payloads. Once the run has ended, nothing
// waits any more.
func Views(entries []*journal.Entry, ended bool) []host.CallView {
	list := make([]host.CallView, 0, len(entries))
	for _, e := range entries {
		v := host.CallView{
			Call: journal.Guest(e.Call), Time: e.Started, Op: e.Op, Operation: e.Operation, Resource: e.Resource, Effect: e.Effect,
		}
		if a := e.Answer; a != nil {
			v.Outcome, v.Cost, v.Receipt = "ok", a.Cost, a.Receipt
			if a.Code != "" {
				v.Outcome = string(a.Code)
				if r, err := abi.DecodeReply(a.Reply); err == nil && r.Error != nil {
					v.Reason = r.Error.Reason
				}
			}
		} else {
			v.Outcome, v.Reason = unanswered(e, ended)
		}
		list = append(list, v)
	}
	return list
}

// unanswered is the outcome of a call that has no answer.
func unanswered(e *journal.Entry, ended bool) (outcome, reason string) {
	switch d := e.Unknown; {
	case d != nil && d.Resolution == "":
		return string(host.WaitUnknown), d.Why
	case !ended:
		return "waiting", ""
	case d != nil && d.Resolution == host.Happened:
		return "ok", "a person said that it happened"
	case d != nil && d.Resolution == host.Abandoned:
		return string(host.WaitUnknown), "nobody could tell what its attempt did"
	case d == nil && e.Attempts > 0:
		return string(host.WaitUnknown), "the run ended before the answer to its attempt came"
	}
	return host.NotCarriedOut, "the run ended before it"
}
