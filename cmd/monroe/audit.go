package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/api/client"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/durable"
)

type auditCmd struct {
	List   auditList   `cmd:"" help:"List the newest leaves."`
	Verify auditVerify `cmd:"" help:"Rebuild the log and hold it to its checkpoints, the journals and the ledger."`
	Prove  auditProve  `cmd:"" help:"Prove that one receipt's leaf is in the signed log, without the rest of it."`
	Check  auditCheck  `cmd:"" help:"Check such a proof, from a file (--json audit prove), without the daemon."`
}

type auditList struct {
	Limit int `default:"30" help:"How many."`
}

const auditPage = 500

func (a auditList) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	head, err := c.Audit(e.ctx, 0, 1)
	if err != nil {
		return err
	}
	h, err := audit.OpenCheckpoint([]byte(head.Checkpoint), head.Verifier)
	if err != nil {
		return err
	}
	v, err := c.Audit(e.ctx, max(0, h.Size-int64(a.Limit)), max(a.Limit, 1))
	if err != nil {
		return err
	}
	var leaves []audit.Leaf
	for _, l := range v.Leaves {
		leaf, err := audit.ParseLeaf(l.Body)
		if err != nil {
			return err
		}
		leaves = append(leaves, leaf)
	}
	return e.show(leaves, func() {
		var rows [][]string
		for i, l := range leaves {
			rows = append(rows, []string{fmt.Sprint(v.Leaves[i].Index), when(l.Time()), string(l.Kind), l.Verdict + " " + string(l.Code), subject(l), string(l.Run), l.Cost.String(), l.Detail + l.Rule})
		}
		e.table([]string{"LEAF", "TIME", "KIND", "VERDICT", "WHAT", "RUN", "COST", "RULE"}, rows)
	})
}

// subject is what a leaf is about: the operation, or the op of a call without one.
func subject(l audit.Leaf) string { return cmp.Or(l.Operation, string(l.Op)) }

type auditVerify struct {
	Checkpoint string `type:"path" help:"A checkpoint that was kept elsewhere; the log must extend it."`
}

// verdict is what a verification found.
type verdict struct {
	Leaves    int64        `json:"leaves"`
	Calls     int          `json:"calls"`
	Effects   int          `json:"effects"`
	Denials   int          `json:"denials"`
	Approvals int          `json:"approvals"`
	Alarms    int          `json:"alarms"`
	InDoubt   int          `json:"in_doubt"`
	Cost      abi.MicroUSD `json:"cost_micro_usd"`
	Records   int          `json:"journal_records_witnessed"`
	Root      string       `json:"root"`
}

func (a auditVerify) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	kept, err := e.keptNotes(a.Checkpoint)
	if err != nil {
		return err
	}
	done := e.busy("rebuilding the log")
	v, note, err := verify(e.ctx, c, kept)
	done()
	if err != nil {
		return err
	}
	if err := e.keep(note); err != nil {
		return err
	}
	return e.show(v, func() {
		e.printf("audit: verified %d leaves: %d calls, %d effects, %d refusals, %d approvals, %d alarms, %d in doubt, cost %s\n", v.Leaves, v.Calls, v.Effects, v.Denials, v.Approvals, v.Alarms, v.InDoubt, v.Cost)
		e.printf("root %s; %d journal records match what the log witnessed\ncheckpoint kept in %s\n", v.Root, v.Records, e.keptCheckpoint())
	})
}

// keptCheckpoint is where this user keeps the last checkpoint he verified: outside
// the workspace's directory.
func (e *env) keptCheckpoint() string {
	return filepath.Join(e.home, "checkpoints", filepath.Base(e.dir)+".note")
}

// keptNotes reads that checkpoint, if there is one yet, and the one that was named, which
// has to be there: who names one wants the log held to it.
func (e *env) keptNotes(named string) ([]keptNote, error) {
	var out []keptNote
	for _, path := range []string{e.keptCheckpoint(), named} {
		if path == "" {
			continue
		}
		b, err := os.ReadFile(path)
		switch {
		case err == nil:
			out = append(out, keptNote{path, b})
		case path == named || !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("the log cannot be held to the checkpoint: %w", err)
		}
	}
	return out, nil
}

func (e *env) keep(note string) error {
	p := e.keptCheckpoint()
	if err := durable.MkdirAll(filepath.Dir(p)); err != nil {
		return err
	}
	return durable.Replace(p, []byte(note), filepath.Dir(p), ".note-*")
}

// verify rebuilds the log from its leaves, trusting the daemon for nothing but
// handing out bytes. What it compares: every leaf with the signed root; the log with
// earlier checkpoints; every journal with the chain that leaves witnessed; effects
// with decisions and approvals; the month's ledger with the costs in the leaves.
func verify(ctx context.Context, c *client.Client, kept []keptNote) (v verdict, note string, err error) {
	spend, err := c.Spend(ctx)
	if err != nil {
		return v, "", err
	}
	var log audit.Log
	var books audit.Books
	var head audit.Head
	var month abi.MicroUSD
	var vkey string
	for {
		part, err := c.Audit(ctx, log.Size(), auditPage)
		if err != nil {
			return v, "", err
		}
		if head, err = audit.OpenCheckpoint([]byte(part.Checkpoint), part.Verifier); err != nil {
			return v, "", err
		}
		note, vkey = part.Checkpoint, part.Verifier
		heads := map[string]string{}
		for _, j := range part.Journal {
			heads[fmt.Sprintf("%s/%d", j.Run, j.Seq)] = j.Head
		}
		for _, l := range part.Leaves {
			if l.Index != log.Size() {
				return v, "", fmt.Errorf("%w: leaf %d came where %d was next", audit.ErrTampered, l.Index, log.Size())
			}
			if err := log.Add(l.Body); err != nil {
				return v, "", err
			}
			leaf, err := audit.ParseLeaf(l.Body)
			if err != nil {
				return v, "", err
			}
			if err := books.Add(l.Index, leaf); err != nil {
				return v, "", err
			}
			if leaf.Kind != audit.KindEnd && leaf.Period == spend.Period {
				month += leaf.Cost
			}
			if leaf.Chain != "" {
				if heads[fmt.Sprintf("%s/%d", leaf.Run, leaf.Seq)] != leaf.Chain {
					return v, "", fmt.Errorf("%w: leaf %d witnessed another journal of %s than is stored now", audit.ErrTampered, l.Index, leaf.Run)
				}
				v.Records++
			}
		}
		if log.Size() >= head.Size || len(part.Leaves) == 0 {
			break
		}
	}
	if err := log.Check(head); err != nil {
		return v, "", err
	}
	for _, k := range kept {
		if err := k.hold(vkey, log.Check); err != nil {
			return v, "", err
		}
	}
	if month != abi.MicroUSD(spend.Settled) && books.Open() == 0 {
		return v, "", fmt.Errorf("%w: the leaves of %s cost %s, the ledger says %s", audit.ErrTampered, spend.Period, month, abi.MicroUSD(spend.Settled))
	}
	v.Leaves, v.Calls, v.Effects, v.Denials, v.Approvals, v.Alarms = log.Size(), books.Calls, books.Effects, books.Denials, books.Approvals, books.Alarms
	v.InDoubt, v.Cost, v.Root = books.InDoubt(), books.Cost, head.Root.String()
	return v, note, nil
}

// keptNote is a checkpoint that somebody kept.
type keptNote struct {
	path string // empty: there is none
	note []byte
}

// hold opens it and lets check judge what it says.
func (k keptNote) hold(vkey string, check func(audit.Head) error) error {
	h, err := audit.OpenCheckpoint(k.note, vkey)
	if err == nil {
		err = check(h)
	}
	if err != nil {
		return fmt.Errorf("the checkpoint kept in %s: %w", k.path, err)
	}
	return nil
}
