package workspace

import (
	"context"
	"encoding/json"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
)

// kin makes and watches the runs that runs call.
type kin struct{ *Workspace }

// Bear implements broker.Kin. The new run is the same person's and just as attended.
func (k kin) Bear(tx *store.Tx, parent host.Run, b broker.Birth) (store.Run, error) {
	m, err := tx.Skill(b.Skill)
	if err != nil {
		return store.Run{}, err
	}
	manifest, err := abi.ParseManifest([]byte(m.Manifest))
	if err != nil {
		return store.Run{}, err
	}
	row, err := k.fresh(m, manifest, host.Run{
		Skill: b.Skill, Root: parent.Root, Parent: parent.ID, OnBehalfOf: parent.OnBehalfOf, Attended: parent.Attended, Label: b.Label,
	}, b.Input, b.Tree)
	if err != nil {
		return row, err
	}
	return row, k.place(tx, &row, manifest, b.Budget)
}

// Start implements broker.Kin.
func (k kin) Start(child host.RunID) { k.runner.Wake(child) }

// Await implements broker.Kin.
func (k kin) Await(ctx context.Context, child host.RunID, d time.Duration) {
	k.runner.Await(ctx, child, d)
}

// Cancel implements broker.Kin.
func (k kin) Cancel(child host.RunID) error { return k.runner.Cancel(child) }

// Result implements broker.Kin.
func (k kin) Result(row *store.Run) ([]byte, label.Set, error) { return k.result(row) }

// result opens what an ended run left, nothing if it left nothing, and the label of
// that.
func (w *Workspace) result(row *store.Run) (result []byte, l label.Set, err error) {
	key, err := w.keys.OpenRunKey(row.ID, row.Key)
	if err != nil {
		return nil, l, err
	}
	if row.Result != nil {
		if result, err = key.Open(runner.ResultSlot(row.ID), row.Result); err != nil {
			return nil, l, err
		}
	}
	lab, err := key.Open(runner.ResultLabelSlot(row.ID), row.ResultLabel)
	if err != nil {
		return nil, l, err
	}
	return result, l, json.Unmarshal(lab, &l)
}

// node is a run as a part of its tree.
func node(r *store.Run) host.Node {
	return host.Node{
		ID: r.ID, Parent: r.Parent, Skill: r.Skill, State: r.State, Wait: r.Wait, WakeAt: r.WakeAt, Calls: r.Calls, Budget: r.Budget, Spent: r.Spent,
	}
}
