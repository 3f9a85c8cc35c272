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
	"github.com/getmonroe/monroe/host/store"
)

// finish ends a run, once: result, receipt, audit leaf, what it had reserved and
// asked for, in one transaction. session is nil when the run has no worker.
func (r *Runner) finish(id host.RunID, session *broker.Session, e ending) error {
	ctx := context.WithoutCancel(r.ctx) // an end is recorded also while the daemon stops
	if session != nil {
		if err := session.Flush(ctx, r.Store); err != nil {
			return err
		}
	}
	err := r.Store.Write(ctx, func(tx *store.Tx) error {
		run, err := tx.Run(id)
		if err != nil {
			return err
		}
		if run.State.Ended() {
			return host.ErrConflict
		}
		calls, err := r.calls(tx, &run)
		if err != nil { // a journal that does not verify does not keep the run open
			r.Log.Error("receipt without calls", slog.String("run", string(id)), slog.String("error", err.Error()))
		}
		end := store.End{State: e.state, Failure: e.failure, At: r.Now()}
		if err := witnessLost(tx, &run, end.At); err != nil {
			return err
		}
		if err := errors.Join(tx.VoidApprovals(id), tx.SettleRun(id)); err != nil {
			return err
		}
		if run, err = tx.Run(id); err != nil { // with what it kept spent
			return err
		}
		if e.result != nil {
			if end.Result, end.ResultLabel, err = r.sealResult(&run, e); err != nil {
				return err
			}
		}
		leaf := audit.Leaf{
			TimeMS: end.At.UnixMilli(), Kind: audit.KindEnd, Run: id, Who: run.OnBehalfOf.ID, Skill: run.Skill, Module: run.Module.String(),
			Verdict: string(e.state), Cost: run.Spent, Seq: run.NextSeq - 1, Chain: run.Chain.String(),
		}
		if e.state == host.StateDiverged {
			leaf.Detail = e.failure // names and digests, no payload
		}
		if end.Leaf, err = audit.Append(tx, leaf); err != nil {
			return err
		}
		end.Receipt = receiptText(&run, e, calls, audit.Receipt(end.Leaf))
		return tx.EndRun(id, end)
	})
	if errors.Is(err, host.ErrConflict) {
		return nil // it has ended already
	}
	if err != nil {
		return err
	}
	text := string(e.state)
	if e.failure != "" {
		text += ": " + e.failure
	}
	r.feed(id).add(host.Event{Kind: host.EventState, State: e.state, Text: text})
	return nil
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
	result, e1 := key.Seal(ResultSlot(run.ID), e.result)
	lab, e2 := key.Seal(ResultLabelSlot(run.ID), text)
	return result, lab, errors.Join(e1, e2)
}

// counts is what a receipt says of a run's calls.
type counts struct {
	done                           map[string]int
	calls, refused, asked, segment int
}

func (c *counts) add(calls []host.CallView) {
	c.segment++
	c.calls += len(calls)
	for _, v := range calls {
		switch {
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
// in memory.
func (r *Runner) calls(tx *store.Tx, run *store.Run) (counts, error) {
	c := counts{done: map[string]int{}}
	key, err := r.Keys.OpenRunKey(run.ID, run.Key)
	if err != nil {
		return c, err
	}
	err = journal.Segments(tx, run, key, func(log *journal.Log) { c.add(broker.Views(log.Entries())) })
	return c, err
}

// receiptText is the two lines that a run leaves: what it did and touched, and what
// it cost. Nothing in it was chosen by a guest.
func receiptText(run *store.Run, e ending, c counts, id host.ReceiptID) string {
	var parts []string
	for op, n := range c.done {
		parts = append(parts, fmt.Sprintf("%s ×%d", op, n))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		parts = []string{"nothing outside the run"}
	}
	first := fmt.Sprintf("%s for %s %s: %s", run.Skill, run.OnBehalfOf.Name, e.state, strings.Join(parts, ", "))
	if c.refused > 0 {
		first += fmt.Sprintf("; %d refused", c.refused)
	}
	second := fmt.Sprintf("cost %s of %s, %d calls, %d approved", run.Spent, abi.MicroUSD(run.Budget), c.calls, c.asked)
	if c.segment > 1 {
		second += fmt.Sprintf(", %d segments", c.segment)
	}
	return fmt.Sprintf("%s\n%s, receipt %s", first, second, id)
}
