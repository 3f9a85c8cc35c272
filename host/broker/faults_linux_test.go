package broker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"modernc.org/sqlite"

	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/faultfs"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

func serveDisk() { faultfs.Main() }

// outage is one workspace on a disk whose power is cut. What is outside, the world and the
// person, goes on.
type outage struct {
	t        *testing.T
	disk     *faultfs.Disk
	template *house // whose directory the disk begins with
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{t: t, disk: faultfs.Start(t), template: newHouse(t)}
	o.template.close()
	return o
}

// play carries a program to its end. The n-th of cuts is in force while the workspace is
// opened for the n-th time and until the power fails. seen is how many operations of the
// last one that was in force there were.
func (o *outage) play(program []string, cuts ...faultfs.Rule) (h *house, keys map[string]string, seen int) {
	o.t.Helper()
	o.disk.Format(o.template.path)
	h = &house{t: o.t, now: o.template.now, run: o.template.run, rules: o.template.rules, pass: func() {}}
	h.world = &fakeWorld{t: o.t, pinned: o.template.world.pinned}
	h.kin = &fakeKin{h: h, label: label.Clean()}
	h.off = func() bool { return o.disk.Hit() != "" }
	h.opens = func() (*store.Store, error) {
		return store.OpenOn(o.t.Context(), filepath.Join(h.path, "db"), "acme", "test", h.now, "")
	}
	arrived := map[string]bool{}
	found := false
	h.world.found = &found
	h.world.hook = func(s sent) { arrived[s.operation+s.to] = true }
	said := map[int]string{} // what the guest was told
	for {
		var rule faultfs.Rule
		if len(cuts) > 0 {
			rule, cuts = cuts[0], cuts[1:]
		}
		h.path = o.disk.Mount()
		o.disk.Inject(rule)
		ended := o.powered(h, program, arrived, &found, said)
		if rule.At > 0 {
			seen = o.disk.Seen()
		}
		if ended {
			return h, counted(o.t, h, program), seen
		}
		if h.store != nil {
			_ = h.store.Close()
		}
		h.store = nil
		o.disk.Unmount()
	}
}

// end gives the disk back.
func (o *outage) end(h *house) {
	h.close()
	o.disk.Unmount()
}

// powered opens the workspace and carries the program on until its end, or until the power
// is cut.
func (o *outage) powered(h *house, program []string, arrived map[string]bool, found *bool, said map[int]string) (ended bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(stopped); !ok {
				panic(r)
			}
		}
	}()
	var err error
	h.keys, err = vault.OpenKeyset(filepath.Join(h.path, "keys"), "acme")
	h.must(err)
	h.open()
	h.resume()
	for n := int(h.s.Log.Base()) + 1; n <= len(program); {
		to := fmt.Sprintf("to%d", n)
		raw := steps[program[n-1]](to)
		*found = arrived["box.send"+to]
		r, err := h.door.Do(o.t.Context(), h.s, uint32(n), raw)
		if errors.Is(err, broker.ErrSuspended) {
			h.help(arrived)
			continue
		}
		if errors.Is(err, broker.ErrContinued) {
			h.resume()
			n++
			continue
		}
		h.must(err)
		if !strings.HasPrefix(string(r.Bytes), `{"ok"`) {
			o.t.Fatalf("%v: call %d was refused: %s", program, n, r.Bytes)
		}
		if before, ok := said[n]; ok && before != string(r.Bytes) && program[n-1] != "time" {
			o.t.Errorf("%v: call %d was answered %s, and later %s", program, n, before, r.Bytes)
		}
		said[n] = string(r.Bytes)
		n++
	}
	h.must(h.s.Flush(o.t.Context(), h.store))
	return true
}

// verified holds the audit log to its tree and to its rules, and money to its limits.
func (o *outage) verified(h *house) {
	o.t.Helper()
	signer, err := h.keys.Signer()
	h.must(err)
	var log audit.Log
	var month store.Total
	h.read(func(tx *store.Tx) error {
		n, err := tx.LeafCount()
		if err != nil {
			return err
		}
		note, err := audit.Checkpoint(tx, n, signer)
		if err != nil {
			return err
		}
		head, err := audit.OpenCheckpoint(note, h.keys.Verifier())
		if err != nil {
			return err
		}
		bodies, err := tx.Leaves(0, int(n))
		for _, b := range bodies {
			err = errors.Join(err, log.Add(b))
		}
		if month, err = tx.SpendTotal(store.PeriodScope(h.now.UTC().Format("2006-01"))); err != nil {
			return err
		}
		return errors.Join(err, log.Check(head))
	})
	if run := h.totals(); run.Settled > 500 || month.Settled+month.Reserved > h.rules.Cap {
		o.t.Errorf("spent: %+v of 500, %+v of %d", run, month, h.rules.Cap)
	}
}

// never counts the steps and cuts at none.
var never = faultfs.Rule{Op: faultfs.Steps, At: 1 << 30, Cut: true}

// each has a program played on a disk of its own, side by side with the others. It is told
// what leaves and how many operations of a kind there are when nothing fails.
func each(t *testing.T, op faultfs.Op, programs [][]string, test func(o *outage, program []string, want map[string]string, points int)) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	for _, program := range programs {
		t.Run(strings.Join(program, ","), func(t *testing.T) {
			t.Parallel()
			o := newOutage(t)
			rule := never
			rule.Op = op
			h, want, points := o.play(program, rule)
			o.end(h)
			test(o, program, want, points)
		})
	}
}

// check holds the end of a run whose power was cut to that of one whose power was not.
func (o *outage) check(h *house, keys, want map[string]string, when string) {
	o.t.Helper()
	settled(o.t, h, keys, want)
	o.verified(h)
	o.end(h)
	if o.t.Failed() {
		o.t.Fatal(when)
	}
}

// A whole workspace, with a call of each class and a body that lies in a file, and the power
// is cut before each sync and each change of a name, from the opening to the end. It is opened
// again from what lasts, with the names that were not synced or without: no answer changes,
// nothing leaves twice, the log verifies, and the run comes to its end.
func TestRootAPowerCutAtEveryStepEndsTheSame(t *testing.T) {
	programs := [][]string{{"read", "blind"}, {"large"}, {"probe", "time"}, {"model", "memory", "put"}, {"edit"}, {"read", "continue", "blind"}}
	each(t, faultfs.Steps, programs, func(o *outage, program []string, want map[string]string, points int) {
		for at := 1; at <= points; at += storetest.Stride {
			for _, names := range []bool{false, true} {
				h, keys, _ := o.play(program, faultfs.Rule{Op: faultfs.Steps, At: at, Cut: true, Names: names})
				o.check(h, keys, want, fmt.Sprintf("cut at step %d of %d, names last: %v", at, points, names))
			}
		}
	})
}

// The same before each operation, writes too. They change nothing that lasts, as long as a
// sync follows.
func TestRootAPowerCutAtEveryOperationEndsTheSame(t *testing.T) {
	each(t, faultfs.Any, [][]string{{"read", "blind"}}, func(o *outage, program []string, want map[string]string, points int) {
		for at := 1; at <= points; at += storetest.Stride {
			h, keys, _ := o.play(program, faultfs.Rule{At: at, Cut: true})
			o.check(h, keys, want, fmt.Sprintf("cut at operation %d of %d", at, points))
		}
	})
}

// The power is cut once more, at each sync of what makes the first cut good.
func TestRootAPowerCutAtEverySyncOfTheRecoveryEndsTheSame(t *testing.T) {
	programs := [][]string{{"read"}, {"model"}, {"blind"}, {"large"}, {"probe"}, {"put"}, {"memory"}}
	each(t, faultfs.Sync, programs, func(o *outage, program []string, want map[string]string, points int) {
		cut := func(at int) faultfs.Rule { return faultfs.Rule{Op: faultfs.Sync, At: at, Cut: true} }
		pairs := 0
		for first := 1; first <= points; first += storetest.Stride {
			for second := 1 + first%storetest.Stride; ; second += storetest.Stride {
				h, keys, seen := o.play(program, cut(first), cut(second))
				o.check(h, keys, want, fmt.Sprintf("cut at sync %d of %d, and then at sync %d", first, points, second))
				if seen < second { // the second lies behind the end
					break
				}
				pairs++
			}
		}
		o.t.Logf("%d pairs", pairs)
	})
}

// The disk fails instead, in each way and at any moment. The workspace stops, since nobody
// knows what it has; opened again once the fault is over, it comes to the same end.
func TestRootAFaultOfTheDiskEndsTheSame(t *testing.T) {
	faults := []faultfs.Rule{
		{Op: faultfs.Write, Errno: syscall.ENOSPC},
		{Op: faultfs.Write, Errno: syscall.EIO},
		{Op: faultfs.Write, Short: true},
		{Op: faultfs.Sync, Errno: syscall.EIO},
		{Op: faultfs.SyncDir, Errno: syscall.EIO},
		{Op: faultfs.Create, Errno: syscall.ENOSPC},
		{Op: faultfs.Rename, Errno: syscall.EIO},
	}
	each(t, faultfs.Write, [][]string{{"blind"}, {"large"}}, func(o *outage, program []string, want map[string]string, _ int) {
		for _, rule := range faults {
			step := storetest.Stride
			if rule.Op == faultfs.Write { // there are many in a commit
				step = 7 * storetest.Stride
			}
			for rule.At = 1; ; rule.At += step {
				h, keys, seen := o.play(program, rule)
				o.check(h, keys, want, fmt.Sprintf("%s %d: %v, short: %v", rule.Op, rule.At, rule.Errno, rule.Short))
				if seen < rule.At {
					break
				}
			}
		}
	})
}

// The control: where not every commit is synced, the same cut must be seen to lose.
func TestRootAPowerCutLosesWhatWasNotSynced(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	t.Cleanup(func() { relaxed.Store(false) })
	for relax, want := range map[bool]int{false: 1, true: 2} {
		o := newOutage(t)
		hookSQLite()
		relaxed.Store(relax)
		h, _, _ := o.play([]string{"blind"}, faultfs.Rule{})
		h.must(h.s.Flush(t.Context(), h.store))
		o.disk.Cut()
		_ = h.store.Close()
		o.disk.Unmount()
		h.path = o.disk.Mount()
		if !o.powered(h, []string{"blind"}, map[string]bool{}, new(bool), map[int]string{}) {
			t.Fatal("the power was cut again")
		}
		if got := len(h.world.performed); got != want {
			t.Errorf("relaxed %v: after the cut the mail was sent %d times, want %d", relax, got, want)
		}
		o.end(h)
	}
}

var relaxed atomic.Bool

// hookSQLite makes connections sync as relaxed says.
var hookSQLite = sync.OnceFunc(func() {
	sqlite.RegisterConnectionHook(func(c sqlite.ExecQuerierContext, _ string) error {
		if !relaxed.Load() {
			return nil
		}
		_, err := c.ExecContext(context.Background(), "PRAGMA synchronous=NORMAL", nil)
		return err
	})
})

// The other control: a body whose file is not synced, or not named, is gone with its run.
func TestRootAPowerCutLosesABodyThatWasNotSynced(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	o := newOutage(t)
	for _, rule := range []faultfs.Rule{
		{}, // the control of the control
		{Op: faultfs.Sync, Name: "new-*", At: 1, Lie: true},
		{Op: faultfs.SyncDir, Name: "run_*", At: 1, Lie: true},
		{Op: faultfs.SyncDir, Name: "blobs", At: 1, Lie: true},
	} {
		h, _, _ := o.play([]string{"large"}, rule)
		o.disk.Cut()
		_ = h.store.Close()
		o.disk.Unmount()
		h.path, h.off = o.disk.Mount(), nil
		h.open()
		var row store.Run
		var recs []store.Record
		h.read(func(tx *store.Tx) (err error) {
			if row, err = tx.Run(h.run); err == nil {
				recs, err = tx.Segment(h.run)
			}
			return err
		})
		key, err := h.keys.OpenRunKey(h.run, row.Key)
		h.must(err)
		_, err = journal.Open(&row, key, recs)
		if lost := err != nil; lost != rule.Lie {
			t.Errorf("without the %s of %s: %v", rule.Op, rule.Name, err)
		}
		o.end(h)
	}
}
