package workspace

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// defaultBudget is a run's ceiling where nobody names one.
const defaultBudget = abi.USD

// history is how many earlier runs an estimate looks at.
const history = 50

// Estimate implements api.Backend.
func (w *Workspace) Estimate(ctx context.Context, _ host.Caller, skill, maxUSD string) (host.Estimate, error) {
	m, manifest, err := w.module(ctx, skill)
	if err != nil {
		return host.Estimate{}, err
	}
	want, err := wanted(maxUSD)
	if err != nil {
		return host.Estimate{}, err
	}
	var e host.Estimate
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		e, err = w.estimate(tx, m.SHA256, manifest, want)
		return err
	})
	return e, err
}

// wanted is the ceiling that somebody asks for.
func wanted(maxUSD string) (abi.MicroUSD, error) {
	if maxUSD == "" {
		return defaultBudget, nil
	}
	want, err := config.ParseUSD(maxUSD)
	if err != nil {
		return 0, &host.Problem{Kind: host.ErrInvalid, Code: "MAX_USD", Detail: err.Error(), Remedy: "give dollars as text, such as 0.50"}
	}
	return want, nil
}

// estimate is the history of the same module under a ceiling: what is asked for, or
// nothing for a skill that cannot spend.
func (w *Workspace) estimate(tx *store.Tx, module abi.Digest, manifest *abi.Manifest, want abi.MicroUSD) (host.Estimate, error) {
	ceiling := abi.MicroUSD(0)
	if w.canSpend(manifest) {
		ceiling = want
	}
	costs, err := tx.Costs(module, history)
	return spend.Estimate(costs, ceiling), err
}

// canSpend reports whether a manifest asks for anything that can cost money: by its
// effect, by the operator's price for one call, whatever its effect, or by calling
// others, which spend out of the caller's budget.
func (w *Workspace) canSpend(m *abi.Manifest) bool {
	if m.HasOp(abi.OpSkillCall) {
		return true
	}
	priced := map[string]bool{}
	for _, op := range w.world.Operations() {
		priced[op.Name] = op.Price > 0
	}
	return slices.ContainsFunc(m.Operations, func(u abi.OperationUse) bool {
		return u.Effect == abi.EffectMetered || u.Effect == abi.EffectPay || priced[u.Operation]
	})
}

// StartRun implements api.Backend.
func (w *Workspace) StartRun(ctx context.Context, c host.Caller, in api.StartInput) (host.Run, error) {
	if err := w.keys.Stale(w.Now()); err != nil {
		return host.Run{}, &host.Problem{Kind: host.ErrOverload, Code: "KEYS", Detail: err.Error(), Remedy: "nothing new is started until the key service answers again"}
	}
	m, manifest, err := w.module(ctx, in.Skill)
	if err != nil {
		return host.Run{}, err
	}
	budget, err := wanted(in.MaxUSD)
	if err != nil {
		return host.Run{}, err
	}
	input := []byte("null")
	if len(in.Input) > 0 {
		if input, err = abi.Canonical(in.Input); err != nil {
			return host.Run{}, &host.Problem{Kind: host.ErrInvalid, Code: "INPUT", Detail: err.Error(), Remedy: "the input is JSON with integers only"}
		}
	}
	if len(input) > abi.MaxInput {
		return host.Run{}, &host.Problem{Kind: host.ErrTooLarge, Code: "INPUT_SIZE", Detail: fmt.Sprintf("the input has %d bytes, at most %d are allowed", len(input), abi.MaxInput)}
	}
	row, err := w.fresh(m, manifest, host.Run{Skill: in.Skill, OnBehalfOf: c.Principal, Attended: true, Label: inputLabel(input)}, input, 0)
	if err != nil {
		return host.Run{}, err
	}
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		if err := w.place(tx, &row, manifest, budget); err != nil {
			return err
		}
		if err := tx.InsertRun(row); err != nil {
			return err
		}
		_, err = audit.Append(tx, audit.Leaf{
			TimeMS: row.CreatedAt.UnixMilli(), Kind: audit.KindStart, Run: row.ID, Who: c.ID, Skill: in.Skill, Module: m.SHA256.String(), Reserved: row.Budget, Chain: row.Chain.String(),
		})
		return err
	})
	if err != nil {
		return host.Run{}, err
	}
	w.runner.Wake(row.ID)
	return row.Run, nil
}

// fresh makes the row of a new run of a module. Of the run it takes whose it is, where
// it belongs and the label of its input. tree is how many calls its tree may make, 0
// for those of its own limits.
func (w *Workspace) fresh(m store.Module, manifest *abi.Manifest, r host.Run, input []byte, tree uint32) (store.Run, error) {
	now := w.Now()
	r.ID, r.Workspace, r.Module, r.Image = host.RunID(host.NewID("run", now)), w.Name, m.SHA256, m.Image
	r.State, r.CreatedAt = host.StateQueued, now.UTC()
	if r.Root == "" {
		r.Root = r.ID
	}
	row := store.Run{Run: r, Engine: m.Engine, ManifestSHA256: sha256.Sum256([]byte(m.Manifest))}
	start := runner.Start{Limits: manifest.Limits.Or(abi.DefaultLimits()).Min(abi.DefaultLimits()), Seed: make([]byte, 32), TimeNS: now.UnixNano(), Input: input, Tree: tree, Growth: w.Operator.Growth.Or(host.DefaultGrowth())}
	_, _ = rand.Read(start.Seed) // never fails (crypto/rand)
	return row, w.sealStart(&row, start)
}

// place completes a row with what it is now part of: the configuration, the estimate,
// and the budget, which is at most want.
func (w *Workspace) place(tx *store.Tx, row *store.Run, manifest *abi.Manifest, want abi.MicroUSD) error {
	cfg, err := tx.Workspace()
	if err != nil {
		return err
	}
	row.ConfigSHA256 = sha256.Sum256([]byte(cfg.Config))
	if row.Estimate, err = w.estimate(tx, row.Module, manifest, want); err != nil {
		return err
	}
	row.Budget = row.Estimate.Ceiling
	row.Chain = journal.Genesis(row)
	return nil
}

func (w *Workspace) sealStart(row *store.Run, start runner.Start) error {
	key, wrapped, err := w.keys.NewRunKey(row.ID)
	if err != nil {
		return err
	}
	s, err := json.Marshal(start)
	if err != nil {
		return err
	}
	l, err := json.Marshal(row.Label)
	if err != nil {
		return err
	}
	var e1, e2 error
	row.Key = wrapped
	row.Start, e1 = key.Seal(runner.StartSlot(row.ID), s)
	row.StartLabel, e2 = key.Seal(runner.LabelSlot(row.ID), l)
	return errors.Join(e1, e2)
}

var urlHost = regexp.MustCompile(`https?://([A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)`)

// inputLabel is that of words that an authenticated person typed for this run. The
// workspace and its model may read them, and so may the hosts that they name: a
// person who writes down an address is content that it is asked.
func inputLabel(input []byte) label.Set {
	names := []string{"workspace", "model"}
	for _, m := range urlHost.FindAllSubmatch(input, 32) {
		names = append(names, "host:"+strings.ToLower(string(m[1])))
	}
	return label.Set{Integrity: label.User, Readers: label.Only(names...)}
}

// Runs implements api.Backend.
func (w *Workspace) Runs(ctx context.Context, _ host.Caller, limit int) (list []host.Run, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Runs(limit)
		for i := range rows {
			list = append(list, rows[i].Run)
		}
		return err
	})
	return list, err
}

// Pins implements api.Backend.
func (w *Workspace) Pins(ctx context.Context, _ host.Caller) (list []host.Pins, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		list, err = tx.Pins()
		return err
	})
	return list, err
}

func noRun(err error) error {
	if errors.Is(err, host.ErrNotFound) {
		return &host.Problem{Kind: host.ErrNotFound, Code: "RUN", Detail: "there is no such run", Remedy: "monroe runs list shows the runs"}
	}
	return err
}

// Run implements api.Backend.
func (w *Workspace) Run(ctx context.Context, _ host.Caller, id host.RunID) (v api.RunView, err error) {
	var row store.Run
	var tree []store.Run
	var marks []store.Mark
	var key *vault.RunKey
	var log *journal.Log
	var broken error // of the journal, which does not hide the run
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		if row, err = tx.Run(id); err != nil {
			return err
		}
		if tree, err = tx.Tree(row.Root); err != nil {
			return err
		}
		if marks, err = tx.Marks(id); err != nil || !row.ErasedAt.IsZero() {
			return err
		}
		if key, err = w.keys.OpenRunKey(id, row.Key); err != nil {
			return err
		}
		log, err = journal.Load(tx, &row, key)
		if newer := new(journal.NewerError); errors.Is(err, journal.ErrCorrupt) || errors.As(err, &newer) {
			broken, err = err, nil
		}
		return err
	})
	if err != nil {
		return v, noRun(err)
	}
	v = api.RunView{Run: row.Run, Module: row.Module.String(), Log: []host.CallView{}, Records: row.NextSeq - 1, JournalBytes: row.JournalBytes, Segments: segments(row, marks)}
	if !row.ErasedAt.IsZero() {
		v.Notice = "the content was erased; the records' headers and digests are kept"
		return v, nil
	}
	if broken != nil { // the run is of no use, and people have to see why
		v.Notice = broken.Error()
		if errors.Is(broken, journal.ErrCorrupt) {
			v.Notice = "quarantined: " + v.Notice
		}
		v.Waiting = w.waiting(&row, nil)
		return v, nil
	}
	v.Waiting = w.waiting(&row, log)
	for i := range tree {
		v.Tree = append(v.Tree, node(&tree[i]))
	}
	v.Log = broker.Views(log.Entries(), row.State.Ended())
	if v.Notice, err = w.notice(&row, key, log); err != nil {
		return v, err
	}
	if row.Result == nil {
		return v, nil
	}
	result, l, err := w.result(&row)
	if err != nil {
		return v, err
	}
	if !label.Only("workspace").Within(l.Readers) { // law 10: the API filters by reader
		v.Result = json.RawMessage(`{"withheld":"the result holds what not every member may read"}`)
		return v, nil
	}
	v.Result = result
	if !json.Valid(result) { // a guest may write anything
		if v.Result, err = json.Marshal(string(result)); err != nil {
			return v, err
		}
	}
	return v, nil
}

// waiting says what a run waits for, nil if it does not. The moment that it is looked at
// again is the end of the wait, but for a budget, which is looked at each month.
func (w *Workspace) waiting(row *store.Run, log *journal.Log) *host.WaitView {
	if row.State != host.StateWaiting {
		return nil
	}
	v := &host.WaitView{Kind: row.Wait, Owner: row.Wait.Owner(), Expires: row.WakeAt, Next: row.WakeAt}
	if row.Wait == host.WaitBudget && log != nil {
		for _, e := range log.Entries() {
			if e.Answer == nil && !e.Short.IsZero() {
				v.Expires = e.Short.Add(w.broker.BudgetLife)
			}
		}
	}
	return v
}

// segments says where each segment begins, for a run that has more than one.
func segments(row store.Run, marks []store.Mark) (list []api.Segment) {
	if len(marks) == 0 {
		return nil
	}
	list = []api.Segment{{Number: 1, Since: row.StartedAt}}
	for i, m := range marks {
		list[i].Calls = m.Call - list[i].After
		list = append(list, api.Segment{Number: i + 2, Since: m.Time, After: m.Call})
	}
	return list
}

// notice tells that a run's journal is large.
func (w *Workspace) notice(row *store.Run, key *vault.RunKey, log *journal.Log) (string, error) {
	plain, err := key.Open(runner.StartSlot(row.ID), row.Start)
	if err != nil {
		return "", err
	}
	var start runner.Start
	if err := json.Unmarshal(plain, &start); err != nil {
		return "", err
	}
	return start.Growth.Or(host.DefaultGrowth()).Notice(log.Size()), nil
}

// CancelRun implements api.Backend.
func (w *Workspace) CancelRun(ctx context.Context, c host.Caller, id host.RunID) error {
	row, err := w.row(ctx, id)
	if err != nil {
		return err
	}
	if row.OnBehalfOf.ID != c.ID && admin(c) != nil {
		return admin(c)
	}
	if row.State.Ended() {
		return &host.Problem{Kind: host.ErrConflict, Code: "RUN_ENDED", Detail: fmt.Sprintf("the run is %s already", row.State)}
	}
	return w.runner.Cancel(id)
}

func (w *Workspace) row(ctx context.Context, id host.RunID) (row store.Run, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		row, err = tx.Run(id)
		return err
	})
	return row, noRun(err)
}

// Events implements api.Backend. Events live in memory: for a run that ended before
// this daemon started, the end alone is told.
func (w *Workspace) Events(ctx context.Context, _ host.Caller, id host.RunID, after int64) ([]host.Event, <-chan struct{}, bool, error) {
	row, err := w.row(ctx, id)
	if err != nil {
		return nil, nil, false, err
	}
	list, more, done := w.runner.Events(id, after)
	if row.State.Ended() && !done {
		if list2, _, done2 := w.runner.Events(id, after); done2 { // it ended between the two looks
			return list2, more, true, nil
		}
		end := host.Event{Seq: after + int64(len(list)) + 1, Time: row.EndedAt, Kind: host.EventState, State: row.State, Text: string(row.State)}
		return append(list, end), more, true, nil
	}
	return list, more, done, nil
}

// Approvals implements api.Backend.
func (w *Workspace) Approvals(ctx context.Context, _ host.Caller, state host.ApprovalState) (list []host.Approval, err error) {
	var rows []store.Approval
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		rows, err = tx.Approvals(state)
		return err
	})
	for i := range rows {
		if _, err := w.openApproval(&rows[i]); err != nil && !errors.Is(err, approval.ErrErased) {
			return nil, err
		}
		list = append(list, rows[i].Approval)
	}
	return list, err
}

// Spend implements api.Backend.
func (w *Workspace) Spend(ctx context.Context, _ host.Caller) (v api.SpendView, err error) {
	period := spend.Period(w.Now())
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		t, err := tx.SpendTotal(store.PeriodScope(period))
		v = api.SpendView{Period: period, CapMicro: int64(w.currentRules().Cap), Settled: int64(t.Settled), Reserved: int64(t.Reserved), Warned: t.Warned}
		if err != nil {
			return err
		}
		waiting, err := tx.Waiting(host.WaitBudget)
		if v.Waiting = len(waiting); v.Waiting > 0 {
			v.Notice = spend.OutOfBudget
		}
		return err
	})
	return v, err
}
