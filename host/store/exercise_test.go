package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// place is one database that stores are opened on, one after the other.
type place struct {
	open func(holder string) (*store.Store, error)
	// takeOver makes a second store the holder while the first lives on, as after a
	// pause that outlasted the lease. Nil where the kernel's lock does not allow it.
	takeOver func(*testing.T)
}

// everywhere runs a test on each kind of store.
func everywhere(t *testing.T, test func(*testing.T, place)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		test(t, place{
			open: func(holder string) (*store.Store, error) {
				return store.Open(t.Context(), path, "acme", holder, time.Now())
			},
			takeOver: func(t *testing.T) {
				other, err := sql.Open("sqlite", path)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				if _, err := other.Exec(`UPDATE lease SET epoch = epoch + 1`); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
	t.Run("SQLiteOnNetwork", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		test(t, place{open: func(holder string) (*store.Store, error) {
			return store.OpenOn(t.Context(), path, "acme", holder, time.Now(), "NFS")
		}})
	})
	t.Run("NeedsPostgreSQL", func(t *testing.T) {
		d := storetest.Postgres(t).Database(t, nameOf(t), "acme")
		test(t, place{
			open: func(holder string) (*store.Store, error) { return d.Open("acme", holder) },
			takeOver: func(t *testing.T) {
				if _, err := d.Admin.Exec(`UPDATE monroe.lease SET expires_at = 0`); err != nil {
					t.Fatal(err)
				}
				s, err := d.Open("acme", "the next one")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
			},
		})
	})
}

var named atomic.Int64

// nameOf names a database of a test, also when -count runs it twice.
func nameOf(t *testing.T) string {
	return fmt.Sprintf("%.40s_%d", strings.ToLower(strings.Split(t.Name(), "/")[0]), named.Add(1))
}

func (p place) must(t *testing.T) *store.Store {
	t.Helper()
	s, err := p.open("the first one")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func putPrincipal(id string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		return tx.PutPrincipal(host.Principal{ID: host.PrincipalID(id), Role: host.RoleViewer}, time.Now())
	}
}

func leaf(tx *store.Tx, idx int64) error {
	return tx.AppendLeaves(idx, [][]byte{[]byte("x")}, [][]byte{nil})
}

func principals(t *testing.T, s *store.Store) (ids []string) {
	t.Helper()
	err := s.Read(t.Context(), func(tx *store.Tx) error {
		list, err := tx.Principals()
		for _, p := range list {
			ids = append(ids, string(p.ID))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// Law 1.
func TestSecondDaemonIsRefusedAndToldWhoHoldsIt(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		first := p.must(t)
		if _, err := p.open("the second one"); !errors.Is(err, store.ErrFenced) || !strings.Contains(err.Error(), "the first one") {
			t.Fatalf("second open: %v", err)
		}
		if err := first.Write(t.Context(), putPrincipal("still here")); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if again := p.must(t); again.Epoch() != first.Epoch()+1 {
			t.Fatalf("epoch %d after %d", again.Epoch(), first.Epoch())
		}
	})
}

// Laws 1 and 3: the old one wakes up after a take-over.
func TestWriterThatWasTakenOverWritesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		if p.takeOver == nil {
			return // its lock is on the database file itself: nobody else can change the row
		}
		old := p.must(t)
		if err := old.Write(t.Context(), putPrincipal("before")); err != nil {
			t.Fatal(err)
		}
		if old.Reason() != nil {
			t.Fatal("it failed before anything happened")
		}
		p.takeOver(t)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				err := old.Write(context.Background(), putPrincipal(fmt.Sprint("after ", i)))
				if !errors.Is(err, store.ErrFenced) {
					t.Errorf("a fenced write: %v", err)
				}
			})
		}
		wg.Wait()
		<-old.Failed()
		if err := old.Reason(); !errors.Is(err, store.ErrClosed) || !errors.Is(err, store.ErrFenced) {
			t.Errorf("reason: %v", err)
		}
		if ids := principals(t, old); len(ids) != 1 {
			t.Errorf("rows: %v", ids)
		}
	})
}

func TestErrorOfOneWriteUndoesThatWriteOnly(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		boom := errors.New("boom")
		var wg sync.WaitGroup
		errs := make([]error, 60)
		for i := range errs {
			wg.Go(func() {
				errs[i] = s.Write(context.Background(), func(tx *store.Tx) error {
					n, err := tx.LeafCount()
					if err != nil {
						return err
					}
					if err := errors.Join(leaf(tx, n), putPrincipal(fmt.Sprint(i))(tx)); err != nil {
						return err
					}
					switch i % 4 {
					case 1:
						return boom
					case 2:
						panic("also undone")
					case 3: // a statement that the database refuses
						return tx.PutToken(store.Token{ID: "tok", Principal: "nobody", Hash: []byte("h")}, time.Now())
					}
					return nil
				})
			})
		}
		wg.Wait()
		if ids := principals(t, s); len(ids) != 15 {
			t.Errorf("%d rows", len(ids))
		}
		for i, err := range errs {
			if (i%4 == 0) != (err == nil) || i%4 == 1 && !errors.Is(err, boom) {
				t.Errorf("write %d: %v", i, err)
			}
		}
		if err := s.Read(t.Context(), func(tx *store.Tx) error {
			n, err := tx.LeafCount()
			if n != 15 {
				t.Errorf("%d leaves", n)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestReadersSeeNoHalf(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		key := []byte("k")
		put := func(n int) error {
			v := store.KV{KeyMAC: key, Key: key, Value: fmt.Append(nil, n), Label: key}
			return s.Write(context.Background(), func(tx *store.Tx) error {
				return errors.Join(tx.PutKV("a", v), tx.PutKV("b", v))
			})
		}
		if err := put(0); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					err := s.Read(context.Background(), func(tx *store.Tx) error {
						a, err := tx.KV("a", key)
						b, err2 := tx.KV("b", key)
						if !bytes.Equal(a.Value, b.Value) {
							t.Errorf("%s and %s", a.Value, b.Value)
						}
						return errors.Join(err, err2)
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for n := range 100 {
			if err := put(n); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		wg.Wait()
	})
}

func TestReadersCannotWrite(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		if err := s.Read(t.Context(), func(tx *store.Tx) error { return leaf(tx, 0) }); err == nil {
			t.Fatal("a reader wrote")
		}
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return leaf(tx, 0) }); err != nil {
			t.Fatal(err)
		}
	})
}

func TestClosedStoreAnswersErrors(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
			t.Fatalf("write after close: %v", err)
		}
	})
}

var at = time.UnixMilli(1_700_000_000_000).UTC()

func newRun(id host.RunID) store.Run {
	return store.Run{
		Run: host.Run{
			ID: id, Root: id, Workspace: "acme", Skill: "s", State: host.StateQueued, Attended: true, Budget: 7, CreatedAt: at,
			OnBehalfOf: host.Principal{ID: "prin_1", Name: "Ann", Email: "a@b.c", Role: host.RoleOwner},
		},
		Engine: "e", ABI: abi.Version, Key: []byte("key"), Start: []byte("start"), StartLabel: []byte("label"), NextSeq: 1, ReceiptLeaf: -1,
	}
}

// TestApprovalIsUsedOnceAndCapHoldsUnderAThousand: of 1,000 who use one approval at the same time one succeeds, and
// what they reserve never exceeds the cap.
func TestApprovalIsUsedOnceAndCapHoldsUnderAThousand(t *testing.T) {
	const ceiling, each = 100, 7
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		a := store.Approval{Approval: host.Approval{ID: "appr_1", Run: "run_1", State: host.ApprovalApproved, CreatedAt: at, ExpiresAt: at.Add(time.Hour)}, BoundMAC: []byte("m"), Detail: []byte("d")}
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			return errors.Join(putPrincipal("prin_1")(tx), tx.InsertRun(newRun("run_1")), tx.InsertApproval(a))
		}); err != nil {
			t.Fatal(err)
		}
		var used, reserved atomic.Int64
		full := errors.New("full")
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				err := s.Write(context.Background(), func(tx *store.Tx) error {
					return tx.MoveApproval("appr_1", host.ApprovalApproved, host.ApprovalUsed, "", at, true)
				})
				if err == nil {
					used.Add(1)
				} else if !errors.Is(err, host.ErrConflict) {
					t.Error(err)
				}
				err = s.Write(context.Background(), func(tx *store.Tx) error {
					// Reserve first and look then, so that a refusal has something to undo.
					if err := tx.Reserve("run_1", "run_1", uint32(i), 0, "2026-11", each); err != nil {
						return err
					}
					total, err := tx.SpendTotal(store.PeriodScope("2026-11"))
					if err == nil && total.Reserved > ceiling {
						err = full
					}
					return err
				})
				if err == nil {
					reserved.Add(each)
				} else if !errors.Is(err, full) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if used.Load() != 1 || reserved.Load() != ceiling/each*each {
			t.Errorf("used %d times, reserved %d", used.Load(), reserved.Load())
		}
		if err := s.Read(t.Context(), func(tx *store.Tx) error {
			total, err := tx.SpendTotal(store.PeriodScope("2026-11"))
			if int64(total.Reserved) != reserved.Load() {
				t.Errorf("the total says %d, the answers %d", total.Reserved, reserved.Load())
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestEveryMethod calls each method of Tx, so that a statement that one database does
// not understand cannot hide.
func TestEveryMethod(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		s := p.must(t)
		called := map[string]bool{}
		// in runs fn in one transaction, and fails the test for its error.
		in := func(fn func(tx *store.Tx) error) {
			t.Helper()
			if err := s.Write(t.Context(), fn); err != nil {
				t.Error(err)
			}
		}
		// is notes a method and compares what it returned.
		is := func(method string, got, want any) {
			t.Helper()
			called[method] = true
			if want, ok := want.(error); ok {
				if err, _ := got.(error); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", method, err, want)
				}
				return
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v, want %+v", method, got, want)
			}
		}
		sha := abi.Digest{1}
		ann := newRun("run_1").OnBehalfOf

		in(func(tx *store.Tx) error {
			is("Epoch", tx.Epoch(), s.Epoch())
			is("Touch", tx.Touch(), nil)
			_, err := tx.Workspace()
			is("Workspace", err, host.ErrNotFound)
			w := store.Workspace{Config: "c", Policies: map[string]string{"p": "q"}, Cap: 5}
			for n := int64(1); n <= 2; n++ {
				v, err := tx.PutWorkspace(w, false, at)
				is("PutWorkspace", []any{v, err}, []any{n, nil})
			}
			w.Version = 2
			v, err2 := tx.PutWorkspace(w, true, at)
			is("PutWorkspace", []any{v, err2}, []any{int64(2), nil})
			got, err := tx.Workspace()
			is("Workspace", got, w)
			return err
		})
		in(func(tx *store.Tx) error {
			is("PutPrincipal", tx.PutPrincipal(host.Principal{ID: ann.ID, Role: host.RoleViewer}, at), nil)
			is("PutPrincipal", tx.PutPrincipal(ann, at), nil)
			got, err := tx.Principal(ann.ID)
			is("Principal", got, ann)
			list, err2 := tx.Principals()
			is("Principals", list, []host.Principal{ann})
			tok := store.Token{ID: "tok_1", Principal: ann.ID, Hash: []byte("h"), Scopes: []host.TokenScope{"read", "run"}, ExpiresAt: at.Add(time.Hour)}
			is("PutToken", tx.PutToken(tok, at), nil)
			c, err3 := tx.Caller([]byte("h"), at)
			is("Caller", c, host.Caller{Principal: ann, Token: "tok_1", Scopes: tok.Scopes})
			_, late := tx.Caller([]byte("h"), at.Add(2*time.Hour))
			is("Caller", late, host.ErrNotFound)
			return errors.Join(err, err2, err3)
		})
		in(func(tx *store.Tx) error {
			m := store.Module{SHA256: sha, Image: sha, Artefact: sha, MAC: []byte("m"), Engine: "e", Size: 9, Manifest: "{}", PushedBy: "Ann", PushedAt: at}
			is("PutModule", tx.PutModule("skill", m), nil)
			is("PutModule", tx.PutModule("skill", m), nil)
			is("KeepModule", tx.KeepModule(m), nil)
			got, err := tx.Module(sha)
			got.PushedAt = got.PushedAt.UTC()
			is("Module", got, m)
			got, err2 := tx.Skill("skill")
			got.PushedAt = got.PushedAt.UTC()
			is("Skill", got, m)
			names, list, err3 := tx.Skills()
			is("Skills", []any{names, len(list)}, []any{[]string{"skill"}, 1})
			g := []store.Grant{{ID: "g", Skill: "skill", Module: sha, Operation: "o", Resource: "r:x", Gate: "ask"}}
			is("ReplaceGrants", tx.ReplaceGrants(g, "Ann", at), nil)
			grants, err4 := tx.Grants()
			is("Grants", grants, g)
			return errors.Join(err, err2, err3, err4)
		})
		in(func(tx *store.Tx) error {
			r := newRun("run_1")
			is("InsertRun", tx.InsertRun(r), nil)
			got, err := tx.Run("run_1")
			is("Run", got, r)
			list, err2 := tx.Runs(10)
			is("Runs", list, []store.Run{r})
			pins, err3 := tx.Pins()
			is("Pins", pins, []host.Pins{{Run: "run_1", Skill: "s", State: host.StateQueued, Engine: "e", ABI: abi.Version, Module: strings.Repeat("00", 32)}})
			is("Pins", err3, nil)
			busy, err3 := tx.Busy()
			is("Busy", busy, []host.RunID(nil))
			rec := []store.Record{
				{Seq: 1, Call: 1, Kind: "CALL", Version: 1, Time: at, Body: []byte("b"), Label: []byte("l"), Chain: abi.Digest{2}},
				{Seq: 2, Call: 1, Kind: "RESULT", Version: 1, Time: at, Body: []byte("c"), Label: []byte("l"), Chain: abi.Digest{3}},
			}
			is("Append", tx.Append("run_1", 1, 3, rec), nil)
			recs, err4 := tx.Records("run_1")
			is("Records", recs, rec)
			part, err8 := tx.RecordsFrom("run_1", 2, 3)
			is("RecordsFrom", []any{part, err8}, []any{rec[1:], nil})
			whole, err9 := tx.Segment("run_1")
			is("Segment", []any{whole, err9}, []any{rec, nil})
			var seqs []int64
			each := func(r *store.Record) error {
				seqs = append(seqs, r.Seq)
				clear(r.Body) // it is the caller's until it returns
				return nil
			}
			is("EachOfSegment", []any{tx.EachOfSegment("run_1", each), seqs}, []any{nil, []int64{1, 2}})
			seqs = nil
			is("EachFrom", []any{tx.EachFrom("run_1", 2, 3, each), seqs}, []any{nil, []int64{2}})
			enough := errors.New("enough")
			is("EachOfSegment", tx.EachOfSegment("run_1", func(*store.Record) error { return enough }), enough)
			got, err5 := tx.Run("run_1")
			is("Run", []any{got.NextSeq, got.JournalBytes, got.Calls, got.Chain}, []any{int64(3), int64(2), 3, abi.Digest{3}})
			is("SetState", tx.SetState("run_1", host.StateRunning, "", time.Time{}, at, host.StateQueued, host.StateWaiting), nil)
			is("SetState", tx.SetState("run_1", host.StateWaiting, host.WaitBudget, at, at, host.StateRunning), nil)
			is("SetState", tx.SetState("run_1", host.StateRunning, "", time.Time{}, at, host.StateQueued), host.ErrConflict)
			waiting, err6 := tx.Waiting(host.WaitBudget)
			is("Waiting", waiting, []host.RunID{"run_1"})
			due, err7 := tx.Due(at, 5)
			is("MakeDue", tx.MakeDue(host.WaitBudget, at), nil)
			is("Due", due, []host.RunID{"run_1"})
			child := got
			child.ID, child.Parent, child.Key = "run_2", "run_1", nil
			is("InsertRun", tx.InsertRun(child), nil)
			open, err8 := tx.Open("run_1")
			is("Open", open, []host.RunID{"run_2"})
			kin, err9 := tx.Kin("run_1", "run_1")
			is("Kin", kin, store.Kin{Runs: 2, Children: 1})
			tree, err10 := tx.Tree("run_1")
			is("Tree", []any{len(tree), tree[1].Parent}, []any{2, host.RunID("run_1")})
			acted, err11 := tx.Acted("run_1")
			is("Acted", acted, false)
			is("SetState", tx.SetState("run_1", host.StateWaiting, host.WaitSkill, time.Time{}, at, host.StateWaiting), nil)
			due, err12 := tx.Due(at, 5)
			is("Due", due, []host.RunID{"run_2"})
			is("EndRun", tx.EndRun("run_2", store.End{State: host.StateFailed, At: at.Add(100_000 * time.Hour)}), nil) // too late to be erased below
			is("Append", tx.Append("run_2", 1, 1, []store.Record{{Seq: 1, Body: []byte("b"), Label: []byte("l")}}), host.ErrConflict)
			due, err13 := tx.Due(at, 5)
			is("Due", due, []host.RunID{"run_1"})
			is("SetState", tx.SetState("run_1", host.StateWaiting, host.WaitSkill, at, at, host.StateWaiting), nil)
			due, err14 := tx.Due(at, 5) // for two reasons, and yet once
			is("Due", due, []host.RunID{"run_1"})
			return errors.Join(err, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11, err12, err13, err14)
		})
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			return tx.Append("run_1", 1, 3, []store.Record{{Seq: 9, Body: []byte("b"), Label: []byte("l")}})
		}); !errors.Is(err, host.ErrConflict) {
			t.Errorf("a record out of order: %v", err)
		}
		in(func(tx *store.Tx) error {
			next := []store.Record{{Seq: 3, Call: 4, Kind: "CONTINUE", Version: 1, Time: at, Body: []byte("n"), Label: []byte("l"), Chain: abi.Digest{4}}}
			is("Append", tx.Append("run_1", 3, 4, next), nil)
			marks, err := tx.Marks("run_1")
			is("Marks", marks, []store.Mark{{Seq: 3, Call: 4, Time: at}})
			recs, err2 := tx.Segment("run_1")
			is("Segment", recs, next)
			return errors.Join(err, err2)
		})
		in(func(tx *store.Tx) error {
			a := store.Approval{
				Approval: host.Approval{ID: "appr_1", Run: "run_1", Call: 1, Skill: "s", Operation: "o", Effect: "send", State: host.ApprovalPending, Why: "w", Ceiling: 3, CreatedAt: at, ExpiresAt: at.Add(time.Hour), Requester: ann.ID},
				BoundMAC: []byte("m"), Detail: []byte("d"), RunKey: []byte("key"),
			}
			key, err := tx.RunKey("run_1")
			is("RunKey", []any{key, err}, []any{a.RunKey, nil})
			is("InsertApproval", tx.InsertApproval(a), nil)
			got, err := tx.Approval("appr_1")
			is("Approval", got, a)
			for _, state := range []host.ApprovalState{"", host.ApprovalPending} {
				list, err := tx.Approvals(state)
				is("Approvals", []any{list, err}, []any{[]store.Approval{a}, nil})
			}
			asked, err9 := tx.Questions(ann.ID, at, 5)
			is("Questions", []any{asked, err9}, []any{[]time.Time{at}, nil}) // open, though it is not newer
			is("MoveApproval", tx.MoveApproval("appr_1", host.ApprovalPending, host.ApprovalApproved, "Ann", at, true), nil)
			is("MoveApproval", tx.MoveApproval("appr_1", host.ApprovalApproved, host.ApprovalUsed, "", at.Add(2*time.Hour), true), host.ErrConflict)
			is("SetVerdictMAC", tx.SetVerdictMAC("appr_1", []byte("v")), nil)
			got, err3 := tx.Approval("appr_1")
			is("Approval", []any{got.State, got.DecidedBy, got.DecidedAt, got.VerdictMAC}, []any{host.ApprovalApproved, "Ann", at, []byte("v")})
			runs, err4 := tx.Expired(at)
			is("Expired", runs, []host.RunID(nil))
			runs, err5 := tx.Expired(at.Add(2 * time.Hour))
			is("Expired", runs, []host.RunID{"run_1"})
			void, err8 := tx.VoidAll()
			is("VoidAll", []any{void, err8}, []any{[]host.RunID(nil), nil})
			is("VoidApproval", tx.VoidApproval("run_1", 1), nil)
			is("VoidApprovals", tx.VoidApprovals("run_1"), nil)
			for range 2 {
				is("Reject", tx.Reject("s", "o", []byte("d")), nil)
			}
			n, err6 := tx.Rejections("s", "o", []byte("d"))
			is("Rejections", n, 2)
			is("Forgive", tx.Forgive("s", "o", []byte("d")), nil)
			n, err7 := tx.Rejections("s", "o", []byte("d"))
			is("Rejections", n, 0)
			return errors.Join(err, err3, err4, err5, err6, err7)
		})
		in(func(tx *store.Tx) error {
			for call := range uint32(3) {
				is("Reserve", tx.Reserve("run_1", "run_1", call, 1, "2026-11", 10), nil)
			}
			open, err := tx.OpenReservations("run_1", 1)
			is("OpenReservations", open, []store.Reservation{{Call: 1, Attempt: 1, Period: "2026-11", Amount: 10}})
			is("Settle", tx.Settle("run_1", 1, 1, 4), nil)
			is("Settle", tx.Settle("run_1", 1, 1, 4), host.ErrConflict)
			is("SetWarned", tx.SetWarned("period:2026-11", 80), nil)
			is("SetWarned", tx.SetWarned("period:2026-11", 50), nil)
			both, err5 := tx.SpendTotals("none", "period:2026-11")
			is("SpendTotals", both, []store.Total{{}, {Reserved: 20, Settled: 4, Warned: 80}})
			total, err2 := tx.SpendTotal("period:2026-11")
			is("SpendTotal", total, store.Total{Reserved: 20, Settled: 4, Warned: 80})
			is("Hold", tx.Hold("run_1", "run_1", 7, "2026-11", 5), nil)
			amount, period, err6 := tx.UseHold("run_1", 7, 1)
			is("UseHold", []any{amount, period, err6}, []any{abi.MicroUSD(5), "2026-11", nil})
			is("Settle", tx.Settle("run_1", 7, 1, 0), nil)
			none, err10 := tx.CancelMark("run_1")
			is("CancelMark", []any{none, err10}, []any{"", nil})
			is("Cancel", tx.Cancel("run_1", "a reason"), nil)
			is("Cancel", tx.Cancel("run_9", "a reason"), host.ErrConflict)
			why, err11 := tx.CancelMark("run_1")
			is("CancelMark", []any{why, err11}, []any{"a reason", nil})
			marked, err12 := tx.Cancelled()
			is("Cancelled", []any{len(marked), marked[0].ID, marked[0].Cancel, err12}, []any{1, host.RunID("run_1"), "a reason", nil})
			is("ReleaseHold", tx.ReleaseHold("run_1", 7), nil)
			is("Carve", tx.Carve("run_1", "run_2", 6), nil)
			spent, err7 := tx.GiveBack("run_2")
			is("GiveBack", []any{spent, err7}, []any{abi.MicroUSD(0), nil})
			_, twice := tx.GiveBack("run_2")
			is("GiveBack", twice, host.ErrConflict)
			attempts, err8 := tx.OpenAttempts("run_1")
			is("OpenAttempts", []any{attempts, err8}, []any{[]store.Reservation{{Call: 0, Attempt: 1, Period: "2026-11", Amount: 10}, {Call: 2, Attempt: 1, Period: "2026-11", Amount: 10}}, nil})
			is("SettleRun", tx.SettleRun("run_1"), nil)
			total, err3 := tx.SpendTotal("run:run_1")
			is("SpendTotal", total, store.Total{Settled: 24})
			is("EndRun", tx.EndRun("run_1", store.End{State: host.StateSucceeded, Receipt: "r", Leaf: 0, Result: []byte("x"), ResultLabel: []byte("l"), At: at}), nil)
			is("EndRun", tx.EndRun("run_1", store.End{State: host.StateFailed, At: at}), host.ErrConflict)
			is("Cancel", tx.Cancel("run_1", "too late"), host.ErrConflict)
			marked, err13 := tx.Cancelled()
			is("Cancelled", []any{len(marked), err13}, []any{0, nil})
			costs, err4 := tx.Costs(abi.Digest{}, 5)
			is("Costs", costs, []abi.MicroUSD{24})
			others, err9 := tx.Costs(abi.Digest{1}, 5) // another module's
			is("Costs", others, []abi.MicroUSD(nil))
			return errors.Join(err, err2, err3, err4, err5, err9)
		})
		in(func(tx *store.Tx) error { // the form that an erased run has
			later := at.Add(time.Hour)
			list, err := tx.Erasable(later, 5)
			is("Erasable", list, []host.RunID{"run_1"})
			is("InsertRun", tx.InsertRun(newRun("run_3")), nil)
			is("EraseRun", tx.EraseRun("run_3", sha, later), host.ErrConflict) // it has not ended
			is("EraseRun", tx.EraseRun("run_1", sha, later), nil)
			is("EraseRun", tx.EraseRun("run_1", sha, later), host.ErrConflict)
			list, err2 := tx.Erasable(later, 5)
			is("Erasable", list, []host.RunID(nil))
			r, err3 := tx.Run("run_1")
			is("EraseRun", []any{r.Key, len(r.Start), len(r.StartLabel), r.Result, r.ResultLabel, r.Genesis, r.ErasedAt}, []any{[]byte(nil), 0, 0, []byte(nil), []byte(nil), sha, later})
			recs, err4 := tx.Segment("run_1")
			is("Segment", len(recs), 1)
			recs, err7 := tx.Records("run_1")
			for i, content := range []string{"b", "c", "n"} {
				is("EraseRun", []any{len(recs[i].Body), len(recs[i].Label), recs[i].BodySum, recs[i].Erased()}, []any{0, 0, abi.Digest(sha256.Sum256([]byte(content))), true})
			}
			marks, err5 := tx.Marks("run_1")
			is("Marks", len(marks), 1)
			a, err6 := tx.Approval("appr_1")
			is("EraseRun", []any{len(a.Detail), a.RunKey}, []any{0, []byte(nil)})
			return errors.Join(err, err2, err3, err4, err5, err6, err7)
		})
		in(func(tx *store.Tx) error {
			label, size, err := tx.KVNamespace("n")
			is("KVNamespace", []any{label, size}, []any{[]byte(nil), int64(0)})
			v := store.KV{KeyMAC: []byte("m"), Key: []byte("k"), Value: []byte("v1"), Label: []byte("l")}
			is("PutKVNamespace", tx.PutKVNamespace("n", []byte("l")), nil)
			is("PutKVNamespace", tx.PutKVNamespace("n", []byte("l2")), nil)
			is("PutKV", tx.PutKV("n", v), nil)
			is("PutKV", tx.PutKV("n", v), nil)
			got, err2 := tx.KV("n", []byte("m"))
			is("KV", got, v)
			list, err3 := tx.KVList("n")
			is("KVList", list, []store.KV{v})
			label, size, err4 := tx.KVNamespace("n")
			is("KVNamespace", []any{label, size}, []any{[]byte("l2"), int64(3)})
			old := []byte("other")
			runs, err5 := tx.OldRunKeys(old, 5)
			is("OldRunKeys", []any{runs, err5}, []any{map[host.RunID][]byte{"run_3": []byte("key")}, nil}) // run_1 is erased
			is("PutRunKey", tx.PutRunKey("run_3", []byte("other key")), nil)
			is("PutRunKey", tx.PutRunKey("run_1", []byte("other key")), host.ErrConflict)
			runs, err5 = tx.OldRunKeys(old, 5)
			is("OldRunKeys", []any{runs, err5}, []any{map[host.RunID][]byte{}, nil})
			spaces, values, err6 := tx.OldKV(old, 5)
			is("OldKV", []any{spaces, values, err6}, []any{[]string{"n"}, []store.KV{v}, nil})
			labels, err7 := tx.OldKVNamespaces(old, 5)
			is("OldKVNamespaces", []any{labels, err7}, []any{map[string][]byte{"n": []byte("l2")}, nil})
			is("DeleteKV", tx.DeleteKV("n", []byte("m")), nil)
			_, gone := tx.KV("n", []byte("m"))
			is("KV", gone, host.ErrNotFound)
			return errors.Join(err, err2, err3, err4)
		})
		in(func(tx *store.Tx) error {
			for i := range int64(3) {
				n, err := tx.LeafCount()
				is("LeafCount", []any{n, err}, []any{i, nil})
				is("AppendLeaves", tx.AppendLeaves(i, [][]byte{fmt.Append(nil, i)}, [][]byte{[]byte("h")}), nil)
			}
			h, err := tx.LeafHashes(2)
			is("LeafHashes", h, []byte("h"))
			bodies, err2 := tx.Leaves(1, 5)
			is("Leaves", bodies, [][]byte{[]byte("1"), []byte("2")})
			size, _, note, err3 := tx.LastCheckpoint()
			is("LastCheckpoint", []any{size, note}, []any{int64(0), []byte(nil)})
			is("PutCheckpoint", tx.PutCheckpoint(3, []byte("note"), at), nil)
			is("PutCheckpoint", tx.PutCheckpoint(3, []byte("other"), at), nil)
			size, when, note, err4 := tx.LastCheckpoint()
			is("LastCheckpoint", []any{size, when, note}, []any{int64(3), at, []byte("note")})
			return errors.Join(err, err2, err3, err4)
		})
		in(func(tx *store.Tx) error {
			held, voided, err := tx.Restored(at, at.Add(time.Hour))
			is("Restored", []any{held, voided, err}, []any{int64(1), 0, nil})
			r, err := tx.Run("run_3")
			is("Restored", []any{r.State, r.Wait, r.WakeAt}, []any{host.StateWaiting, host.WaitRestored, at.Add(time.Hour)})
			due, err2 := tx.Due(at.Add(time.Hour-1), 5)
			is("Due", due, []host.RunID(nil))
			return errors.Join(err, err2)
		})
		if err := s.Write(t.Context(), putPrincipal("late")); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a write after Restored: %v", err)
		}
		for i := range reflect.TypeFor[*store.Tx]().NumMethod() {
			if m := reflect.TypeFor[*store.Tx]().Method(i).Name; !called[m] {
				t.Errorf("%s was not called: add it", m)
			}
		}
	})
}
