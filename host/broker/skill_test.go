package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
)

// fakeKin bears runs in the house's store and ends them as it is told to, after they
// have spent 4 of 10.
type fakeKin struct {
	h       *house
	ends    host.RunState // empty: they go on
	result  string
	failure string
	label   label.Set
	pass    func() // before and after the end
	births  []broker.Birth
	ended   []host.RunID // by Cancel
}

func (k *fakeKin) Bear(_ *store.Tx, parent host.Run, b broker.Birth) (store.Run, error) {
	if b.Skill != "digest" {
		return store.Run{}, host.ErrNotFound
	}
	k.births = append(k.births, b)
	k.h.now = k.h.now.Add(time.Millisecond)
	id := host.RunID(host.NewID("run", k.h.now))
	_, wrapped, err := k.h.keys.NewRunKey(id)
	r := store.Run{
		Run: host.Run{
			ID: id, Workspace: "acme", Skill: b.Skill, Root: parent.Root, Parent: parent.ID, OnBehalfOf: parent.OnBehalfOf, Module: module,
			State: host.StateQueued, Budget: b.Budget, CreatedAt: k.h.now,
		},
		Key: wrapped, Start: []byte("start"), StartLabel: []byte("label"),
	}
	r.Chain = journal.Genesis(&r)
	return r, err
}

func (k *fakeKin) Start(host.RunID) {}

func (k *fakeKin) Await(ctx context.Context, child host.RunID, _ time.Duration) {
	if k.pass != nil {
		k.pass()
	}
	if k.ends == "" {
		return
	}
	err := k.h.store.Write(ctx, func(tx *store.Tx) error { return k.end(tx, child) })
	if err != nil && !errors.Is(err, host.ErrConflict) {
		k.h.t.Error(err)
	}
	if k.pass != nil {
		k.pass()
	}
}

func (k *fakeKin) end(tx *store.Tx, child host.RunID) error {
	row, err := tx.Run(child)
	if err != nil || row.State.Ended() {
		return err
	}
	if row.Budget >= 10 {
		cost := abi.MicroUSD(4)
		_, _, e1 := spend.Reserve(tx, row.Run, 1, 1, 10, 1000, k.h.now)
		_, e2 := spend.Settle(tx, row.Run, 1, 1, 10, &cost)
		err = errors.Join(e1, e2)
	}
	_, e3 := spend.GiveBack(tx, child)
	return errors.Join(err, e3, tx.EndRun(child, store.End{State: k.ends, Failure: k.failure, At: k.h.now, Leaf: -1}))
}

func (k *fakeKin) Result(*store.Run) ([]byte, label.Set, error) {
	return []byte(k.result), k.label, nil
}

func (k *fakeKin) Cancel(child host.RunID) error {
	k.ended = append(k.ended, child)
	return nil
}

const callDigest = `{"skill":"digest","input":{"n":1},"budget_micro_usd":100}`

// tree lists the runs that belong to the house's run.
func (h *house) tree() (list []store.Run) {
	h.t.Helper()
	h.read(func(tx *store.Tx) (err error) { list, err = tx.Tree(h.run); return err })
	return list
}

func TestASkillIsCalledAndItsResultTaken(t *testing.T) {
	h := newHouse(t)
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	held := h.s.Held
	h.kin.label = label.Set{Integrity: label.External, Readers: label.Only("workspace"), Origins: []string{"x:elsewhere"}}
	raw := request(abi.OpSkillCall, callDigest)
	if got := string(h.ok(2, raw).OK); got != `{"result":"well"}` {
		t.Error(got)
	}
	// Law 9: the arguments carry what the caller held, the result what the callee did.
	if b := h.kin.births[0]; b.Label.String() != held.String() || string(b.Input) != `{"n":1}` || b.Budget != 100 {
		t.Errorf("born with %+v", b)
	}
	if h.s.Held.Integrity != label.External || strings.Join(h.s.Held.Origins, " ") != "x:a x:elsewhere" {
		t.Errorf("the caller holds %s from %v", h.s.Held, h.s.Held.Origins)
	}
	// What was not spent is back, what was counts.
	if got := h.totals(); got.Settled != 4 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	for range 2 { // a replay does not run it again
		h.crash()
		h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
		h.ok(2, raw)
	}
	if n := len(h.tree()); n != 2 {
		t.Errorf("%d runs", n)
	}
	h.books()
}

func TestACallerWaitsForItsCallee(t *testing.T) {
	h := newHouse(t)
	h.kin.ends = ""
	raw := request(abi.OpSkillCall, callDigest)
	h.waits(1, raw, host.WaitSkill)
	if got := h.totals(); got.Reserved != 100 {
		t.Errorf("%+v", got)
	}
	due := func() (list []host.RunID) {
		h.read(func(tx *store.Tx) (err error) { list, err = tx.Due(h.now, 10); return err })
		return list
	}
	child := h.tree()[1]
	if list := due(); len(list) != 1 || list[0] != child.ID {
		t.Errorf("due are %v", list)
	}
	h.kin.ends = host.StateSucceeded
	h.write(func(tx *store.Tx) error { return h.kin.end(tx, child.ID) })
	if list := due(); len(list) != 1 || list[0] != h.run { // whoever lost the wake-up is found
		t.Errorf("due are %v", list)
	}
	h.crash()
	h.ok(1, raw)
	if n := len(h.tree()); n != 2 {
		t.Errorf("%d runs", n)
	}
}

func TestACalleeIsNotWaitedForForever(t *testing.T) {
	h := newHouse(t)
	h.kin.ends = ""
	raw := request(abi.OpSkillCall, callDigest)
	h.waits(1, raw, host.WaitSkill)
	h.now = h.now.Add(broker.SkillLife - time.Second)
	h.crash()
	h.waits(1, raw, host.WaitSkill)
	h.now = h.now.Add(time.Second)
	h.crash()
	if d := h.refused(1, raw, abi.Timeout); d.Effect != abi.OutcomeMay {
		t.Errorf("%+v", d)
	}
	if len(h.kin.ended) != 1 || h.kin.ended[0] != h.tree()[1].ID {
		t.Errorf("ended were %v", h.kin.ended)
	}
}

func TestACalleesFailureIsARefusal(t *testing.T) {
	for _, c := range []struct {
		state           host.RunState
		failure, result string
		code            abi.Code
	}{
		{host.StateFailed, "the guest ended with status 1", `{"error":{"code":"BUDGET","reason":"words of a guest"}}`, abi.Budget},
		{host.StateFailed, "the guest ended with status 1", `{"error":{"code":"INTERNAL","reason":"words of a guest"}}`, abi.Upstream},
		{host.StateFailed, "the guest ended with status 1", `words of a guest`, abi.Upstream},
		{host.StateFailed, "TRAP: unreachable", ``, abi.Upstream},
		{host.StateFailed, "BUDGET: nobody raised the cap in time", ``, abi.Budget},
		{host.StateDiverged, "the run diverged", ``, abi.Upstream},
		{host.StateCancelled, "a person cancelled the run", ``, abi.Denied},
	} {
		h := newHouse(t)
		h.kin.ends, h.kin.failure, h.kin.result = c.state, c.failure, c.result
		h.kin.label = label.Set{Integrity: label.External, Readers: label.Only("workspace")}
		d := h.refused(1, request(abi.OpSkillCall, callDigest), c.code)
		if d.Effect != abi.OutcomeNone || !strings.Contains(d.Reason, c.failure) || strings.Contains(d.Reason, "words of a guest") {
			t.Errorf("%+v", d)
		}
		if h.s.Held.Integrity != label.External {
			t.Error("the refusal tells something of what the callee held")
		}
		if got := h.totals(); got.Reserved != 0 {
			t.Errorf("%+v", got)
		}
		h.close()
	}
}

func TestWhatACalleeHadDoneIsTold(t *testing.T) {
	h := newHouse(t)
	h.kin.ends = ""
	raw := request(abi.OpSkillCall, callDigest)
	h.waits(1, raw, host.WaitSkill)
	child := h.tree()[1].ID
	h.write(func(tx *store.Tx) error {
		a := store.Approval{Approval: host.Approval{ID: "appr_1", Run: child, State: host.ApprovalUsed, CreatedAt: h.now, ExpiresAt: h.now}, BoundMAC: []byte{1}, Detail: []byte{1}}
		return tx.InsertApproval(a)
	})
	h.kin.ends, h.kin.failure = host.StateFailed, "TRAP: unreachable"
	h.resume()
	if d := h.refused(1, raw, abi.Upstream); d.Effect != abi.OutcomeMay {
		t.Errorf("%+v", d)
	}
}

func TestWhatIsNoCallOfASkill(t *testing.T) {
	h := newHouse(t)
	for i, c := range []struct {
		args string
		code abi.Code
	}{
		{`{}`, abi.NotFound},
		{`{"skill":"other"}`, abi.NotFound},
		{`{"skill":7}`, abi.Invalid},
		{`{"skill":"digest","budget_micro_usd":-1}`, abi.Invalid},
		{`{"skill":"digest","budget_micro_usd":501}`, abi.Budget},
		{`{"skill":"digest","grants":[]}`, abi.Invalid},
	} {
		h.refused(uint32(i+1), request(abi.OpSkillCall, c.args), c.code)
	}
	if n := len(h.tree()); n != 1 {
		t.Errorf("%d runs", n)
	}
	h.ok(7, request(abi.OpSkillCall, `{"skill":"digest"}`)) // all that is left, and no input
	if b := h.kin.births[len(h.kin.births)-1]; b.Budget != 500 || string(b.Input) != "null" {
		t.Errorf("born with %+v", b)
	}
	m := *h.s.Subject.Manifest
	m.Ops = nil
	h.s.Subject.Manifest = &m
	h.refused(8, request(abi.OpSkillCall, callDigest), abi.Scope)
	h.books()
}

// A result that is no JSON of the ABI is passed on as text.
func TestAnyResultIsPassedOn(t *testing.T) {
	h := newHouse(t)
	for i, c := range [][2]string{
		{`{"b":1, "a":2}`, `{"a":2,"b":1}`}, {`1.5`, `"1.5"`}, {``, `""`}, {"\xff", `"�"`}, {`{"a":1,"a":2}`, `"{\"a\":1,\"a\":2}"`},
	} {
		h.kin.result = c[0]
		if got, want := string(h.ok(uint32(i+1), request(abi.OpSkillCall, callDigest)).OK), `{"result":`+c[1]+`}`; got != want {
			t.Errorf("%q became %s, want %s", c[0], got, want)
		}
	}
}

// Law 13: a tree of runs has bounds, each of which is met here and passed by one.
func TestATreeHasBounds(t *testing.T) {
	raw := request(abi.OpSkillCall, `{"skill":"digest","budget_micro_usd":0}`)
	t.Run("children", func(t *testing.T) {
		h := newHouse(t)
		n := uint32(1)
		for ; n <= broker.MaxChildren; n++ {
			h.ok(n, raw)
		}
		h.refused(n, raw, abi.Rate)
	})
	t.Run("depth", func(t *testing.T) {
		h := newHouse(t)
		for range broker.MaxDepth - 2 {
			h.s.Subject.Chain = append(h.s.Subject.Chain, grant.Subject{Manifest: h.s.Subject.Manifest, For: person})
		}
		h.ok(1, raw)
		h.s.Subject.Chain = append(h.s.Subject.Chain, h.s.Subject.Chain[0])
		h.refused(2, raw, abi.Rate)
	})
	t.Run("all", func(t *testing.T) {
		h := newHouse(t)
		other := host.RunID("run_other")
		add := func(n int) {
			h.write(func(tx *store.Tx) (err error) {
				for i := range n {
					err = errors.Join(err, tx.InsertRun(store.Run{Run: host.Run{ID: host.RunID(fmt.Sprintf("run_x%d%d", n, i)), Root: h.run, Parent: other, OnBehalfOf: person, State: host.StateQueued}, Start: []byte{1}, StartLabel: []byte{1}}))
				}
				return err
			})
		}
		add(broker.MaxTree - 2)
		h.ok(1, raw)
		h.refused(2, raw, abi.Rate)
	})
}

// A question of a run that was called says how it came about, and a no to it counts
// for every skill above.
func TestAQuestionShowsTheChain(t *testing.T) {
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h := newHouse(t)
	above := func() {
		h.s.Subject.Chain = []grant.Subject{{Skill: "assistant", Module: module, Manifest: h.s.Subject.Manifest, For: person}}
	}
	for range approval.StickyRejections {
		above()
		h.waits(1, raw, host.WaitApproval)
		a := h.approval(1)
		if _, err := approval.Open(h.keys, &a); err != nil || a.Chain != "triage, called by assistant, started by Ann" {
			t.Errorf("%q, %v", a.Chain, err)
		}
		h.answer(1, false)
		h.start(500)
	}
	h.s.Run.Skill = "other" // of the chain, only the caller has been told no
	above()
	h.refused(1, raw, abi.ApprovalRejected)
	h.s.Subject.Chain = nil
	h.waits(2, raw, host.WaitApproval)
}
