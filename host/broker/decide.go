package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// decide judges the call. A refusal is left in c.denial. For a call that may have
// an effect, everything that has to be true before the first byte leaves is written
// in one transaction: the call with its frozen bytes, the reservation, the use of
// the approval, the attempt, the audit leaf.
func (b *Broker) decide(ctx context.Context, s *Session, c *call, past *pastEntry) (grant.Permit, error) {
	if c.denial != nil {
		return grant.Permit{}, nil
	}
	rules := b.Rules()
	c.verdict = rules.Policy.Decide(s.Subject, c.action, c.held)
	if c.verdict.Outcome == grant.Deny {
		c.denial = c.verdict.Denial
		return grant.Permit{}, nil
	}
	if c.own.do != nil {
		return grant.Permit{}, b.decideOwn(ctx, s, c, past)
	}
	if breaks(s, c, rules.Identical); c.denial != nil {
		return grant.Permit{}, nil
	}
	if err := b.Keys.Stale(b.Now()); err != nil { // whoever took the key away wants this to stop
		return grant.Permit{}, b.waitForConnector(ctx, s, c, past, abi.Deny(abi.ConnectorRevoked, "the workspace's key service does not answer", ""))
	}
	if missing := b.World.Ready(ctx, c.plan); missing != nil {
		return grant.Permit{}, b.waitForConnector(ctx, s, c, past, missing)
	}
	if c.verdict.Outcome == grant.Allow && c.action.Effect == abi.EffectRead && c.plan.Ceiling == 0 && !c.recorded {
		permit, _ := c.verdict.Permit(nil, false)
		return permit, nil
	}
	d := decision{b: b, s: s, c: c, rules: rules, now: b.Now()}
	err := s.write(ctx, b.Store, d.commit)
	if errors.Is(err, errStale) {
		return b.decide(ctx, s, c, past)
	}
	if errors.Is(err, errShort) { // nothing of the transaction remains
		err = s.write(ctx, b.Store, d.waitForBudget)
	}
	if errors.Is(err, errOver) {
		c.denial = abi.Deny(abi.Budget, fmt.Sprintf("the call can cost %s, which is more than is left of this run's %s", c.plan.Ceiling, s.Run.Budget), "do less, or start the run again with a higher ceiling")
		if c.attempts > 0 { // what earlier attempts had reserved was not settled either
			c.settles(s, nil)
		}
		return grant.Permit{}, nil
	}
	if err == nil && d.warn > 0 {
		s.emit(host.Event{Kind: host.EventWarning, Text: d.warning()})
	}
	switch {
	case err != nil:
		return grant.Permit{}, err
	case d.wait != "":
		s.emit(host.Event{Kind: host.EventState, State: host.StateWaiting, Text: d.tell, Approval: d.asked.ID})
		return grant.Permit{}, ErrSuspended
	}
	return d.permit, nil
}

// breaks refuses the call of a run that goes in circles: the same request with an
// effect or a price, more often than the limit says.
func breaks(s *Session, c *call, limit int) {
	if limit == 0 {
		limit = DefaultIdentical
	}
	e := c.verdict.Effect
	if c.recorded || !e.Asks() && e != abi.EffectMetered && c.plan.Ceiling == 0 {
		return
	}
	before := s.Log.Same(c.fp)
	if before < limit {
		return
	}
	c.loop = before >= 2*limit
	c.denial = abi.Deny(abi.Rate, fmt.Sprintf("the run made this very call %d times; at most %d are allowed", before, limit), "do something else or end; a run that goes on with it is stopped")
}

// What undoes a decision that the rules changed under or that there is no money for,
// the use of its approval included.
var (
	errStale = errors.New("the rules changed while the call was decided")
	errShort = errors.New("the month's cap is reached")
	errOver  = errors.New("the run's own ceiling is reached")
)

// decision is one transaction in the making.
type decision struct {
	b     *Broker
	s     *Session
	c     *call
	rules Rules
	now   time.Time

	permit  grant.Permit
	consent approval.Consent
	asked   host.Approval
	wait    host.WaitKind
	tell    string
	warn    int
	held    abi.MicroUSD // by the question that is asked
}

// commit is the transaction. What can fail for want of consent or money comes
// first; only then is anything written down.
func (d *decision) commit(tx *store.Tx) error {
	c := d.c
	// The last look at the rules. They change inside a transaction of the same store,
	// so none can be withdrawn between here and the durable attempt.
	if d.b.Rules() != d.rules {
		return errStale
	}
	if err := d.cancelled(tx); err != nil {
		return err
	}
	if c.verdict.Outcome == grant.Ask {
		if err := d.seekConsent(tx); err != nil || c.denial != nil || d.wait != "" {
			return err
		}
	}
	if err := d.reserve(tx); err != nil {
		return err
	}
	permit, ok := c.verdict.Permit(d.consent, c.reserved >= c.plan.Ceiling)
	if !ok {
		c.denial = abi.Deny(abi.Denied, "the decision gave no leave to act", "")
		return nil
	}
	if err := d.record(); err != nil {
		return err
	}
	c.attempts++
	c.invoke.NotAfter, c.invoke.Repeated = d.now.Add(c.plan.TimeLimit()), c.lost
	err := d.s.Log.Add(journal.Attempt, c.n, d.now, journal.Body{
		Attempt: c.attempts, Key: c.invoke.Key, NotAfter: c.invoke.NotAfter.UnixNano(), Epoch: tx.Epoch(), Endpoint: c.plan.Frozen.Endpoint(),
	}, c.held)
	if err != nil {
		return err
	}
	d.permit, c.attempted = permit, true
	return d.leaf("allow")
}

// cancelled stops a run that is to end, or belongs to one that is: whoever cancelled it
// was told so, and nothing leaves after that.
func (d *decision) cancelled(tx *store.Tx) error {
	why, err := tx.CancelMark(d.s.Run.ID)
	for i := 0; err == nil && why == "" && i < len(d.s.Subject.Chain); i++ {
		why, err = tx.CancelMark(d.s.Subject.Chain[i].Run)
	}
	if err == nil && why != "" {
		return &CancelledError{why}
	}
	return err
}

// seekConsent uses the approval that a person gave, or asks for one.
func (d *decision) seekConsent(tx *store.Tx) error {
	c := d.c
	q := approval.Question{
		Run: d.s.Run, Call: c.n, Operation: c.op, Pinned: d.b.World.Pinned(c.op.Name), Plan: c.plan, Digest: c.action.Digest,
		Effect: c.verdict.Effect, Why: c.verdict.Why, Held: c.held, Key: c.invoke.Key,
		Policy: d.rules.Policy.Version, Above: d.s.above(), Groups: c.verdict.Approvers,
	}
	if c.edited != nil {
		q.Editor = c.edited.By
	}
	if c.approval == "" {
		return d.ask(tx, q)
	}
	consent, a, err := approval.Take(tx, d.b.Keys, c.approval, q, c.attempts > 0 && repeatable(c.op.Replay), d.b.Expiry())
	d.asked = a
	switch {
	case errors.Is(err, approval.ErrBroken):
		c.denial = abi.Deny(abi.Denied, "the approval does not fit this call: "+err.Error(), "ask for it again in a new call")
		return nil
	case err != nil:
		return err
	case consent != nil:
		d.consent = consent
		return nil
	}
	return d.unapproved(tx, a)
}

// unapproved answers a call whose approval is not there.
func (d *decision) unapproved(tx *store.Tx, a host.Approval) error {
	switch a.State {
	case host.ApprovalPending:
		d.wait, d.tell = host.WaitApproval, "waits for approval "+string(a.ID)
		return d.park(tx, a.ExpiresAt)
	case host.ApprovalRejected:
		d.c.denial = abi.Deny(abi.ApprovalRejected, fmt.Sprintf("%s said no to %s", a.DecidedBy, d.c.op.Name), "do not ask for the same again; do something else or end")
	case host.ApprovalExpired:
		d.c.denial = abi.Deny(abi.ApprovalExpired, fmt.Sprintf("nobody answered within %s", approval.Life), "ask again in a new call, if it is still wanted")
	case host.ApprovalVoid:
		d.c.denial = abi.Deny(abi.ApprovalExpired, fmt.Sprintf("the rules changed after the approval %s was asked for, so it is void", a.ID), "ask again in a new call, if it is still wanted")
	case host.ApprovalApproved, host.ApprovalUsed, host.ApprovalSuperseded:
		d.c.denial = abi.Deny(abi.ApprovalExpired, fmt.Sprintf("the approval %s is %s", a.ID, a.State), "ask again in a new call, if it is still wanted")
	}
	return nil
}

// ask opens a question to a person and parks the run.
func (d *decision) ask(tx *store.Tx, q approval.Question) error {
	c := d.c
	noes, err := approval.Rejections(tx, d.b.Keys, append([]string{d.s.Run.Skill}, d.s.above()...), c.op.Name, c.plan.Destination)
	if err != nil {
		return err
	}
	if noes >= approval.StickyRejections {
		c.denial = abi.Deny(abi.ApprovalRejected, fmt.Sprintf("people said no %d times to %s for this destination", noes, c.op.Name), "it is not asked again; a person of the workspace has to start it differently")
		return nil
	}
	if wake, err := d.turn(tx); err != nil || !wake.IsZero() {
		return errors.Join(err, d.waitForTurn(tx, wake))
	}
	if c.plan.Ceiling > 0 {
		short, warn, err := spend.Hold(tx, d.s.Run, c.n, c.plan.Ceiling, d.rules.Cap, d.now)
		if err := shortage(short, err); err != nil {
			return err
		}
		d.held = c.plan.Ceiling
		d.warned(warn)
	}
	q.Preview = d.b.World.Preview(c.op.Name, c.plan)
	if d.asked, err = approval.Ask(tx, d.b.Keys, q, d.b.Expiry()); err != nil {
		return err
	}
	if err := d.record(); err != nil {
		return err
	}
	c.approval = d.asked.ID
	if err := d.s.Log.Add(journal.Gate, c.n, d.now, journal.Body{Approval: d.asked.ID}, c.held); err != nil {
		return err
	}
	d.wait, d.tell = host.WaitApproval, fmt.Sprintf("%s to %s waits for approval %s", c.op.Name, c.plan.Destination, d.asked.ID)
	if err := d.park(tx, d.asked.ExpiresAt); err != nil {
		return err
	}
	return d.leaf("ask")
}

// turn says when the person may be asked again, if he has been asked enough. What he
// edited himself is not held back.
func (d *decision) turn(tx *store.Tx) (wake time.Time, err error) {
	limit := cmp.Or(d.rules.Questions, DefaultQuestions)
	if d.c.edited != nil {
		return wake, nil
	}
	now := d.b.Expiry() // questions are dated by it
	list, err := tx.Questions(d.s.Run.OnBehalfOf.ID, now.Add(-time.Hour), limit)
	if err != nil || len(list) < limit {
		return wake, err
	}
	// Where old questions are still open, only an answer makes room: look now and then.
	return d.now.Add(max(list[limit-1].Add(time.Hour).Sub(now), time.Minute)), nil
}

// waitForTurn parks the run with its frozen call until its person may be asked, and gives
// the call up when that has not come in the time that a run waits for money.
func (d *decision) waitForTurn(tx *store.Tx, wake time.Time) error {
	if wake.IsZero() {
		return nil
	}
	until := d.c.started.Add(d.b.BudgetLife)
	if !d.now.Before(until) {
		d.c.denial = abi.Deny(abi.ApprovalExpired, fmt.Sprintf("%s could not be asked within %s, as too many other questions were open", d.s.Run.OnBehalfOf.Name, d.b.BudgetLife), "ask again in a new call, if it is still wanted")
		return nil
	}
	if until.Before(wake) {
		wake = until
	}
	if err := d.record(); err != nil {
		return err
	}
	d.wait = host.WaitTurn
	d.tell = fmt.Sprintf("%s has been asked often enough for now; %s is asked for at %s", d.s.Run.OnBehalfOf.Name, d.c.op.Name, wake.UTC().Format(time.RFC3339))
	return d.park(tx, wake)
}

// repeatable reports whether an attempt whose result was lost may be made again. A
// class that is not known is blind.
func repeatable(r abi.ReplayClass) bool {
	switch r {
	case abi.ReplayPure, abi.ReplayKeyed, abi.ReplayProbe, abi.ReplayConditional:
		return true
	case abi.ReplayBlind:
	}
	return false
}

// reserve puts the ceiling aside.
func (d *decision) reserve(tx *store.Tx) error {
	c := d.c
	if c.attempts > 0 {
		lost, err := settleOpen(tx, d.s, c, nil)
		if err != nil {
			return err
		}
		if lost > 0 { // the outcome's leaf will speak of the coming attempt alone
			d.s.witness(audit.Leaf{TimeMS: d.now.UnixMilli(), Kind: audit.KindSpend, Run: d.s.Run.ID, Call: c.n, Verdict: "lost", Cost: lost, Period: c.period, Detail: "an attempt without an answer stays spent in full"})
		}
	}
	if c.plan.Ceiling == 0 {
		return nil
	}
	if c.approval != "" {
		if held, err := d.useHold(tx); held || err != nil {
			return err
		}
	}
	short, warn, err := spend.Reserve(tx, d.s.Run, c.n, c.attempts+1, c.plan.Ceiling, d.rules.Cap, d.now)
	if err := shortage(short, err); err != nil {
		return err
	}
	c.reserved, c.period = c.plan.Ceiling, spend.Period(d.now)
	d.warned(warn)
	return nil
}

// useHold takes what was reserved when a person was asked, in the month of that moment.
func (d *decision) useHold(tx *store.Tx) (held bool, err error) {
	amount, period, err := tx.UseHold(d.s.Run.ID, d.c.n, d.c.attempts+1)
	if errors.Is(err, host.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	month, err := tx.SpendTotal(store.PeriodScope(period))
	if err != nil {
		return false, err
	}
	if month.Settled+month.Reserved > d.rules.Cap { // it was lowered since: that stops what has not left
		return false, errShort
	}
	d.c.reserved, d.c.period = amount, period
	return true, nil
}

// warned witnesses a warning that this reservation crossed.
func (d *decision) warned(percent int) {
	if d.warn = percent; percent > 0 {
		d.s.witness(audit.Leaf{TimeMS: d.now.UnixMilli(), Kind: audit.KindSpend, Run: d.s.Run.ID, Call: d.c.n, Verdict: "warning", Period: spend.Period(d.now), Detail: d.warning()})
	}
}

func (d *decision) warning() string {
	return fmt.Sprintf("%d %% of this month's cap of %s is used or reserved", d.warn, d.rules.Cap)
}

// shortage turns a reservation that was not made into what undoes the transaction.
func shortage(short spend.Shortage, err error) error {
	switch {
	case err != nil:
		return err
	case short == spend.NoCap:
		return errShort
	case short == spend.NoBudget:
		return errOver
	}
	return nil
}

// waitForBudget parks the run until the cap is raised or the month is over, and ends it
// when that has not come in time.
func (d *decision) waitForBudget(tx *store.Tx) error {
	d.consent = nil // it was given back with the rest
	since := d.c.short
	if since.IsZero() {
		since = d.now
	}
	until := since.Add(d.b.BudgetLife)
	if !d.now.Before(until) {
		return ErrBroke
	}
	d.wait, d.tell = host.WaitBudget, spend.OutOfBudget
	d.s.witness(audit.Leaf{TimeMS: d.now.UnixMilli(), Kind: audit.KindSpend, Run: d.s.Run.ID, Call: d.c.n, Verdict: "paused", Period: spend.Period(d.now), Detail: spend.OutOfBudget})
	if err := d.record(); err != nil {
		return err
	}
	if d.c.short.IsZero() {
		if err := d.s.Log.Add(journal.Wait, d.c.n, d.now, journal.Body{Verdict: string(host.WaitBudget), Why: spend.OutOfBudget}, d.c.held); err != nil {
			return err
		}
	}
	wake := spend.NextPeriod(d.now)
	if until.Before(wake) {
		wake = until
	}
	return d.park(tx, wake)
}

// park moves the run to waiting, with everything that is written so far.
func (d *decision) park(tx *store.Tx, wake time.Time) error {
	return tx.SetState(d.s.Run.ID, host.StateWaiting, d.wait, wake, d.now, host.StateRunning)
}

// record writes the CALL record, once for each call.
func (d *decision) record() error {
	c := d.c
	if c.recorded {
		return nil
	}
	plan, err := json.Marshal(c.plan)
	if err != nil {
		return err
	}
	c.recorded = true
	return d.s.Log.Add(journal.Call, c.n, c.started, journal.Body{
		Op: c.req.Op, Fingerprint: c.fp, Operation: c.op.Name, Request: c.raw, Plan: plan, Key: c.invoke.Key,
		Effect: c.verdict.Effect, Rule: c.verdict.Rule, Replay: c.op.Replay, Resource: first(c.plan.Resources),
	}, c.held)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// leaf witnesses the decision.
func (d *decision) leaf(verdict string) error {
	l, err := d.b.describe(d.s, d.c, audit.KindDecision, d.now)
	if err != nil {
		return err
	}
	l.Verdict, l.Reserved = verdict, d.c.reserved+d.held
	if d.consent != nil || verdict == "ask" {
		l.Approval = d.asked.ID
	}
	d.s.witness(l)
	d.c.decided = d.c.decided || verdict == "allow"
	return nil
}

// describe fills what every leaf of a call has.
func (b *Broker) describe(s *Session, c *call, k audit.Kind, now time.Time) (audit.Leaf, error) {
	l := audit.Leaf{
		TimeMS: now.UnixMilli(), Kind: k, Run: s.Run.ID, Call: c.n, Who: s.Run.OnBehalfOf.ID, Skill: s.Run.Skill, Module: s.Run.Module.String(),
		Operation: c.op.Name, Effect: c.verdict.Effect, Rule: c.verdict.Rule, Policy: b.Rules().Policy.Version,
	}
	if c.req != nil {
		l.Op = c.req.Op
		if !known(c.req.Op) { // text of a guest never reaches the log
			l.Op = "unknown"
		}
	}
	var err error
	if l.Request, err = b.commitment(s, "request", c.fp); err == nil && c.action.Digest != (abi.Digest{}) {
		l.Action, err = b.commitment(s, "action", c.action.Digest)
	}
	return l, err
}

// commitment is a keyed digest: a bare one of a small payload could be guessed.
func (b *Broker) commitment(s *Session, what string, d abi.Digest) (string, error) {
	tag, err := b.Keys.MAC(what+"/"+string(s.Run.ID), d[:])
	return fmt.Sprintf("%x", tag), err
}
