package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
)

var timeNow = request(abi.OpTimeNow, `{}`)

// Beyond the limit every call is refused before anything of it is written, the refusal
// is recorded and answered again, and a run that does not heed it is stopped.
func TestAFullJournalLetsNothingThroughButRunContinue(t *testing.T) {
	for name, growth := range map[string]host.Growth{"records": {MaxRecords: 20}, "bytes": {MaxBytes: 2500}} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.s.Growth = growth
			n := uint32(1)
			for ; n < 40; n++ {
				r, err := h.door.Do(t.Context(), h.s, n, timeNow)
				h.must(err)
				if strings.Contains(string(r.Bytes), `"TOO_LARGE"`) {
					break
				}
			}
			if n < 5 || n > 22 {
				t.Fatalf("refused at call %d", n)
			}
			before := len(h.world.performed)
			d := h.refused(n+1, use(abi.OpToolCall, "notes.read", "a", 0), abi.TooLarge)
			if d.Effect != abi.OutcomeNone || !strings.Contains(d.Remedy, "run.continue") {
				t.Errorf("%+v", d)
			}
			h.performed(before)
			first := h.refused(n, timeNow, abi.TooLarge)
			h.crash() // the limits may be others now: what was refused stays refused
			if again := h.refused(n, timeNow, abi.TooLarge); again.Reason != first.Reason || again.Receipt != first.Receipt {
				t.Errorf("%+v, then %+v", first, again)
			}
			h.s.Growth = growth
			stopped := false
			for n += 2; n < 200 && !stopped; n++ {
				_, err := h.door.Do(t.Context(), h.s, n, timeNow)
				if stopped = errors.Is(err, broker.ErrOvergrown); !stopped {
					h.must(err)
				}
			}
			if !stopped {
				t.Error("a run that does not heed the refusals goes on")
			}
			h.books()
		})
	}
}

// The limit is looked at before the bytes of a call are written, also where the call
// alone would pass it.
func TestACallThatWouldNotFitIsRefusedWithoutItsBytes(t *testing.T) {
	h := newHouse(t)
	h.s.Growth = host.Growth{MaxBytes: 20_000}
	h.ok(1, timeNow)
	size := h.s.Log.Size().Bytes
	h.refused(2, request(abi.OpKVPut, fmt.Sprintf(`{"key":"k","value":%q}`, strings.Repeat("x", 30_000))), abi.TooLarge)
	if grown := h.s.Log.Size().Bytes - size; grown > 1000 {
		t.Errorf("the refusal added %d bytes", grown)
	}
	h.ok(3, timeNow)
}

// What is refused for another reason costs no bytes either once the journal is full, and
// ends the run as well.
func TestAFullJournalTakesNoBytesOfAnything(t *testing.T) {
	for name, raw := range map[string][]byte{
		"malformed":                []byte(`{"op":"` + strings.Repeat("x", 30_000)),
		"a continue without state": request(abi.OpRunContinue, fmt.Sprintf(`{"other":%q}`, strings.Repeat("x", 30_000))),
	} {
		h := newHouse(t)
		h.ok(1, timeNow)
		h.s.Growth = host.Growth{MaxBytes: 20_000}
		before, n, err := h.s.Log.Size().Bytes, uint32(2), error(nil)
		for ; err == nil && n < 200; n++ {
			_, err = h.door.Do(t.Context(), h.s, n, raw)
		}
		if !errors.Is(err, broker.ErrOvergrown) || h.s.Log.Size().Bytes-before > 64*700 {
			t.Errorf("%s: after %d calls %v, %s", name, n, err, h.s.Log.Size())
		}
	}
}

func TestTheWarningComesOnceInEachSegment(t *testing.T) {
	h := newHouse(t)
	warnings := 0
	watch := func() {
		h.s.Growth = host.Growth{WarnRecords: 5}
		h.s.Emit = func(e host.Event) {
			if e.Kind == host.EventWarning && strings.Contains(e.Text, "run.continue") {
				warnings++
			}
		}
	}
	leaves := func() (n int) {
		for _, l := range h.leaves() {
			if l.Kind == audit.KindGrowth {
				n++
			}
		}
		return n
	}
	put := func(n uint32) { h.ok(n, request(abi.OpKVPut, fmt.Sprintf(`{"key":"k","value":%d}`, n))) }
	watch()
	for n := uint32(1); n <= 4; n++ {
		put(n)
	}
	if leaves() != 0 {
		t.Fatal("it warned too early")
	}
	put(5)
	h.crash()
	watch()
	for n := uint32(6); n <= 9; n++ {
		put(n)
	}
	if leaves() != 1 || warnings != 1 {
		t.Errorf("%d leaves, %d warnings in the first segment", leaves(), warnings)
	}
	h.continues(10, `1`)
	watch()
	for n := uint32(11); n <= 20; n++ {
		put(n)
	}
	if leaves() != 2 || warnings != 2 {
		t.Errorf("%d leaves, %d warnings in two segments", leaves(), warnings)
	}
}

func (h *house) describe(n uint32) (d abi.DescribeResult) {
	h.t.Helper()
	h.must(json.Unmarshal(h.ok(n, request(abi.OpDescribe, `{}`)).OK, &d))
	return d
}

// continues ends the segment and opens the next.
func (h *house) continues(n uint32, state string) {
	h.t.Helper()
	if _, err := h.door.Do(h.t.Context(), h.s, n, request(abi.OpRunContinue, `{"state":`+state+`}`)); !errors.Is(err, broker.ErrContinued) {
		h.t.Fatalf("call %d: %v", n, err)
	}
	h.crash()
}

// A new segment begins with the state and the label of all that the run held, replays
// nothing of before, and has numbers, keys and money of the same run.
func TestASegmentBeginsWithItsStateAlone(t *testing.T) {
	h := newHouse(t)
	send := use(abi.OpSend, "docs.write", "home", 10)
	h.ok(1, timeNow)
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
	held := h.s.Held
	if held.String() == label.Clean().String() {
		t.Fatal("the run holds nothing")
	}
	h.waits(3, send, host.WaitApproval)
	h.answer(3, true)
	h.resume()
	h.s.Held = held // what a worker's replay restores
	h.ok(3, send)
	held = h.s.Held
	spent := h.totals().Settled
	h.continues(4, `{"b":1,"a":[2]}`)

	seg := h.s.Log.Segment()
	if seg == nil || seg.Number != 2 || string(seg.State) != `{"a":[2],"b":1}` || seg.Call != 4 || len(seg.Seed) != 32 || !seg.At.Equal(h.now) {
		t.Fatalf("%+v", seg)
	}
	if seg.Label.String() != held.String() {
		t.Errorf("the state's label is %s, the run held %s", seg.Label, held)
	}
	if len(h.s.Log.Answered()) != 0 || h.s.Log.Size().Records != 1 {
		t.Errorf("%d answers of before, %s", len(h.s.Log.Answered()), h.s.Log.Size())
	}
	if _, err := h.door.Do(t.Context(), h.s, 1, timeNow); !errors.Is(err, journal.ErrDiverged) {
		t.Errorf("a call of the segment before: %v", err)
	}
	// The same request in the new segment is another call, with a key of its own and a
	// question of its own, out of the same budget.
	h.waits(5, send, host.WaitApproval)
	h.answer(5, true)
	h.resume()
	h.ok(5, send)
	h.performed(3)
	if a, b := h.world.performed[1], h.world.performed[2]; a.key == b.key {
		t.Errorf("two sends have the key %s", a.key)
	}
	if got := h.totals().Settled; got != 2*spent || spent == 0 {
		t.Errorf("the run spent %d, then %d", spent, got)
	}
	h.crash()
	h.ok(5, send) // and is answered again after a crash
	h.performed(3)
	if d := h.describe(6); d.Journal.Segment != 2 {
		t.Errorf("%+v", d.Journal)
	}
	h.books()

	// All segments verify one after the other, and together.
	var row store.Run
	var all []store.Record
	calls := []int{}
	h.read(func(tx *store.Tx) (err error) {
		if row, err = tx.Run(h.run); err != nil {
			return err
		}
		if all, err = tx.Records(h.run); err != nil {
			return err
		}
		return journal.Segments(tx, &row, h.s.Key, func(l *journal.Log) { calls = append(calls, len(broker.Views(l.Entries(), false))) })
	})
	if log, err := journal.Open(&row, h.s.Key, all); err != nil || log.Base() != 4 {
		t.Errorf("the whole journal: %v", err)
	}
	if fmt.Sprint(calls) != "[3 3]" {
		t.Errorf("calls by segment %v", calls)
	}
}

func TestRunContinueIsRefusedWhereItCannotBe(t *testing.T) {
	h := newHouse(t)
	h.refused(1, request(abi.OpRunContinue, `{}`), abi.Invalid)
	h.refused(2, request(abi.OpRunContinue, `{"state":1,"more":2}`), abi.Invalid)
	h.refused(3, request(abi.OpBatch, fmt.Sprintf(`{"requests":[%s]}`, request(abi.OpRunContinue, `{"state":1}`))), abi.Invalid)
	h.s.Growth = host.Growth{MaxSegments: 1}
	h.refused(4, request(abi.OpRunContinue, `{"state":1}`), abi.TooLarge)
	h.s.Growth = host.Growth{}
	h.continues(5, `1`)
	h.s.Growth = host.Growth{MaxSegments: 2}
	h.refused(6, request(abi.OpRunContinue, `{"state":1}`), abi.TooLarge)
	// A full journal does not stop it.
	h.s.Growth = host.Growth{MaxRecords: 1}
	h.continues(7, `1`)
}
