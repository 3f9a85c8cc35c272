package journal_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// described is what the door writes for a host.describe.
func described(t testing.TB) journal.Body {
	t.Helper()
	r := abi.DescribeResult{ABI: abi.Version, Workspace: "acme", Run: string(host.NewID("run", now)), Owner: "ann@example.com", Limits: abi.DefaultLimits(), Grants: []abi.OperationUse{}, Ops: abi.Ops()}
	request := []byte(`{"args":{},"op":"host.describe","v":1}`)
	return journal.Body{Op: abi.OpDescribe, Fingerprint: abi.Fingerprint(request), Request: request, Effect: abi.EffectNone, Rule: "own", Reply: abi.OK(r).Encode()}
}

// describe makes calls of a log, with a commit now and then.
func (f *fixture) describe(t testing.TB, log *journal.Log, first uint32, calls int) {
	t.Helper()
	for i := range uint32(calls) {
		err := log.Add(journal.Value, first+i, now, described(t), label.Clean())
		if n, _ := log.Pending(); n == 256 || int(i) == calls-1 {
			err = errors.Join(err, f.store.Write(t.Context(), log.Stage))
			log.Staged(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func load(t testing.TB, f *fixture) (log *journal.Log, err error) {
	t.Helper()
	err = f.store.Read(t.Context(), func(tx *store.Tx) error {
		log, err = journal.Load(tx, &f.row, f.key)
		return err
	})
	return log, err
}

// Reading, verifying, decrypting and folding the journal of a run of 1,000 calls.
func BenchmarkLoad1000(b *testing.B) {
	f := newFixture(b)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		b.Fatal(err)
	}
	f.describe(b, log, 4, 1000)
	f.load(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := load(b, f); err != nil {
			b.Fatal(err)
		}
	}
}

// A run makes tens of thousands of calls, and most are like the one before: beside the
// answer itself little is kept of each.
func TestACallKeepsLittleBesideItsAnswer(t *testing.T) {
	const calls, most = 4000, 320
	f := newFixture(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	f.describe(t, log, 4, calls)
	live := heap() - before
	f.load(t)
	f.recs = nil
	before = heap()
	again, err := load(t, f)
	if err != nil {
		t.Fatal(err)
	}
	loaded := heap() - before
	answer := int64(len(described(t).Reply))
	for name, bytes := range map[string]int64{"live": live, "loaded": loaded} {
		if per := bytes/calls - answer; per > most || per < 100 {
			t.Errorf("%s: %d bytes are kept of a call beside its answer of %d", name, per, answer)
		} else {
			t.Logf("%s: %d bytes of a call", name, per)
		}
	}
	runtime.KeepAlive(log)
	runtime.KeepAlive(again)
}

// Law 1 holds for what was let go as well: it is answered again by a log that is opened
// anew, and in this one it is nothing else than an error.
func TestWhatWasLetGoIsNotAnsweredOtherwise(t *testing.T) {
	f := newFixture(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	fp := described(t).Fingerprint
	for i := range 3 {
		if err := log.Add(journal.Value, journal.Part(4, i), now, described(t), label.Clean()); err != nil {
			t.Fatal(err)
		}
	}
	f.describe(t, log, 4, 3)
	log.LetGo(5)
	log.LetGo(4) // changes nothing
	for _, n := range []uint32{1, 2, 3, 4, 5, journal.Part(4, 0), journal.Part(4, 2), journal.Part(5, 0)} {
		if e, err := log.Recall(n, fp); e != nil || err == nil || errors.Is(err, journal.ErrDiverged) {
			t.Errorf("call %d: %+v, %v", n, e, err)
		}
	}
	if e, err := log.Recall(6, fp); err != nil || e.Answer == nil {
		t.Errorf("the call after: %+v, %v", e, err)
	}
	if e, err := log.Recall(7, fp); e != nil || err != nil {
		t.Errorf("the next call: %+v, %v", e, err)
	}
	if list := log.Entries(); len(list) != 1 || log.Same(fp) != 6 {
		t.Errorf("%d entries, %d alike", len(list), log.Same(fp))
	}
	f.load(t)
	again, err := load(t, f)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := again.Recall(5, fp); err != nil || e.Answer == nil {
		t.Errorf("opened anew: %+v, %v", e, err)
	}
}

func heap() int64 {
	for range 3 { // pools keep what they hold for two
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Segments of a run hold on to each other, and what people are shown of them holds no
// more of the answers than a refusal.
func TestSegmentsFollowOneAnother(t *testing.T) {
	for query, whole := range map[string]bool{
		"":                                                   true,
		`DELETE FROM journal WHERE seq = 1`:                  false,
		`DELETE FROM journal WHERE seq < 9`:                  false,
		`DELETE FROM journal WHERE seq = 8`:                  false,
		`DELETE FROM journal WHERE seq = 11`:                 false,
		`UPDATE journal SET ts = ts + 1 WHERE seq = 2`:       false,
		`UPDATE journal SET kind = 'VALUE' WHERE seq = 9`:    false,
		`UPDATE journal SET kind = 'CONTINUE' WHERE seq = 8`: false,
		`UPDATE journal SET chain_sha256 = image_sha256 FROM run WHERE seq = 3`: false,
		`UPDATE run SET chain_sha256 = manifest_sha256`:                         false,
	} {
		f := newFixture(t)
		log := f.open(t)
		refusal := journal.Body{Op: abi.OpTimeNow, Code: abi.Denied, Reply: []byte("refused")}
		err := errors.Join(
			log.Add(journal.Value, 4, now, refusal, label.Clean()), // record 8
			log.Add(journal.Continue, 5, now, journal.Body{Segment: 2, State: []byte("1"), Seed: make([]byte, 32)}, label.Clean()))
		if err != nil {
			t.Fatal(err)
		}
		f.describe(t, log, 6, 2)
		if query != "" {
			if err := f.store.Close(); err != nil {
				t.Fatal(err)
			}
			storetest.Tamper(t, f.dir, query)
			if f.store, err = storetest.Open(t, f.dir, "acme", now); err != nil {
				t.Fatal(err)
			}
		}
		var logs []*journal.Log
		err = f.store.Read(t.Context(), func(tx *store.Tx) error {
			row, err := tx.Run("run_1")
			if err != nil {
				return err
			}
			return journal.Segments(tx, &row, f.key, func(l *journal.Log) { logs = append(logs, l) })
		})
		if !whole {
			if !errors.Is(err, journal.ErrCorrupt) {
				t.Errorf("%s: %v", query, err)
			}
			continue
		}
		if err != nil || len(logs) != 2 || logs[0].Segment() != nil || logs[1].Segment().Number != 2 {
			t.Fatalf("%d segments, %v", len(logs), err)
		}
		if e := logs[0].Entry(4); string(e.Answer.Reply) != "refused" || logs[0].Entry(1).Answer.Reply != nil || logs[1].Entry(7).Answer.Reply != nil {
			t.Errorf("%+v", e.Answer)
		}
	}
}
