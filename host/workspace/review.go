package workspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

func (w *Workspace) openApproval(a *store.Approval) (approval.Detail, error) {
	return approval.Open(w.keys, a)
}

// Approval implements api.Backend.
func (w *Workspace) Approval(ctx context.Context, _ host.Caller, id host.ApprovalID) (v api.ApprovalView, err error) {
	var row store.Approval
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		row, err = tx.Approval(id)
		return err
	})
	if err != nil {
		return v, noApproval(err)
	}
	d, err := w.openApproval(&row)
	if errors.Is(err, approval.ErrErased) {
		return v, &host.Problem{Kind: host.ErrNotFound, Code: "APPROVAL_ERASED", Detail: "what this approval showed was erased with its run", Remedy: "the audit log has who answered it and when"}
	}
	if err != nil {
		return v, err
	}
	v = api.ApprovalView{Approval: row.Approval, Preview: d.Preview, Readers: d.Readers, Origins: d.Label.Origins, Label: d.Label.String()}
	if row.State == host.ApprovalPending { // what can be edited; the approval is shown also where that cannot be found
		_, v.Args, _ = w.asking(ctx, id)
	}
	return v, nil
}

func noApproval(err error) error {
	if errors.Is(err, host.ErrNotFound) {
		return &host.Problem{Kind: host.ErrNotFound, Code: "APPROVAL", Detail: "there is no such approval", Remedy: "monroe approvals list shows what waits"}
	}
	return err
}

// Decide implements api.Backend.
func (w *Workspace) Decide(ctx context.Context, c host.Caller, id host.ApprovalID, in api.Decision) (a host.Approval, err error) {
	word := approval.Word{Approve: in.Decision == api.Approve, Digest: in.Digest, SeenBytes: in.SeenBytes}
	now := w.Now()
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		rules, err := approvers(tx, id)
		if err != nil {
			return err
		}
		if a, err = approval.Answer(tx, w.keys, id, c, word, rules, w.expiry()); err != nil {
			return err
		}
		run, err := tx.Run(a.Run)
		if err != nil {
			return err
		}
		_, err = audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindApproval, Run: a.Run, Call: a.Call, Who: c.ID, Skill: run.Skill, Module: run.Module.String(),
			Operation: a.Operation, Effect: a.Effect, Verdict: string(a.State), Approval: a.ID,
		})
		return err
	})
	if err != nil {
		return a, noApproval(err)
	}
	w.runner.Wake(a.Run)
	return a, nil
}

// Edit implements api.Backend. What is asked for is frozen anew; the run decides and
// asks anew when it comes back to the call.
func (w *Workspace) Edit(ctx context.Context, c host.Caller, id host.ApprovalID, in api.EditInput) (a host.Approval, err error) {
	e, _, err := w.asking(ctx, id)
	if err != nil {
		return a, noApproval(err)
	}
	body, err := w.broker.Edit(ctx, e, c.ID, in.Fields)
	if err != nil {
		return a, err
	}
	now := w.Now()
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		if a, err = approval.Supersede(tx, w.keys, id, c, in.Digest, w.expiry()); err != nil {
			return err
		}
		row, err := tx.Run(a.Run)
		if err != nil {
			return err
		}
		if row.State != host.StateWaiting || row.Wait != host.WaitApproval {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_NOT_WAITING", Detail: "the run is at work at this moment", Remedy: "try again"}
		}
		log, err := w.journal(tx, &row)
		if err != nil {
			return err
		}
		if err := log.Add(journal.Edit, e.Call, now, body, *e.Label); err != nil {
			return err
		}
		if err := log.Stage(tx); err != nil {
			return err
		}
		seq, chain := log.Head()
		_, err = audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindEdit, Run: a.Run, Call: a.Call, Who: c.ID, Skill: row.Skill, Module: row.Module.String(),
			Operation: a.Operation, Effect: a.Effect, Verdict: string(a.State), Approval: a.ID, Seq: seq, Chain: chain.String(),
		})
		return err
	})
	if err != nil {
		return a, noApproval(err)
	}
	w.runner.Wake(a.Run)
	return a, nil
}

// asking finds the call that asks for an approval, and the arguments that it waits
// with; they are nil once it has been answered or edited.
func (w *Workspace) asking(ctx context.Context, id host.ApprovalID) (e *journal.Entry, args json.RawMessage, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		a, err := tx.Approval(id)
		if err != nil {
			return err
		}
		row, err := tx.Run(a.Run)
		if err != nil {
			return err
		}
		log, err := w.journal(tx, &row)
		if err != nil {
			return err
		}
		e = log.Entry(a.Call)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if e == nil || e.Approval != id || e.Answer != nil || e.Attempts > 0 {
		return nil, nil, &host.Problem{Kind: host.ErrConflict, Code: "APPROVAL_STATE", Detail: "the call does not wait for this approval any more", Remedy: "monroe approvals list shows what waits"}
	}
	args, err = w.broker.Args(e)
	return e, args, err
}

// approvers are the lines of the configuration in force that speak of an approval's
// operation. All of them hold.
func approvers(tx *store.Tx, id host.ApprovalID) (rules []approval.Approvers, err error) {
	a, err := tx.Approval(id)
	if err != nil {
		return nil, err
	}
	row, err := tx.Workspace()
	if err != nil {
		return nil, err
	}
	cfg, err := config.ParseWorkspace([]byte(row.Config))
	if err != nil {
		return nil, err
	}
	for _, line := range cfg.Approvers {
		if line.Operation == a.Operation || line.Operation == config.AnyOperation {
			rules = append(rules, approval.Approvers{Roles: line.Roles, OtherPerson: line.OtherPerson})
		}
	}
	for _, g := range cfg.Groups {
		rules = append(rules, approval.Approvers{Group: g.Name, Roles: g.Roles, People: g.People})
	}
	return rules, nil
}

// Resolve implements api.Backend. The word goes into the run's journal while the run
// has no worker; who has only the database cannot write it there.
func (w *Workspace) Resolve(ctx context.Context, c host.Caller, id host.RunID, in api.ResolveInput) (run host.Run, err error) {
	if c.Role == host.RoleViewer {
		return run, &host.Problem{Kind: host.ErrForbidden, Code: "ROLE", Detail: "a viewer cannot say what became of an attempt", Remedy: "ask a member"}
	}
	switch in.Outcome {
	case host.Happened, host.DidNotHappen, host.Abandoned:
	default:
		return run, &host.Problem{Kind: host.ErrInvalid, Code: "OUTCOME", Detail: "the outcome is not one of happened, did_not_happen, abandoned"}
	}
	now := w.Now()
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		row, err := tx.Run(id)
		if err != nil {
			return err
		}
		run = row.Run
		log, err := w.journal(tx, &row)
		if err != nil {
			return err
		}
		e := log.InDoubt()
		if row.State != host.StateWaiting || row.Wait != host.WaitUnknown || e == nil {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_NOT_IN_DOUBT", Detail: "the run does not wait to be told what became of an attempt", Remedy: "monroe runs show tells what it waits for; an answer counts once"}
		}
		if in.Call != 0 && in.Call != journal.Guest(e.Call) {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_OTHER_CALL", Detail: fmt.Sprintf("the run waits for call %d, not %d", journal.Guest(e.Call), in.Call), Remedy: "look at the call that it waits for"}
		}
		body := journal.Body{Verdict: string(in.Outcome), By: string(c.ID)}
		if err := log.Add(journal.Resolved, e.Call, now, body, *e.Label); err != nil {
			return err
		}
		if err := log.Stage(tx); err != nil {
			return err
		}
		// Due at once, so that the sweep wakes it if this daemon stops here.
		if err := tx.SetState(id, host.StateWaiting, host.WaitUnknown, now, now, host.StateWaiting); err != nil {
			return err
		}
		seq, chain := log.Head()
		_, err = audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindResolved, Run: id, Call: e.Call, Who: c.ID, Skill: run.Skill, Module: run.Module.String(),
			Operation: e.Operation, Effect: e.Effect, Verdict: string(in.Outcome), Seq: seq, Chain: chain.String(),
		})
		return err
	})
	if err != nil {
		return run, noRun(err)
	}
	w.runner.Wake(id)
	return run, nil
}

func (w *Workspace) journal(tx *store.Tx, row *store.Run) (*journal.Log, error) {
	key, err := w.keys.OpenRunKey(row.ID, row.Key)
	if err != nil {
		return nil, err
	}
	return journal.Load(tx, row, key)
}

// checkpoint signs the log if it grew and the last checkpoint is old enough.
func (w *Workspace) checkpoint(ctx context.Context, every time.Duration) error {
	var due bool
	now := w.Now()
	err := w.store.Read(ctx, func(tx *store.Tx) error {
		n, err := tx.LeafCount()
		if err != nil {
			return err
		}
		size, at, _, err := tx.LastCheckpoint()
		due = n != size && now.Sub(at).Abs() >= every // the clock may have been ahead
		return err
	})
	if err != nil || !due {
		return err
	}
	_, err = w.sign(ctx)
	return err
}

// sign makes and stores a checkpoint of the log as it is, if that extends what was
// signed before. A log that lost leaves is never signed again.
func (w *Workspace) sign(ctx context.Context) (note []byte, err error) {
	signer, err := w.keys.Signer()
	if err != nil {
		return nil, err
	}
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		n, err := tx.LeafCount()
		if err != nil {
			return err
		}
		size, _, last, err := tx.LastCheckpoint()
		if err != nil {
			return err
		}
		if last != nil {
			if err := w.extends(tx, n, size, last); err != nil {
				return err
			}
		}
		if last != nil && size == n {
			note = last
			return nil
		}
		if note, err = audit.Checkpoint(tx, n, signer); err != nil {
			return err
		}
		return tx.PutCheckpoint(n, note, w.Now())
	})
	return note, err
}

func (w *Workspace) extends(tx *store.Tx, n, size int64, last []byte) error {
	head, err := audit.OpenCheckpoint(last, w.keys.Verifier())
	if err == nil && head.Size != size {
		err = fmt.Errorf("%w: the checkpoint of %d leaves is stored as one of %d", audit.ErrTampered, head.Size, size)
	}
	if err == nil {
		err = audit.Extends(tx, n, head)
	}
	if errors.Is(err, audit.ErrTampered) {
		return &host.Problem{Kind: host.ErrConflict, Code: "AUDIT", Detail: err.Error(), Remedy: "keep the workspace's directory as it is and find out who changed the database"}
	}
	return err
}

// Audit implements api.Backend.
func (w *Workspace) Audit(ctx context.Context, _ host.Caller, from int64, limit int) (v api.AuditView, err error) {
	note, err := w.sign(ctx)
	if err != nil {
		return v, err
	}
	v = api.AuditView{Checkpoint: string(note), Verifier: w.keys.Verifier(), Leaves: []api.AuditLeaf{}}
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		bodies, err := tx.Leaves(from, limit)
		if err != nil {
			return err
		}
		chains := map[host.RunID]map[int64]string{}
		for i, b := range bodies {
			v.Leaves = append(v.Leaves, api.AuditLeaf{Index: from + int64(i), Body: b})
			l, err := audit.ParseLeaf(b)
			if err != nil || l.Run == "" || l.Chain == "" {
				continue // a verifier finds what is wrong with it
			}
			if chains[l.Run] == nil {
				if chains[l.Run], err = heads(tx, l.Run); err != nil {
					return err
				}
			}
			v.Journal = append(v.Journal, api.JournalChain{Run: l.Run, Seq: l.Seq, Head: chains[l.Run][l.Seq]})
		}
		return nil
	})
	return v, err
}

// heads recomputes a run's chain from what is stored now, by record.
func heads(tx *store.Tx, id host.RunID) (map[int64]string, error) {
	m := map[int64]string{}
	run, err := tx.Run(id)
	if errors.Is(err, host.ErrNotFound) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	marks, err := tx.Marks(id)
	if err != nil {
		return nil, err
	}
	head, first := journal.Genesis(&run), int64(1)
	m[0] = head.String()
	for _, end := range append(marks, store.Mark{Seq: run.NextSeq}) { // a segment at a time is in memory
		recs, err := tx.RecordsFrom(id, first, end.Seq)
		if err != nil {
			return nil, err
		}
		for i := range recs {
			head = journal.Link(head, &recs[i])
			m[recs[i].Seq] = head.String()
		}
		first = end.Seq
	}
	return m, nil
}

// examine tries the walls and compares them with the operator's minimum.
func (w *Workspace) examine(ctx context.Context, v *api.DoctorView) (err error) {
	if w.Walls == nil {
		return errors.New("this daemon does not know its walls")
	}
	if v.Walls, err = w.Config.Walls(ctx); err != nil {
		return err
	}
	if len(v.Findings) > 0 {
		return fmt.Errorf("not as expected: %s", strings.Join(v.Findings, "; "))
	}
	for _, id := range w.Operator.MinimumWalls() {
		if !slices.ContainsFunc(v.Layers, func(l api.Wall) bool { return l.ID == id && l.Enforced }) {
			return fmt.Errorf("%s does not stand, and operator.yaml asks for it", id)
		}
	}
	return nil
}

// Doctor implements api.Backend.
func (w *Workspace) Doctor(ctx context.Context, _ host.Caller) (api.DoctorView, error) {
	now := w.Now()
	v := api.DoctorView{Time: now.UTC(), OK: true}
	add := func(name string, err error, detail, remedy string) {
		c := api.DoctorCheck{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c.Detail, c.Remedy, v.OK = err.Error(), remedy, false
		}
		v.Checks = append(v.Checks, c)
	}
	below := w.examine(ctx, &v)
	add("walls", below, v.Level, "see the layers; docs/confinement.md says what each one needs")
	start := time.Now()
	err := w.store.Write(ctx, func(tx *store.Tx) error { return tx.Touch() })
	took := time.Since(start)
	v.Host.Store, v.Host.CommitUS = w.store.Place(), took.Microseconds()
	add("store", err, fmt.Sprintf("%s; one durable commit took %s", w.store.Place(), took.Round(10*time.Microsecond)), "look at the disk: space, permissions, errors")
	err = nil
	var names []string
	for _, op := range w.world.Operations() {
		names = append(names, op.Name)
	}
	add("connectors", err, strings.Join(names, ", "), "")
	files := []string{"keyset.json", "owner.token"}
	if w.Postgres == nil {
		files = append(files, "monroe.db")
	}
	for _, f := range files {
		st, err := os.Stat(filepath.Join(w.Dir, f))
		if err == nil && st.Mode().Perm()&0o077 != 0 {
			err = fmt.Errorf("%s is readable by others (mode %04o)", f, st.Mode().Perm())
		}
		add("file "+f, err, "only the owner can read it", "chmod 600 "+filepath.Join(w.Dir, f))
	}
	spent, err := w.Spend(ctx, host.Caller{})
	add("spend", err, fmt.Sprintf("%s: settled %d and reserved %d of %d micro-USD", spent.Period, spent.Settled, spent.Reserved, spent.CapMicro), "")
	return v, nil
}
