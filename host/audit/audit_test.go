package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

var now = time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)

type trail struct {
	store  *store.Store
	keys   *vault.Keyset
	bodies [][]byte
	notes  map[int64][]byte
}

// newTrail is a log of n leaves with a checkpoint after each.
func newTrail(t *testing.T, n int) *trail {
	t.Helper()
	dir := t.TempDir()
	s, err := storetest.Open(t, dir, "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	keys, err := vault.OpenKeyset(filepath.Join(dir, "keys"), "acme")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := keys.Signer()
	if err != nil {
		t.Fatal(err)
	}
	x := &trail{store: s, keys: keys, notes: map[int64][]byte{}}
	for i := range n {
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			idx, err := audit.Append(tx, audit.Leaf{Kind: audit.KindCall, Run: "run_1", Call: uint32(i + 1), Rule: "grant:x", TimeMS: now.UnixMilli()})
			if err != nil || idx != int64(i) {
				return fmt.Errorf("leaf %d got index %d: %w", i, idx, err)
			}
			x.notes[idx+1], err = audit.Checkpoint(tx, idx+1, signer)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Read(t.Context(), func(tx *store.Tx) (err error) { x.bodies, err = tx.Leaves(0, n+1); return err }); err != nil || len(x.bodies) != n {
		t.Fatal(len(x.bodies), err)
	}
	return x
}

func (x *trail) head(t *testing.T, n int64) audit.Head {
	t.Helper()
	h, err := audit.OpenCheckpoint(x.notes[n], x.keys.Verifier())
	if err != nil || h.Size != n || h.Origin != "monroe/acme" {
		t.Fatalf("%+v, %v", h, err)
	}
	return h
}

// check is what anyone does who holds leaves and a checkpoint.
func check(bodies [][]byte, h audit.Head) error {
	var l audit.Log
	for _, b := range bodies {
		if err := l.Add(b); err != nil {
			return err
		}
	}
	return l.Check(h)
}

// Law 1.
func TestALeafIsAppendedWithWhatItWitnessesOrNotAtAll(t *testing.T) {
	x := newTrail(t, 3)
	boom := errors.New("boom")
	if err := x.store.Write(t.Context(), func(tx *store.Tx) error {
		if _, err := audit.Append(tx, audit.Leaf{Kind: audit.KindCall}); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := x.store.Write(t.Context(), func(tx *store.Tx) error {
		n, err := audit.Append(tx, audit.Leaf{Kind: audit.KindCall})
		if n != 3 || audit.Receipt(n) != "rcpt_3" {
			t.Errorf("leaf %d after one that was undone", n)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// Laws 2 and 3.
func TestChangedRemovedOrReorderedLeavesAreFound(t *testing.T) {
	const n = 13
	x := newTrail(t, n)
	h := x.head(t, n)
	if err := check(x.bodies, h); err != nil {
		t.Fatal(err)
	}
	flips := 0
	for i := range x.bodies {
		for j := range x.bodies[i] {
			bodies := slices.Clone(x.bodies)
			bodies[i] = slices.Clone(bodies[i])
			bodies[i][j] ^= 1 << (j % 8)
			if err := check(bodies, h); !errors.Is(err, audit.ErrTampered) {
				t.Fatalf("byte %d of leaf %d: %v", j, i, err)
			}
			flips++
		}
		for name, bodies := range map[string][][]byte{
			"removed": slices.Delete(slices.Clone(x.bodies), i, i+1), "twice": slices.Insert(slices.Clone(x.bodies), i, x.bodies[i]),
		} {
			if name == "twice" && i == n-1 {
				continue // that is the log with one leaf more, which the checkpoint says nothing of
			}
			if err := check(bodies, h); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("leaf %d %s: %v", i, name, err)
			}
		}
		for j := range i {
			bodies := slices.Clone(x.bodies)
			bodies[i], bodies[j] = bodies[j], bodies[i]
			if err := check(bodies, h); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("leaves %d and %d reordered: %v", i, j, err)
			}
		}
	}
	t.Logf("%d flips of a byte", flips)
	for size := int64(1); size <= n; size++ {
		if err := check(x.bodies, x.head(t, size)); err != nil {
			t.Errorf("the checkpoint of %d leaves is not extended: %v", size, err)
		}
		if err := check(x.bodies[:size-1], x.head(t, size)); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("a log cut off before leaf %d passed: %v", size, err)
		}
	}
}

func TestACheckpointIsSignedAndOfThisWorkspace(t *testing.T) {
	x := newTrail(t, 4)
	note := x.notes[4]
	head, err := audit.OpenCheckpoint(note, x.keys.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	for i := range note {
		changed := bytes.Clone(note)
		changed[i] ^= 1
		if h, err := audit.OpenCheckpoint(changed, x.keys.Verifier()); err == nil {
			if h != head { // the last letter of a base64 text has bits that mean nothing
				t.Errorf("byte %d changed, and it says %+v", i, h)
			}
		} else if !errors.Is(err, audit.ErrTampered) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	other, err := vault.OpenKeyset(filepath.Join(t.TempDir(), "keys"), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.OpenCheckpoint(note, other.Verifier()); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("another key's verifier: %v", err)
	}
	if _, err := audit.OpenCheckpoint(note, "garbage"); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("no key: %v", err)
	}
}

func TestBooks(t *testing.T) {
	yes := audit.Leaf{Kind: audit.KindApproval, Approval: "appr_1", Verdict: "approved"}
	no := audit.Leaf{Kind: audit.KindApproval, Approval: "appr_1", Verdict: "rejected"}
	allow := audit.Leaf{Kind: audit.KindDecision, Run: "run_1", Call: 1, Verdict: "allow", Effect: abi.EffectSend, Approval: "appr_1", Action: "a", Reserved: 5}
	ask := allow
	ask.Verdict = "ask"
	metered := audit.Leaf{Kind: audit.KindDecision, Run: "run_1", Call: 2, Verdict: "allow", Effect: abi.EffectMetered, Action: "m", Reserved: 5}
	spent := audit.Leaf{Kind: audit.KindOutcome, Run: "run_1", Call: 2, Action: "m", Cost: 5}
	out := audit.Leaf{Kind: audit.KindOutcome, Run: "run_1", Call: 1, Action: "a", Cost: 2}
	with := func(l audit.Leaf, change func(*audit.Leaf)) audit.Leaf { change(&l); return l }
	for name, c := range map[string]struct {
		leaves []audit.Leaf
		bad    bool
	}{
		"a usual effect":                {[]audit.Leaf{ask, yes, allow, out}, false},
		"a metered call":                {[]audit.Leaf{metered, spent}, false},
		"tried again after a crash":     {[]audit.Leaf{ask, yes, allow, allow, out}, false},
		"a refusal":                     {[]audit.Leaf{{Kind: audit.KindCall, Code: abi.Scope}}, false},
		"more than reserved, said so":   {[]audit.Leaf{metered, with(spent, func(l *audit.Leaf) { l.Cost, l.Detail = 6, audit.OverReserved })}, false},
		"more than reserved":            {[]audit.Leaf{metered, with(spent, func(l *audit.Leaf) { l.Cost = 6 })}, true},
		"without an approval":           {[]audit.Leaf{with(allow, func(l *audit.Leaf) { l.Approval = "" })}, true},
		"asked and not answered":        {[]audit.Leaf{ask, allow, out}, true},
		"rejected":                      {[]audit.Leaf{ask, no, allow, out}, true},
		"answered afterwards":           {[]audit.Leaf{ask, allow, yes, out}, true},
		"used twice":                    {[]audit.Leaf{yes, allow, out, allow}, true},
		"used twice, another call":      {[]audit.Leaf{yes, allow, with(allow, func(l *audit.Leaf) { l.Call = 3 })}, true},
		"used twice, another run":       {[]audit.Leaf{yes, allow, with(allow, func(l *audit.Leaf) { l.Run = "run_2" })}, true},
		"used twice, another action":    {[]audit.Leaf{yes, allow, with(allow, func(l *audit.Leaf) { l.Action = "b" })}, true},
		"an outcome without a decision": {[]audit.Leaf{out}, true},
		"an outcome of a refusal":       {[]audit.Leaf{with(allow, func(l *audit.Leaf) { l.Verdict = "deny" }), out}, true},
		"two outcomes":                  {[]audit.Leaf{yes, allow, out, out}, true},
		"an outcome of another action":  {[]audit.Leaf{yes, allow, with(out, func(l *audit.Leaf) { l.Action = "b" })}, true},
		"an effect that is not known":   {[]audit.Leaf{with(metered, func(l *audit.Leaf) { l.Effect = "erase" })}, true},
		"a kind that is not known":      {[]audit.Leaf{{Kind: "news"}}, true},
	} {
		var b audit.Books
		var err error
		for i, l := range c.leaves {
			if e := b.Add(int64(i), l); e != nil {
				err = e
			}
		}
		if c.bad != (err != nil) || err != nil && !errors.Is(err, audit.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var b audit.Books
	for i, l := range []audit.Leaf{yes, allow, metered, spent, {Kind: audit.KindCall, Code: abi.Scope}, {Kind: audit.KindAlarm}} {
		if err := b.Add(int64(i), l); err != nil {
			t.Fatal(err)
		}
	}
	if b.Calls != 2 || b.Effects != 1 || b.Denials != 1 || b.Approvals != 1 || b.Alarms != 1 || b.Cost != 5 || b.InDoubt() != 1 {
		t.Errorf("%+v, %d in doubt", b, b.InDoubt())
	}
}

func TestALeafThatIsNotJSONIsTampered(t *testing.T) {
	if _, err := audit.ParseLeaf([]byte(`{"v":1`)); !errors.Is(err, audit.ErrTampered) {
		t.Error(err)
	}
	if l, err := audit.ParseLeaf([]byte(`{"v":1,"time_ms":1772712000000,"kind":"call"}`)); err != nil || !l.Time().Equal(now) {
		t.Error(l, err)
	}
}
