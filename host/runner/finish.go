package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// finish ends a run, once: result, receipt, audit leaf, what it had reserved and
// asked for, and the runs that it had called, in one transaction. session is nil when
// the run has no worker.
func (r *Runner) finish(id host.RunID, session *broker.Session, e ending) error {
	ctx := context.WithoutCancel(r.ctx) // an end is recorded also while the daemon stops
	if session != nil {
		if err := session.Flush(ctx, r.Store); err != nil {
			return err
		}
	}
	var ended []store.Run
	err := r.Store.Write(ctx, func(tx *store.Tx) (err error) {
		ended, err = r.close(tx, id, e)
		return err
	})
	if errors.Is(err, host.ErrConflict) {
		return nil // it has ended already
	}
	if err != nil {
		return err
	}
	for _, run := range ended {
		if run.ID != id {
			r.interrupt(run.ID, ErrCancelled)
		}
		text := string(run.State)
		if run.Failure != "" {
			text += ": " + run.Failure
		}
		r.feed(run.ID).add(host.Event{Kind: host.EventState, State: run.State, Text: text})
	}
	if up := ended[len(ended)-1].Parent; up != "" { // it may wait for this; a crash here leaves it to the sweep
		r.Wake(up)
	}
	return nil
}

// close writes the end of a run, after those of the runs that it had called. They are
// returned in that order.
func (r *Runner) close(tx *store.Tx, id host.RunID, e ending) (ended []store.Run, err error) {
	run, err := tx.Run(id)
	if err != nil {
		return nil, err
	}
	if run.State.Ended() {
		return nil, host.ErrConflict
	}
	open, err := tx.Open(id)
	if err != nil {
		return nil, err
	}
	for _, child := range open {
		list, err := r.close(tx, child, ending{state: host.StateCancelled, failure: "the run that called it ended"})
		if err != nil {
			return nil, err
		}
		ended = append(ended, list...)
	}
	calls, held, err := r.calls(tx, &run)
	if err != nil { // a journal that does not verify does not keep the run open
		r.Log.Error("receipt without calls", slog.String("run", string(id)), slog.String("error", err.Error()))
		held = label.Set{} // and what it held counts as the strictest
	}
	if err := errors.Join(witnessLost(tx, &run, r.Now()), tx.VoidApprovals(id), tx.SettleRun(id)); err != nil {
		return nil, err
	}
	if run.Parent != "" {
		if _, err := spend.GiveBack(tx, id); err != nil { // not an end that came before
			return nil, fmt.Errorf("the budget of %s was not given back: %v", id, err) //nolint:errorlint // see above
		}
	}
	if run, err = tx.Run(id); err != nil { // with what it kept spent
		return nil, err
	}
	end := store.End{State: e.state, Failure: e.failure, At: r.Now()}
	if e.result == nil { // that it ended so tells something of all that it held
		e.label = held
	}
	if end.Result, end.ResultLabel, err = r.sealResult(&run, e); err != nil {
		return nil, err
	}
	leaf := audit.Leaf{
		TimeMS: end.At.UnixMilli(), Kind: audit.KindEnd, Run: id, Who: run.OnBehalfOf.ID, Skill: run.Skill, Module: run.Module.String(),
		Verdict: string(e.state), Cost: run.Spent, Seq: run.NextSeq - 1, Chain: run.Chain.String(),
	}
	if e.state == host.StateDiverged {
		leaf.Detail = e.failure // names and digests, no payload
	}
	if end.Leaf, err = audit.Append(tx, leaf); err != nil {
		return nil, err
	}
	end.Receipt = receiptText(&run, e, calls, audit.Receipt(end.Leaf))
	run.State, run.Failure = e.state, e.failure
	return append(ended, run), tx.EndRun(id, end)
}

// witnessLost writes down what the run's end books of attempts that have no outcome.
func witnessLost(tx *store.Tx, run *store.Run, now time.Time) error {
	open, err := tx.OpenAttempts(run.ID)
	if err != nil {
		return err
	}
	for _, o := range open {
		_, err := audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindSpend, Run: run.ID, Call: o.Call, Verdict: "lost", Cost: o.Amount, Period: o.Period,
			Detail: "an attempt without an answer stays spent in full",
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) sealResult(run *store.Run, e ending) (result, lab []byte, err error) {
	key, err := r.Keys.OpenRunKey(run.ID, run.Key)
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(e.label)
	if err != nil {
		return nil, nil, err
	}
	lab, e1 := key.Seal(ResultLabelSlot(run.ID), text)
	if e.result == nil {
		return nil, lab, e1
	}
	result, e2 := key.Seal(ResultSlot(run.ID), e.result)
	return result, lab, errors.Join(e1, e2)
}

// counts is what a receipt says of a run's calls.
type counts struct {
	done                           map[string]int
	calls, refused, asked, segment int
	doubt                          int // attempts of which nobody knows what they did
	undone                         int // calls that still waited
}

func (c *counts) add(calls []host.CallView) {
	c.segment++
	c.calls += len(calls)
	for _, v := range calls {
		switch {
		case v.Outcome == string(host.WaitUnknown), v.Outcome == string(abi.OutcomeUnknown):
			c.doubt++
		case v.Outcome == host.NotCarriedOut:
			c.undone++
		case v.Outcome != "ok":
			c.refused++
		case v.Operation != "":
			c.done[v.Operation]++
			if v.Effect.Asks() {
				c.asked++
			}
		}
	}
}

// calls counts a run's calls, one segment after the other, so that no more than one is
// in memory, and joins the labels of its input and of every answer.
func (r *Runner) calls(tx *store.Tx, run *store.Run) (counts, label.Set, error) {
	c := counts{done: map[string]int{}}
	key, err := r.Keys.OpenRunKey(run.ID, run.Key)
	if err != nil {
		return c, label.Set{}, err
	}
	p := prepared{row: *run}
	if err := r.unseal(&p, key); err != nil {
		return c, label.Set{}, err
	}
	held := p.row.Label
	err = journal.Segments(tx, run, key, func(log *journal.Log) {
		c.add(broker.Views(log.Entries(), true))
		for _, e := range log.Entries() {
			if held = label.Join(held, *e.Label); e.Answer != nil {
				held = label.Join(held, *e.Answer.Label)
			}
		}
	})
	return c, held, err
}

// receiptText is the two lines that a run leaves: what it did and touched, and what
// it cost. Nothing in it was chosen by a guest.
func receiptText(run *store.Run, e ending, c counts, id host.ReceiptID) string {
	var parts []string
	for op, n := range c.done {
		parts = append(parts, fmt.Sprintf("%s ×%d", op, n))
	}
	slices.Sort(parts)
	if c.doubt > 0 {
		parts = append(parts, fmt.Sprintf("%d in doubt", c.doubt))
	}
	if len(parts) == 0 {
		parts = []string{"nothing outside the run"}
	}
	first := fmt.Sprintf("%s for %s %s: %s", run.Skill, run.OnBehalfOf.Name, e.state, strings.Join(parts, ", "))
	if c.refused > 0 {
		first += fmt.Sprintf("; %d refused", c.refused)
	}
	if c.undone > 0 {
		first += fmt.Sprintf("; %d not carried out", c.undone)
	}
	second := fmt.Sprintf("cost %s of %s, %d calls, %d approved", run.Spent, abi.MicroUSD(run.Budget), c.calls, c.asked)
	if c.segment > 1 {
		second += fmt.Sprintf(", %d segments", c.segment)
	}
	return fmt.Sprintf("%s\n%s, receipt %s", first, second, id)
}
