package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

// fakeWorld is ours: five operations of a system that does not exist. It notes what
// was planned and performed, and holds the door to its laws from the other side.
type fakeWorld struct {
	t         *testing.T
	pinned    abi.Digest
	plans     int
	performed []sent
	hook      func(sent) // runs when the bytes have left
	answer    func(sent) broker.Outcome
	before    func(connectors.Call) // runs before the bytes leave
	probes    int
	revoked   map[string]bool // destinations that lack a credential
	found     *bool           // what a probe finds; nil: it fails
}

type sent struct{ operation, to, key string }

func (w *fakeWorld) Operations() []connectors.Operation {
	args := json.RawMessage(`{"type":"object"}`)
	return []connectors.Operation{
		{Name: "notes.read", Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Args: args},
		{Name: "mail.send", Version: 1, Effect: abi.EffectSend, Replay: abi.ReplayBlind, Args: args},
		{Name: "docs.write", Version: 1, Effect: abi.EffectWrite, Replay: abi.ReplayKeyed, Window: 24 * time.Hour, Args: args},
		{Name: "box.send", Version: 1, Effect: abi.EffectSend, Replay: abi.ReplayProbe, Args: args},
		{Name: "page.put", Version: 1, Effect: abi.EffectWrite, Replay: abi.ReplayConditional, Args: args},
		{Name: "odd.write", Version: 1, Effect: abi.EffectWrite, Replay: "someday", Args: args},
		{Name: "model.ask", Version: 1, Effect: abi.EffectMetered, Replay: abi.ReplayPure, Args: args},
	}
}

func (w *fakeWorld) Pinned(string) abi.Digest { return w.pinned }

type fakeArgs struct {
	To   string       `json:"to"`
	Text string       `json:"text"`
	Cost abi.MicroUSD `json:"cost"`
}

func (w *fakeWorld) Plan(_ context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	w.plans++
	var a fakeArgs
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return connectors.Plan{}, d
	}
	audience := "host:" + a.To
	if a.To == "home" {
		audience = "workspace"
	}
	return connectors.Plan{
		Resources: []string{"x:" + a.To}, Destination: a.To, Account: "con_1", Audience: []string{audience}, Ceiling: a.Cost,
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://" + a.To + "/", Body: []byte(a.Text + c.Key)}},
	}, nil
}

func (w *fakeWorld) Perform(_ context.Context, p grant.Permit, c connectors.Call, plan connectors.Plan, _ func(string)) broker.Outcome {
	digest, err := plan.Digest()
	if err != nil || !p.Covers(digest) {
		w.t.Errorf("%s was to be performed without a permit for its bytes (%v)", c.Operation, err)
	}
	if w.before != nil {
		w.before(c)
	}
	s := sent{c.Operation, plan.Destination, c.Key}
	w.performed = append(w.performed, s)
	if w.hook != nil {
		w.hook(s)
	}
	if w.answer != nil {
		return w.answer(s)
	}
	cost := plan.Ceiling / 2
	return broker.Outcome{
		Result: connectors.Result{
			Reply: map[string]int{"n": len(w.performed)}, Cost: &cost,
			Provenance: connectors.Provenance{Internal: true, Readers: []string{"workspace", "host:" + plan.Destination}, Origins: plan.Resources},
		},
		BytesOut: 10, BytesIn: 20,
	}
}

func (w *fakeWorld) PlanProbe(_ connectors.Call, p connectors.Plan) (connectors.Plan, *abi.Denial) {
	p.Audience, p.Ceiling = []string{"workspace"}, 0
	p.Frozen = connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "GET", URL: "https://" + p.Destination + "/"}}
	return p, nil
}

func (w *fakeWorld) Probe(_ context.Context, p grant.Permit, c connectors.Call, plan, probe connectors.Plan) broker.Outcome {
	digest, err := probe.Digest()
	if err != nil || !p.Covers(digest) {
		w.t.Errorf("%s was looked for without a permit (%v)", c.Operation, err)
	}
	w.probes++
	if w.found == nil {
		return broker.Outcome{Denial: abi.Deny(abi.Upstream, "down", "")}
	}
	return broker.Outcome{Found: *w.found, Result: connectors.Result{Reply: "found it", Cost: new(abi.MicroUSD), Provenance: connectors.Provenance{Internal: true, Readers: []string{"workspace"}, Origins: plan.Resources}}}
}

func (w *fakeWorld) Ready(_ context.Context, p connectors.Plan) *abi.Denial {
	if w.revoked[p.Destination] {
		return abi.Deny(abi.ConnectorRevoked, "the connection was withdrawn", "")
	}
	return nil
}

func (w *fakeWorld) Preview(string, connectors.Plan) host.Preview {
	return host.Preview{Title: "preview"}
}

// house is one workspace in a directory, with one run.
type house struct {
	t     *testing.T
	path  string
	now   time.Time
	world *fakeWorld
	rules broker.Rules
	store *store.Store
	keys  *vault.Keyset
	door  *broker.Broker
	run   host.RunID
	s     *broker.Session
	plays int // how often Rules was asked for

	onRules func(int) // before Rules answers
	kin     *fakeKin
	pass    func() // before and after what a person does where the host may be stopped

	opens func() (*store.Store, error) // nil: storetest.Open
	off   func() bool                  // whether the power was cut; nil: it never is
	left  int                          // the point of a program at which bytes left last
	away  *away                        // nil: the database is always there
}

var (
	module = abi.Digest{1}
	person = host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleOwner}
)

func newHouse(t *testing.T) *house {
	h := &house{t: t, path: t.TempDir(), now: time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC), world: &fakeWorld{t: t, pinned: abi.Digest{5}}, pass: func() {}}
	h.kin = &fakeKin{h: h, ends: host.StateSucceeded, result: `"well"`, label: label.Clean()}
	h.rules = broker.Rules{Cap: 1000, Owner: "ann@example.com"}
	h.permit(3)
	var err error
	h.keys, err = vault.OpenKeyset(filepath.Join(h.path, "keys"), "acme")
	h.must(err)
	h.open()
	t.Cleanup(h.close)
	h.start(500)
	return h
}

// close gives the house's connections and room back before the test ends, where it has
// many houses. Closing it again is harmless.
func (h *house) close() {
	_ = h.store.Close()
	storetest.Drop(h.t, h.path)
}

func (h *house) must(err error) {
	h.t.Helper()
	switch {
	case err == nil:
	case h.off != nil && h.off():
		panic(stopped{})
	default:
		h.t.Fatal(err)
	}
}

func (h *house) write(fn func(*store.Tx) error) {
	h.t.Helper()
	h.must(h.store.Write(h.t.Context(), fn))
}

func (h *house) read(fn func(*store.Tx) error) { h.t.Helper(); h.must(h.store.Read(h.t.Context(), fn)) }

func (h *house) open() {
	h.t.Helper()
	var err error
	if h.opens != nil {
		h.store, err = h.opens()
	} else {
		h.store, err = storetest.Open(h.t, h.path, "acme", h.now)
	}
	h.must(err)
	h.door = broker.New(broker.Config{
		Store: h.store, Keys: h.keys, World: h.world, Now: func() time.Time { return h.now }, Kin: h.kin,
		Rules: func() broker.Rules {
			h.plays++
			if h.onRules != nil {
				h.onRules(h.plays)
			}
			return h.rules
		},
	})
}

// permit puts rules of a version in force that grant all but some operations.
func (h *house) permit(version int64, without ...string) {
	h.t.Helper()
	var grants []grant.Grant
	for _, op := range h.world.Operations() {
		if !slices.Contains(without, op.Name) {
			grants = append(grants, grant.Grant{ID: host.GrantID("grant_" + op.Name), Skill: "triage", Module: module, Operation: op.Name, Resource: "x:**"})
		}
	}
	policy, err := grant.Compile(version, grants, nil, nil)
	h.must(err)
	h.rules.Policy = policy
}

// expire is what a sweep does with questions that nobody answered.
func (h *house) expire() {
	h.t.Helper()
	h.write(func(tx *store.Tx) error { _, err := tx.Expired(h.now); return err })
}

// start makes a new run of the skill and opens it.
func (h *house) start(budget abi.MicroUSD) {
	h.t.Helper()
	h.now = h.now.Add(time.Second)
	id := host.RunID(host.NewID("run", h.now))
	_, wrapped, err := h.keys.NewRunKey(id)
	h.must(err)
	r := store.Run{
		Run: host.Run{ID: id, Workspace: "acme", Skill: "triage", Root: id, OnBehalfOf: person, Module: module, State: host.StateQueued, Budget: budget, CreatedAt: h.now},
		Key: wrapped, Start: []byte("start"), StartLabel: []byte("label"),
	}
	r.Chain = journal.Genesis(&r)
	h.write(func(tx *store.Tx) error { return errors.Join(tx.PutPrincipal(person, h.now), tx.InsertRun(r)) })
	h.run = id
	h.resume()
}

// resume gives the run a worker again and replays nothing.
func (h *house) resume() {
	h.t.Helper()
	var row store.Run
	var recs []store.Record
	h.write(func(tx *store.Tx) (err error) {
		if err = tx.SetState(h.run, host.StateRunning, "", time.Time{}, h.now, host.StateQueued, host.StateWaiting, host.StateRunning); err != nil {
			return err
		}
		if row, err = tx.Run(h.run); err != nil {
			return err
		}
		recs, err = tx.Segment(h.run)
		return err
	})
	key, err := h.keys.OpenRunKey(h.run, row.Key)
	h.must(err)
	log, err := journal.Open(&row, key, recs)
	h.must(err)
	m := &abi.Manifest{Ops: abi.Ops()}
	for _, op := range h.world.Operations() {
		m.Operations = append(m.Operations, abi.OperationUse{Operation: op.Name, Effect: op.Effect, Resource: "x:**"})
	}
	h.s = &broker.Session{
		Run: row.Run, Log: log, Key: key, Held: label.Clean(),
		Subject: grant.Subject{Run: row.ID, Skill: row.Skill, Module: row.Module, Manifest: m, For: row.OnBehalfOf},
	}
}

// crash loses everything that is not on the disk.
func (h *house) crash() {
	h.t.Helper()
	h.must(h.store.Close())
	h.open()
	h.resume()
}

// later lets the last attempt's time pass, so that it may be looked into.
func (h *house) later() { h.now = h.now.Add(time.Minute) }

// resolve is a person's word on what the run waits for, as the workspace writes it.
func (h *house) resolve(r host.Resolution) {
	h.t.Helper()
	h.resume()
	e := h.s.Log.InDoubt()
	if e == nil {
		h.t.Fatal("nothing is in doubt")
	}
	h.must(h.s.Log.Add(journal.Resolved, e.Call, h.now, journal.Body{Verdict: string(r), By: string(person.ID)}, *e.Label))
	h.must(h.s.Flush(h.t.Context(), h.store))
	h.write(func(tx *store.Tx) error {
		_, err := audit.Append(tx, audit.Leaf{Kind: audit.KindResolved, Run: h.run, Call: e.Call, Who: person.ID, Verdict: string(r)})
		return err
	})
	h.crash()
}

// tamper changes the database behind the daemon's back.
func (h *house) tamper(query string) {
	h.t.Helper()
	h.must(h.store.Close())
	storetest.Tamper(h.t, h.path, query)
	h.open()
}

func request(op abi.Op, args string) []byte {
	return fmt.Appendf(nil, `{"op":%q,"v":1,"args":%s}`, op, args)
}

func use(op abi.Op, operation, to string, cost int) []byte {
	return request(op, fmt.Sprintf(`{"operation":%q,"args":{"to":%q,"text":"hello","cost":%d}}`, operation, to, cost))
}

// ok makes a call that must be answered with a result.
func (h *house) ok(n uint32, raw []byte) abi.Reply {
	h.t.Helper()
	r, err := h.door.Do(h.t.Context(), h.s, n, raw)
	h.must(err)
	reply, err := abi.DecodeReply(r.Bytes)
	if err != nil || reply.Error != nil {
		h.t.Fatalf("call %d: %s (%v)", n, r.Bytes, err)
	}
	return reply
}

// refused makes a call that must be answered with a code.
func (h *house) refused(n uint32, raw []byte, code abi.Code) *abi.Denial {
	h.t.Helper()
	r, err := h.door.Do(h.t.Context(), h.s, n, raw)
	h.must(err)
	reply, err := abi.DecodeReply(r.Bytes)
	if err != nil || reply.Error == nil || reply.Error.Code != code {
		h.t.Fatalf("call %d: %s (%v), want %s", n, r.Bytes, err, code)
	}
	if reply.Error.Receipt == "" {
		h.t.Errorf("call %d: the refusal names no receipt", n)
	}
	return reply.Error
}

// waits makes a call that must park the run.
func (h *house) waits(n uint32, raw []byte, kind host.WaitKind) {
	h.t.Helper()
	if r, err := h.door.Do(h.t.Context(), h.s, n, raw); !errors.Is(err, broker.ErrSuspended) {
		h.t.Fatalf("call %d: %s, %v; it must wait", n, r.Bytes, err)
	}
	h.read(func(tx *store.Tx) error {
		row, err := tx.Run(h.run)
		if row.State != host.StateWaiting || row.Wait != kind {
			h.t.Errorf("the run is %s for %q, want %q", row.State, row.Wait, kind)
		}
		if !row.WakeAt.After(h.now) {
			h.t.Errorf("the run waits for %q without an end", row.Wait)
		}
		return err
	})
}

// unknown makes a call again whose attempt a crash cut off: nobody is asked before the
// attempt's time is over, since until then it may still leave.
func (h *house) unknown(n uint32, raw []byte) {
	h.t.Helper()
	h.waits(n, raw, host.WaitTimer)
	h.later()
	h.resume()
	h.waits(n, raw, host.WaitUnknown)
}

func (h *house) approval(n uint32) (a store.Approval) {
	h.t.Helper()
	for _, e := range h.s.Log.Entries() {
		if e.Call == n {
			h.read(func(tx *store.Tx) (err error) { a, err = tx.Approval(e.Approval); return err })
		}
	}
	return a
}

// answer is a person's decision on what call n asked, with the leaf that the
// workspace writes for it.
func (h *house) answer(n uint32, yes bool) {
	h.t.Helper()
	a := h.approval(n)
	d, err := approval.Open(h.keys, &a)
	h.must(err)
	h.write(func(tx *store.Tx) error {
		got, err := approval.Answer(tx, h.keys, a.ID, host.Caller{Principal: person}, approval.Word{Approve: yes, Digest: d.Digest.String()}, nil, h.now)
		if err != nil {
			return err
		}
		_, err = audit.Append(tx, audit.Leaf{Kind: audit.KindApproval, Run: a.Run, Call: a.Call, Approval: a.ID, Verdict: string(got.State)})
		return err
	})
}

func (h *house) leaves() (list []audit.Leaf) {
	h.t.Helper()
	h.must(h.s.Flush(h.t.Context(), h.store))
	h.read(func(tx *store.Tx) error {
		bodies, err := tx.Leaves(0, 10_000)
		for _, b := range bodies {
			l, e := audit.ParseLeaf(b)
			err = errors.Join(err, e)
			list = append(list, l)
		}
		return err
	})
	return list
}

// books holds the audit log to its rules and returns the sums.
func (h *house) books() *audit.Books {
	h.t.Helper()
	b := &audit.Books{}
	for i, l := range h.leaves() {
		if err := b.Add(int64(i), l); err != nil {
			h.t.Errorf("%v: %+v", err, l)
		}
	}
	return b
}

func (h *house) totals() (run store.Total) {
	h.t.Helper()
	h.read(func(tx *store.Tx) (err error) { run, err = tx.SpendTotal(store.RunScope(h.run)); return err })
	return run
}

func (h *house) performed(want int) {
	h.t.Helper()
	if len(h.world.performed) != want {
		h.t.Fatalf("performed %d times, want %d: %v", len(h.world.performed), want, h.world.performed)
	}
}

// lose makes a call that a person says yes to, and during whose attempt the host stops.
func (h *house) lose(n uint32, raw []byte) {
	h.t.Helper()
	h.waits(n, raw, host.WaitApproval)
	h.answer(n, true)
	h.resume()
	h.dies(n, raw)
}

// dies makes a call during which the host stops, after the bytes have left.
func (h *house) dies(n uint32, raw []byte) {
	h.t.Helper()
	h.world.hook = func(sent) { panic("the host stops here") }
	func() {
		defer func() {
			if recover() == nil {
				h.t.Error("the call did not reach the world")
			}
		}()
		_, err := h.door.Do(h.t.Context(), h.s, n, raw)
		h.t.Error(err)
	}()
	h.world.hook = nil
	h.crash()
}
