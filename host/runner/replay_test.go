package runner_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/workspace"
)

const (
	logLine = `{"op":"log.write","v":1,"args":{"level":"info","text":"x"}}`
	sleep   = `{"op":"time.sleep","v":1,"args":{"ms":3600000}}`
)

// past takes the recorded answers that the host pushes.
func past(conn net.Conn, n int) {
	for range n {
		if _, _, err := wire.ReadFrame(conn, wire.KindPast); err != nil {
			return
		}
	}
}

func seen(conn net.Conn, n uint32, request string) {
	fp := abi.Fingerprint([]byte(request))
	send(conn, wire.KindSeen, wire.AppendCall(nil, n), fp[:])
}

// resumed runs a skill that sleeps, lets its time come, and waits for the end.
func resumed(t *testing.T, s *fakeSpawner, manifest string) (*bench, api.RunView) {
	t.Helper()
	var ahead atomic.Int64
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	b.push(t, manifest)
	id := b.parked(t)
	ahead.Store(int64(2 * time.Hour))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await(t, id, func(host.RunState) bool { return false })
	return b, b.view(t, id)
}

// TestReplay parks a run after two recorded answers and lets the next workers say
// whatever comes to their mind.
func TestReplay(t *testing.T) {
	parks := func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, logLine); call(c, 3, sleep) }
	good := func(c net.Conn) {
		open(c)
		past(c, 2)
		seen(c, 1, now)
		seen(c, 2, logLine)
		call(c, 3, sleep)
		done(c)
	}
	const broke, diverged = "INTERNAL: the worker broke the protocol: ", "the run diverged: "
	const nonsense = `{"op":"made.up","v":1}`
	for name, c := range map[string]struct {
		bad     script
		once    bool // a second worker is good
		state   host.RunState
		failure string
	}{
		"good":                     {good, false, host.StateSucceeded, ""},
		"seen out of order":        {func(c net.Conn) { open(c); past(c, 2); seen(c, 2, logLine) }, false, host.StateFailed, broke + "it saw recorded answer 2 after 0 of 2"},
		"seen twice":               {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); seen(c, 1, now) }, false, host.StateFailed, broke + "it saw recorded answer 1 after 1 of 2"},
		"seen too many":            {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); seen(c, 2, logLine); seen(c, 3, sleep) }, false, host.StateFailed, broke + "it saw recorded answer 3 after 2 of 2"},
		"other request":            {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, sleep) }, false, host.StateDiverged, diverged + fmt.Sprintf("recorded time.now (%s) at call 1, got a request with the digest %s", abi.Fingerprint([]byte(now)), abi.Fingerprint([]byte(sleep)))},
		"done early":               {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); done(c) }, false, host.StateDiverged, diverged + "the guest ended after 1 of 2 recorded calls"},
		"done at once":             {func(c net.Conn) { open(c); done(c) }, false, host.StateDiverged, diverged + "the guest ended after 0 of 2 recorded calls"},
		"live early":               {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); call(c, 3, sleep) }, false, host.StateDiverged, diverged + "a live call came after 1 of 2 recorded ones"},
		"other live request":       {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); seen(c, 2, logLine); call(c, 3, now) }, false, host.StateDiverged, diverged + fmt.Sprintf("recorded time.sleep (%s) at call 3, got time.now (%s)", abi.Fingerprint([]byte(sleep)), abi.Fingerprint([]byte(now)))},
		"live request of nonsense": {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); seen(c, 2, logLine); call(c, 3, nonsense) }, false, host.StateDiverged, diverged + fmt.Sprintf("recorded time.sleep (%s) at call 3, got an unknown op (%s)", abi.Fingerprint([]byte(sleep)), abi.Fingerprint([]byte(nonsense)))},
		"live with past number":    {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, now); seen(c, 2, logLine); call(c, 2, logLine) }, false, host.StateFailed, broke + "call 2 came, 3 was next"},
		"broken once":              {func(c net.Conn) { open(c); past(c, 2); seen(c, 1, sleep) }, true, host.StateSucceeded, ""},
		"never takes the past":     {func(c net.Conn) { open(c); <-hung(c) }, false, host.StateFailed, broke + "wire protocol: unexpected frame kind 0"},
		"gone":                     {func(c net.Conn) { open(c); past(c, 1) }, false, host.StateFailed, "the host could not go on: the worker ended without a word: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := &fakeSpawner{scripts: []script{parks, c.bad}}
			if c.once {
				s.scripts = append(s.scripts, good)
			}
			b, v := resumed(t, s, manifest)
			if v.State != c.state || !strings.HasPrefix(v.Failure, c.failure) || c.state == host.StateDiverged && v.Failure != c.failure || c.failure == "" && v.Failure != "" {
				t.Errorf("the run %s: %q\nwant %s: %q", v.State, v.Failure, c.state, c.failure)
			}
			if c.state == host.StateDiverged {
				a, err := b.Audit(t.Context(), b.caller, 0, 1000)
				if err != nil {
					t.Fatal(err)
				}
				if last := string(a.Leaves[len(a.Leaves)-1].Body); !strings.Contains(last, c.failure) || !strings.Contains(v.Receipt, "diverged") {
					t.Errorf("leaf %s\nreceipt %s", last, v.Receipt)
				}
			}
			if c.state == host.StateSucceeded && string(v.Result) != `"well"` {
				t.Errorf("result %s", v.Result)
			}
		})
	}
}

// TestAReplayMovesManyFramesAtOnce counts what a replay asks of the socket: each move is
// a system call, and a frame needs few of them.
func TestAReplayMovesManyFramesAtOnce(t *testing.T) {
	const calls, most = 300, 40
	parks := func(c net.Conn) {
		open(c)
		for n := range uint32(calls) {
			call(c, n+1, now)
		}
		call(c, calls+1, sleep)
	}
	s := &fakeSpawner{}
	replays := func(c net.Conn) {
		open(c)
		s.moves.Store(0)
		past(c, calls)
		w := bufio.NewWriterSize(c, 64<<10)
		fp := abi.Fingerprint([]byte(now))
		for n := range uint32(calls) {
			_ = wire.WriteFrame(w, wire.KindSeen, wire.AppendCall(nil, n+1), fp[:])
		}
		_ = w.Flush()
		call(c, calls+1, sleep)
		if moves := s.moves.Load(); moves > most {
			t.Errorf("%d recorded answers took %d reads and writes", calls, moves)
		}
		done(c)
	}
	s.scripts = []script{parks, replays}
	if _, v := resumed(t, s, strings.Replace(manifest, `"calls":5`, `"calls":1000`, 1)); v.State != host.StateSucceeded {
		t.Error(v.State, v.Failure)
	}
}

// TestCancelledAtAnyMoment cancels runs while they start, work, park and wait. None
// goes on.
func TestCancelledAtAnyMoment(t *testing.T) {
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, sleep) }}}
	b := newBench(t, s)
	for i := range 60 {
		r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
		if err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 {
			b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting || i%3 == 1 && st == host.StateRunning })
		}
		if err := b.CancelRun(t.Context(), b.caller, r.ID); err != nil {
			t.Fatal(err)
		}
		b.await(t, r.ID, func(host.RunState) bool { return false })
		if v := b.view(t, r.ID); v.State != host.StateCancelled {
			t.Fatalf("run %d %s: %s", i, v.State, v.Failure)
		}
	}
}

// TestManyRunsThatAreDueAtOnceAreWokenInTurn lets many timers end at the same moment.
func TestManyRunsThatAreDueAtOnceAreWokenInTurn(t *testing.T) {
	const many, wakes, workers = 60, 8, 2
	var ahead, live, peak, started atomic.Int64
	gate := make(chan struct{})
	var hold atomic.Bool
	s := &fakeSpawner{scripts: []script{func(c net.Conn) {
		started.Add(1)
		if n := live.Add(1); n > peak.Load() {
			peak.Store(n)
		}
		defer live.Add(-1)
		if hold.Load() {
			<-gate
		}
		open(c)
		call(c, 1, sleep)
		done(c)
	}}}
	b := benchWith(t, s, func(c *workspace.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.Operator.Workers, c.Operator.Waits.Wakes = workers, wakes
	})
	ids := make([]host.RunID, many)
	for i := range ids {
		r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = r.ID
	}
	for _, id := range ids {
		b.await(t, id, func(st host.RunState) bool { return st == host.StateWaiting })
	}
	ahead.Store(int64(2 * time.Hour))
	hold.Store(true)
	started.Store(0)
	for range 5 { // whoever waits for a worker is not woken again, and nobody else before him
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	hold.Store(false)
	close(gate)
	ended := func() (n int) {
		for _, id := range ids {
			if b.view(t, id).State == host.StateSucceeded {
				n++
			}
		}
		return n
	}
	for i := range wakes {
		b.await(t, ids[i], func(host.RunState) bool { return false })
	}
	if n := ended(); n > 2*wakes { // at most those that took the place of runs that had left the list
		t.Errorf("%d runs were woken by sweeps of %d", n, wakes)
	}
	for _, id := range ids {
		for b.view(t, id).State != host.StateSucceeded {
			if err := b.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if peak.Load() > workers {
		t.Errorf("%d workers at once, %d are allowed", peak.Load(), workers)
	}
	if started.Load() != many {
		t.Errorf("%d workers were started for %d runs", started.Load(), many)
	}
}

// TestARunThatContinues ends its first instance with a state; the second begins with it
// and replays nothing.
func TestARunThatContinues(t *testing.T) {
	again := func(c net.Conn) {
		start, input := begun(c)
		if start.Past != 0 || bytes.Equal(start.Seed, make([]byte, 32)) {
			t.Errorf("the new segment begins with %d answers and seed %x", start.Past, start.Seed)
		}
		call(c, 1, now)
		send(c, wire.KindDone, u32(0), input)
	}
	s := &fakeSpawner{scripts: []script{
		func(c net.Conn) {
			open(c)
			call(c, 1, now)
			call(c, 2, `{"op":"run.continue","v":1,"args":{"state":{"left":3}}}`)
		},
		func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, sleep) },
		func(c net.Conn) {
			open(c)
			past(c, 1)
			seen(c, 1, now)
			call(c, 2, sleep)
			call(c, 3, `{"op":"run.continue","v":1,"args":{"state":"last"}}`)
		},
		again,
	}}
	b, v := resumed(t, s, strings.Replace(manifest, `"ops":[`, `"ops":["run.continue",`, 1))
	if v.State != host.StateSucceeded || string(v.Result) != `"last"` || len(v.Segments) != 3 || v.Segments[1].Calls != 3 || v.Segments[2].After != 5 {
		t.Errorf("the run %s: %s, result %s, segments %+v", v.State, v.Failure, v.Result, v.Segments)
	}
	if !strings.Contains(v.Receipt, "6 calls") || !strings.Contains(v.Receipt, "3 segments") {
		t.Errorf("receipt %s", v.Receipt)
	}
	a, err := b.Audit(t.Context(), b.caller, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	heads := map[int64]string{}
	for _, j := range a.Journal {
		if j.Run == v.ID {
			heads[j.Seq] = j.Head
		}
	}
	for _, l := range a.Leaves { // every leaf's chain is that of the stored records, across segments
		leaf, err := audit.ParseLeaf(l.Body)
		if err != nil || leaf.Run == v.ID && leaf.Chain != "" && heads[leaf.Seq] != leaf.Chain {
			t.Errorf("leaf %s: stored %s, %v", l.Body, heads[leaf.Seq], err)
		}
	}
}

// begun reads what the host says first.
func begun(conn net.Conn) (s wire.Start, input []byte) {
	_, b, err := wire.ReadFrame(conn, wire.KindStart)
	if err == nil && json.Unmarshal(b, &s) == nil {
		_, input, _ = wire.ReadFrame(conn, wire.KindInput)
	}
	return s, bytes.Clone(input)
}
