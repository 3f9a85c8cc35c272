package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// What bounds the making good of attempts whose answer was lost.
const (
	// settleMargin is waited after an attempt's last moment before the other side is
	// looked at or asked again: bytes may be under way still.
	settleMargin = 2 * time.Second
	// maxAttempts of one call; then a person is asked.
	maxAttempts = 5
	// DefaultDoubtLife is how long a person is asked what became of an attempt.
	DefaultDoubtLife = 7 * 24 * time.Hour
)

// settleDoubt sees to an attempt that has no answer, by the class that its operation
// declared. Afterwards the call is answered, or it may be attempted again, or the
// error says that the run waits. why is set if this host saw the attempt fail.
func (b *Broker) settleDoubt(ctx context.Context, s *Session, c *call, past *pastEntry, why string) error {
	if past == nil || past.Attempts == 0 || c.own.do != nil {
		return nil
	}
	c.verdict.Effect, c.verdict.Rule = past.Effect, past.Rule // what decided the attempt
	crashed := why == ""
	if crashed {
		why = "the host stopped after this was attempted and before the answer came"
	}
	if d := past.Unknown; d != nil {
		return b.byWord(ctx, s, c, d)
	}
	class := past.Replay
	if class != c.op.Replay { // declared otherwise since: trust neither
		class = abi.ReplayBlind
	}
	if class == abi.ReplayPure {
		return nil
	}
	now := b.Now()
	// A host that was only paused may still hold the last attempt's connection, and so
	// nobody can say yet that it did not happen. What this host saw fail is over.
	if ready := past.NotAfter.Add(settleMargin); now.Before(ready) && (crashed || repeatable(class)) {
		return b.waitUntil(ctx, s, ready, "an attempt was cut off; it is looked into at ")
	}
	if !repeatable(class) {
		return b.askWhatHappened(ctx, s, c, why)
	}
	if past.Attempts >= maxAttempts {
		return b.askWhatHappened(ctx, s, c, fmt.Sprintf("%d attempts were made and none was answered", past.Attempts))
	}
	switch class {
	case abi.ReplayKeyed:
		if !now.Before(past.First.Add(c.op.Window)) {
			return b.askWhatHappened(ctx, s, c, why+", and the other side may have forgotten its key by now")
		}
	case abi.ReplayProbe:
		return b.probe(ctx, s, c, why)
	case abi.ReplayPure, abi.ReplayConditional, abi.ReplayBlind:
	}
	return nil
}

// byWord does what a person said of an unknown outcome, or waits for it.
func (b *Broker) byWord(ctx context.Context, s *Session, c *call, d *journal.Doubt) error {
	said := d.Resolution
	if until := d.Since.Add(b.DoubtLife); said == "" {
		now := b.Now()
		if now.Before(until) {
			return b.park(ctx, s, host.WaitUnknown, until, b.remedy(s, c, d.Why))
		}
		said = host.Abandoned
		if err := s.Log.Add(journal.Resolved, c.n, now, journal.Body{Verdict: string(said), Why: "nobody answered in time"}, c.held); err != nil {
			return err
		}
		l, err := b.describe(s, c, audit.KindResolved, now)
		if err != nil {
			return err
		}
		l.Verdict, l.Detail = string(said), "nobody answered in time"
		s.witness(l)
	}
	switch said {
	case host.DidNotHappen:
		c.lost = false
		if !repeatable(c.op.Replay) && !d.Asked {
			c.approval = "" // an approval never covers a second send of a blind effect
		}
		return s.write(ctx, b.Store, func(tx *store.Tx) error {
			_, err := settleOpen(tx, s, c, new(abi.MicroUSD))
			return err
		})
	case host.Happened:
		c.result, c.label = abi.ResolvedResult{Resolved: string(said)}, c.held
		c.settles(s, nil)
		return nil
	case host.Abandoned:
	}
	c.denial = &abi.Denial{
		Code: abi.OutcomeUnknown, Effect: abi.OutcomeMay, Reason: d.Why + "; it may have happened",
		Remedy: "look at the other side before you try again; a second attempt is a new call and asks again",
	}
	c.settles(s, nil)
	return nil
}

// settles makes the coming record close what the call's attempts had reserved.
func (c *call) settles(s *Session, cost *abi.MicroUSD) {
	c.answered, c.decided = true, true
	c.closes = func(tx *store.Tx) (err error) {
		c.cost, err = settleOpen(tx, s, c, cost)
		return err
	}
}

// settleOpen books what the call's attempts had reserved: in full where the cost is
// not known, as it may have been used.
func settleOpen(tx *store.Tx, s *Session, c *call, cost *abi.MicroUSD) (sum abi.MicroUSD, err error) {
	open, err := tx.OpenReservations(s.Run.ID, c.n)
	for _, o := range open {
		booked, e := spend.Settle(tx, s.Run, c.n, o.Attempt, c.plan.Ceiling, cost)
		sum, err = sum+booked, errors.Join(err, e)
		c.period = o.Period
	}
	return sum, err
}

// remedy tells a person what to do about an unknown outcome.
func (b *Broker) remedy(s *Session, c *call, why string) string {
	return fmt.Sprintf("%s to %s may have happened: %s. Look there, then: monroe runs resolve %s --happened | --did-not-happen | --abandon", c.op.Name, c.plan.Destination, why, s.Run.ID)
}

// askWhatHappened parks the run until a person has looked. What was reserved stays
// reserved.
func (b *Broker) askWhatHappened(ctx context.Context, s *Session, c *call, why string) error {
	now := b.Now()
	if err := s.Log.Add(journal.Unknown, c.n, now, journal.Body{Why: why, Attempt: c.attempts}, c.held); err != nil {
		return err
	}
	l, err := b.describe(s, c, audit.KindUnknown, now)
	if err != nil {
		return err
	}
	l.Verdict, l.Detail = "ask", why
	s.witness(l)
	return b.park(ctx, s, host.WaitUnknown, now.Add(b.DoubtLife), b.remedy(s, c, why))
}

// waitUntil parks the run for a time that the host chose.
func (b *Broker) waitUntil(ctx context.Context, s *Session, wake time.Time, tell string) error {
	return b.park(ctx, s, host.WaitTimer, wake, tell+wake.UTC().Format(time.RFC3339))
}

// park frees the worker until the run is woken. It always returns an error:
// ErrSuspended if the run waits.
func (b *Broker) park(ctx context.Context, s *Session, kind host.WaitKind, wake time.Time, tell string) error {
	now := b.Now()
	err := s.write(ctx, b.Store, func(tx *store.Tx) error {
		return tx.SetState(s.Run.ID, host.StateWaiting, kind, wake, now, host.StateRunning)
	})
	if err != nil {
		return err
	}
	s.emit(host.Event{Kind: host.EventState, State: host.StateWaiting, Text: tell})
	return ErrSuspended
}

// looking is the consent to a look for what an approved attempt left behind: the
// person who approved the effect is not asked for the look as well.
type looking abi.Digest

// Approves implements grant.Consent.
func (l looking) Approves(d abi.Digest) bool { return abi.Digest(l) == d }

// probe looks for the attempt's effect. It is a read through the door: planned,
// decided by the rules of today, performed under a permit, recorded and witnessed.
func (b *Broker) probe(ctx context.Context, s *Session, c *call, why string) error {
	plan, denial := b.World.PlanProbe(c.invoke, c.plan)
	if denial != nil {
		return b.askWhatHappened(ctx, s, c, why+", and it cannot be looked for")
	}
	digest, err := plan.Digest()
	if err != nil {
		return b.askWhatHappened(ctx, s, c, why+", and it cannot be looked for")
	}
	a := grant.Action{
		Op: c.req.Op, Operation: c.op.Name, Effect: c.op.Effect, Resources: plan.Resources, Destination: plan.Destination,
		Account: plan.Account, Audience: readers(plan.Audience), Digest: digest,
	}
	permit, ok := b.Rules().Policy.Decide(s.Subject, a, c.held).Permit(looking(digest), true)
	if !ok {
		return b.askWhatHappened(ctx, s, c, why+", and the rules no longer let the host look for it")
	}
	o := b.World.Probe(c.cause(ctx, s), permit, c.invoke, c.plan, plan)
	verdict := "absent"
	switch {
	case o.Denial != nil:
		verdict = "failed"
	case o.Found:
		verdict = "found"
	}
	if err := s.Log.Add(journal.Probe, c.n, b.Now(), journal.Body{Verdict: verdict, Attempt: c.attempts}, c.held); err != nil {
		return err
	}
	l, err := b.describe(s, c, audit.KindProbe, b.Now())
	if err != nil {
		return err
	}
	l.Verdict, l.BytesOut, l.BytesIn = verdict, o.BytesOut, o.BytesIn
	s.witness(l)
	switch verdict {
	case "failed":
		return b.askWhatHappened(ctx, s, c, why+", and looking for it failed")
	case "found":
		c.out, c.result = o, o.Result.Reply
		c.label = label.Join(c.held, provenance(o.Result.Provenance))
		c.settles(s, o.Result.Cost)
	}
	return nil
}

// inDoubt reports whether the attempt that was just made may have had an effect that
// somebody has to look after. A model call whose answer was lost is none: it costs
// what was reserved, changes nothing outside, and its guest may simply ask again.
func (c *call) inDoubt() bool {
	return c.attempted && c.denial != nil && c.denial.Effect == abi.OutcomeMay && c.op.Effect.Asks()
}
