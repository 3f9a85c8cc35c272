package runner_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/workspace"
)

const engine = "fake/1"

// fakeCompiler stores what it gets; the upload is the manifest.
type fakeCompiler struct{}

func (fakeCompiler) Compile(_ context.Context, upload []byte, dir string) (module.Compiled, error) {
	return module.Compiled{Engine: engine, Manifest: upload}, os.WriteFile(filepath.Join(dir, "module.wasm"), upload, 0o600)
}

// fakeWorld has no operations: what these tests look at comes before the door.
type fakeWorld struct{}

func (fakeWorld) Operations() []connectors.Operation { return nil }
func (fakeWorld) Pinned(string) abi.Digest           { return abi.Digest{} }
func (fakeWorld) Plan(context.Context, connectors.Call) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{}, abi.Deny(abi.NotFound, "none", "")
}

func (fakeWorld) Perform(context.Context, grant.Permit, connectors.Call, connectors.Plan, func(string)) broker.Outcome {
	return broker.Outcome{}
}

func (fakeWorld) PlanProbe(connectors.Call, connectors.Plan) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{}, abi.Deny(abi.Unsupported, "none", "")
}

func (fakeWorld) Probe(context.Context, grant.Permit, connectors.Call, connectors.Plan, connectors.Plan) broker.Outcome {
	return broker.Outcome{}
}
func (fakeWorld) Ready(context.Context, connectors.Plan) *abi.Denial { return nil }
func (fakeWorld) Preview(string, connectors.Plan) host.Preview       { return host.Preview{} }

// fakeSpawner starts workers that follow a script each.
type fakeSpawner struct {
	mu      sync.Mutex
	scripts []script // one for each worker, the last for all that follow
	started int
	ready   string
	tried   []string
	err     error
	ended   error        // what closing a worker says
	moves   atomic.Int64 // reads and writes of the host
}

// script is what a worker does on its descriptor.
type script func(conn net.Conn)

func (s *fakeSpawner) Spawn(ctx context.Context, c runner.Code) (runner.Worker, error) {
	if _, err := c.Dir(ctx); err != nil {
		return nil, err
	}
	return s.next()
}

func (s *fakeSpawner) next() (runner.Worker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	do := s.scripts[min(s.started, len(s.scripts)-1)]
	s.started++
	host, worker := net.Pipe()
	w := &fakeWorker{Conn: host, ready: s.ready, tried: s.tried, ended: s.ended, moves: &s.moves, gone: make(chan struct{})}
	go func() {
		defer close(w.gone)
		do(worker)
		_ = worker.Close()
	}()
	return w, nil
}

type fakeWorker struct {
	net.Conn
	ready string
	tried []string
	ended error
	moves *atomic.Int64
	gone  chan struct{}
}

func (w *fakeWorker) Read(b []byte) (int, error) {
	w.moves.Add(1)
	return w.Conn.Read(b)
}

func (w *fakeWorker) Write(b []byte) (int, error) {
	w.moves.Add(1)
	return w.Conn.Write(b)
}

func (w *fakeWorker) Ready() wire.Ready     { return wire.Ready{Engine: w.ready} }
func (w *fakeWorker) Violations() []string  { return w.tried }
func (w *fakeWorker) Done() <-chan struct{} { return w.gone }
func (w *fakeWorker) Close() error {
	_ = w.Conn.Close()
	<-w.gone
	return w.ended
}

// open reads what the host says first.
func open(conn net.Conn) {
	for _, k := range []wire.Kind{wire.KindStart, wire.KindInput} {
		if _, _, err := wire.ReadFrame(conn, k); err != nil {
			return
		}
	}
}

func send(conn net.Conn, k wire.Kind, parts ...[]byte) { _ = wire.WriteFrame(conn, k, parts...) }

func u32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

func done(conn net.Conn) { send(conn, wire.KindDone, u32(0), []byte(`"well"`)) }

// call asks one thing and waits for the answer.
func call(conn net.Conn, n uint32, request string) {
	send(conn, wire.KindCall, wire.AppendCall(nil, n), []byte(request))
	_, _, _ = wire.ReadFrame(conn, wire.KindReply)
}

const (
	manifest = `{"abi":1,"name":"fixture","version":"1","description":"","ops":["time.sleep"],"limits":{"wall_ns":600000000000,"calls":5}}`
	now      = `{"op":"time.now","v":1}`
)

// bench is a workspace with fake workers.
type bench struct {
	*workspace.Workspace
	caller host.Caller
	config workspace.Config
}

// reopen stops the workspace and opens it again, as a new binary would.
func (b *bench) reopen(t *testing.T) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := workspace.Open(t.Context(), b.config)
	if err != nil {
		t.Fatal(err)
	}
	b.Workspace = w
}

func newBench(t testing.TB, s *fakeSpawner) *bench {
	t.Helper()
	return benchAt(t, s, time.Now)
}

func benchAt(t testing.TB, s *fakeSpawner, clock func() time.Time) *bench {
	t.Helper()
	return benchIn(t, s, clock, fakeWorld{})
}

func benchIn(t testing.TB, s *fakeSpawner, clock func() time.Time, world broker.World) *bench {
	t.Helper()
	return benchWith(t, s, func(c *workspace.Config) {
		c.Now, c.World = clock, func(*config.Workspace) (broker.World, error) { return world, nil }
	})
}

// benchWith lets a test change the configuration.
func benchWith(t testing.TB, s *fakeSpawner, change func(*workspace.Config)) *bench {
	t.Helper()
	if s.ready == "" {
		s.ready = engine
	}
	dir := filepath.Join(t.TempDir(), "team")
	c := workspace.Config{
		Name: "team", Dir: dir, Postgres: storetest.Config(t, dir, "team"), Operator: &config.Operator{Version: 1, Owner: config.Owner{Name: "Ann", Email: "ann@localhost"}},
		World:    func(*config.Workspace) (broker.World, error) { return fakeWorld{}, nil },
		Compiler: fakeCompiler{}, Spawner: s, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	change(&c)
	w, err := workspace.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Workspace: w, config: c}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	token, err := os.ReadFile(filepath.Join(dir, "owner.token"))
	if err != nil {
		t.Fatal(err)
	}
	if b.caller, err = w.Authenticate(t.Context(), strings.TrimSpace(string(token))); err != nil {
		t.Fatal(err)
	}
	b.push(t, manifest)
	return b
}

// push makes a manifest a skill.
func (b *bench) push(t testing.TB, manifest string) {
	t.Helper()
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
}

// result starts a run and waits for its end.
func (b *bench) result(t testing.TB) api.RunView {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r, err := b.StartRun(ctx, b.caller, api.StartInput{Skill: "fixture"})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(host.RunState) bool { return false })
	return b.view(t, r.ID)
}

// parked starts a run and waits until it waits.
func (b *bench) parked(t testing.TB) host.RunID {
	t.Helper()
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting })
	return r.ID
}

func (b *bench) view(t testing.TB, id host.RunID) api.RunView {
	t.Helper()
	v, err := b.Run(t.Context(), b.caller, id)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever led to a wait: it is somebody's turn, and there is an end.
	if w := v.Waiting; (v.State == host.StateWaiting) != (w != nil) || w != nil && (w.Kind != v.Wait || w.Owner == "" || w.Expires.IsZero() || w.Next.IsZero() || w.Next.After(w.Expires)) {
		t.Errorf("%s waits for %q, which has no owner or no end: %+v", id, v.Wait, w)
	}
	return v
}

// await follows a run until it ends or an event's state is enough.
func (b *bench) await(t testing.TB, id host.RunID, enough func(host.RunState) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for after := int64(0); ; {
		list, more, ended, err := b.Events(ctx, b.caller, id, after)
		if err != nil {
			t.Fatal(err)
		}
		if ended || slices.ContainsFunc(list, func(e host.Event) bool { return enough(e.State) }) {
			return
		}
		if len(list) > 0 {
			after = list[len(list)-1].Seq
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatal("the run does not end")
		}
	}
}

// TestBadWorkersEndTheirOwnRun lets workers say anything but the protocol. The next
// worker is good, and so is its run.
func TestBadWorkersEndTheirOwnRun(t *testing.T) {
	const broke = "INTERNAL: the worker broke the protocol: "
	for name, c := range map[string]struct {
		do      script
		failure string // the whole text
	}{
		"noise":              {func(c net.Conn) { open(c); _, _ = c.Write([]byte("\xff\xff\xff\xff\xff garbage")) }, broke + "wire protocol: unexpected frame kind 255"},
		"text":               {func(c net.Conn) { open(c); _, _ = c.Write([]byte("panic: runtime error")) }, broke + "wire protocol: unexpected frame kind 99"},
		"kind of the host":   {func(c net.Conn) { open(c); send(c, wire.KindReply, wire.AppendReply(nil, 1, 0)) }, broke + "wire protocol: unexpected frame kind 7"},
		"kind of a compiler": {func(c net.Conn) { open(c); send(c, wire.KindCompiled, []byte("{}")) }, broke + "wire protocol: unexpected frame kind 12"},
		"second ready":       {func(c net.Conn) { open(c); send(c, wire.KindReady, []byte("{}")) }, broke + "wire protocol: unexpected frame kind 1"},
		"oversize call":      {func(c net.Conn) { open(c); _, _ = c.Write(append(u32(abi.MaxRequest+6), byte(wire.KindCall))) }, broke + "frame too large: kind 6 announces 1048582 bytes"},
		"4 GiB":              {func(c net.Conn) { open(c); _, _ = c.Write(append(u32(1<<32-1), byte(wire.KindDone))) }, broke + "frame too large: kind 9 announces 4294967295 bytes"},
		"no length":          {func(c net.Conn) { open(c); _, _ = c.Write(append(u32(0), byte(wire.KindCall))) }, broke + "frame too large: kind 6 announces 0 bytes"},
		"oversize result":    {func(c net.Conn) { open(c); _, _ = c.Write(append(u32(abi.MaxResult+6), byte(wire.KindDone))) }, broke + "frame too large: kind 9 announces 1048582 bytes"},
		"short call":         {func(c net.Conn) { open(c); send(c, wire.KindCall, []byte("abc")) }, broke + "wire protocol: a call of 3 bytes"},
		"short end":          {func(c net.Conn) { open(c); send(c, wire.KindDone, []byte("abc")) }, broke + "wire protocol: an end of 3 bytes"},
		"short seen":         {func(c net.Conn) { open(c); send(c, wire.KindSeen, u32(1)) }, broke + "wire protocol: a fingerprint of 4 bytes"},
		"seen of nothing":    {func(c net.Conn) { open(c); send(c, wire.KindSeen, u32(1), make([]byte, 32)) }, broke + "it saw recorded answer 1 after 0 of 0"},
		"call 0":             {func(c net.Conn) { open(c); send(c, wire.KindCall, u32(0), []byte(now)) }, broke + "call 0 came, 1 was next"},
		"call 2 first":       {func(c net.Conn) { open(c); send(c, wire.KindCall, u32(2), []byte(now)) }, broke + "call 2 came, 1 was next"},
		"call 1 twice":       {func(c net.Conn) { open(c); call(c, 1, now); call(c, 1, now) }, broke + "call 1 came, 2 was next"},
		"a call too many": {func(c net.Conn) {
			open(c)
			for n := range uint32(7) {
				call(c, n+1, now)
			}
		}, "LIMIT: the run made more than 5 calls"},
		"fault without JSON": {func(c net.Conn) { open(c); send(c, wire.KindFault, []byte("nonsense")) }, "INTERNAL: the worker sent a fault that cannot be read"},
		"fault without code": {func(c net.Conn) { open(c); send(c, wire.KindFault, []byte(`{"message":"x"}`)) }, "INTERNAL: the worker sent a fault that cannot be read"},
		"fault on many lines": {func(c net.Conn) {
			open(c)
			send(c, wire.KindFault, []byte(`{"code":"TRAP","message":"a\nb\u001b[31m"}`))
		}, "TRAP: a b [31m"},
		"gone at once":      {func(net.Conn) {}, "the host could not go on: the worker ended without a word: io: read/write on closed pipe"},
		"gone after a call": {func(c net.Conn) { open(c); call(c, 1, now) }, "the host could not go on: the worker ended without a word: EOF"},
		"gone in a frame":   {func(c net.Conn) { open(c); _, _ = c.Write(append(u32(100), byte(wire.KindCall), 1, 0)) }, "the host could not go on: the worker ended without a word: unexpected EOF"},
		"silent":            {func(c net.Conn) { open(c); _, _ = io.Copy(io.Discard, c) }, "LIMIT: the run took longer than 300ms without waiting"},
		"never reads":       {func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); <-hung(c) }, "LIMIT: the run took longer than 300ms without waiting"},
	} {
		t.Run(name, func(t *testing.T) {
			scripts := []script{c.do, func(conn net.Conn) { open(conn); call(conn, 1, now); done(conn) }}
			if strings.HasPrefix(name, "gone") { // a worker that is gone is replaced twice
				scripts = append([]script{c.do, c.do}, scripts...)
			}
			b := newBench(t, &fakeSpawner{scripts: scripts})
			if strings.HasPrefix(c.failure, "LIMIT: the run took") {
				b.push(t, strings.Replace(manifest, "600000000000", "300000000", 1))
			}
			v := b.result(t)
			if v.State != host.StateFailed || v.Failure != c.failure {
				t.Errorf("the run %s: %q\nwant failed: %q", v.State, v.Failure, c.failure)
			}
			b.push(t, manifest)
			if v.Result != nil || v.ReceiptID == "" {
				t.Errorf("result %s, receipt %q", v.Result, v.ReceiptID)
			}
			if v := b.result(t); v.State != host.StateSucceeded || string(v.Result) != `"well"` {
				t.Errorf("the next run %s: %s", v.State, v.Failure)
			}
		})
	}
}

// A worker that somebody kills takes nothing with it: another one goes on.
func TestARunOutlivesItsWorker(t *testing.T) {
	gone := func(c net.Conn) { open(c); call(c, 1, now) }
	well := func(c net.Conn) { open(c); call(c, 1, now); done(c) }
	s := &fakeSpawner{scripts: []script{gone, gone, well}}
	if v := newBench(t, s).result(t); v.State != host.StateSucceeded || s.started != 3 {
		t.Errorf("with %d workers the run %s: %s", s.started, v.State, v.Failure)
	}
	s = &fakeSpawner{ended: fmt.Errorf("%w of 1s", runner.ErrLimit), scripts: []script{gone, well}}
	if v := newBench(t, s).result(t); v.State != host.StateFailed || s.started != 1 || !strings.Contains(v.Failure, "LIMIT: the run's process reached a limit of 1s") {
		t.Errorf("with %d workers the run %s: %s", s.started, v.State, v.Failure)
	}
}

// hung says zeros and takes nothing. Its channel is closed when the other side has
// hung up.
func hung(c net.Conn) <-chan struct{} {
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		for { // a write fails when the host has closed
			if _, err := c.Write([]byte{0}); err != nil {
				return
			}
		}
	}()
	return ch
}

// TestAnotherEngineWaitsForItsOwn holds a run that began under another engine until a
// host comes that has it, and ends it when none does.
func TestAnotherEngineWaitsForItsOwn(t *testing.T) {
	var ahead atomic.Int64
	s := &fakeSpawner{ready: "other/2", scripts: []script{func(c net.Conn) { open(c); done(c) }}}
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	held := func() host.RunID {
		t.Helper()
		id := b.parked(t)
		if v := b.view(t, id); v.Wait != host.WaitPinned {
			t.Fatalf("the run waits for %q", v.Wait)
		}
		return id
	}
	first := held()
	list, err := b.Pins(t.Context(), b.caller)
	if err != nil || len(list) != 1 || list[0].Engine != engine || list[0].ABI != abi.Version || list[0].Unmet(engine, abi.Version) != "" || list[0].Unmet("other/2", abi.Version) == "" {
		t.Errorf("%+v, %v", list, err)
	}
	ahead.Store(int64(8 * 24 * time.Hour))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await(t, first, func(host.RunState) bool { return false })
	if v := b.view(t, first); v.State != host.StateFailed || v.Failure != "the run is pinned to the engine fake/1, this binary has other/2" {
		t.Errorf("%s: %q", v.State, v.Failure)
	}
	second := held()
	s.mu.Lock()
	s.ready = engine
	s.mu.Unlock()
	b.reopen(t)
	b.await(t, second, func(host.RunState) bool { return false })
	if v := b.view(t, second); v.State != host.StateSucceeded {
		t.Errorf("under its own engine again it %s: %s", v.State, v.Failure)
	}
}

// TestNewerRecordsWaitForTheirBinary goes back to a binary that does not know the form
// of a run's records: it holds the run, changes nothing, and says why.
func TestNewerRecordsWaitForTheirBinary(t *testing.T) {
	const why = "the run's journal has records of version 2, this binary reads up to 1"
	var ahead atomic.Int64
	parks := func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, sleep) }
	s := &fakeSpawner{scripts: []script{parks, parks, func(c net.Conn) { open(c); past(c, 1); seen(c, 1, now); call(c, 2, sleep); done(c) }}}
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	held := func() host.RunID {
		t.Helper()
		id := b.parked(t)
		b.writtenBy(t, id, 2)
		ahead.Add(int64(2 * time.Hour))
		b.reopen(t)
		b.await(t, id, func(st host.RunState) bool { return st == host.StateWaiting })
		v := b.view(t, id)
		if v.State != host.StateWaiting || v.Wait != host.WaitPinned || v.Waiting == nil || v.Waiting.Expires.IsZero() || strings.Contains(v.Notice, "quarantined") {
			t.Fatalf("the run is %s %s: %s %s", v.State, v.Wait, v.Failure, v.Notice)
		}
		list, err := b.Pins(t.Context(), b.caller)
		if err != nil || len(list) != 1 || list[0].Unmet(engine, abi.Version) != why {
			t.Errorf("upgrade --check is told %+v, %v", list, err)
		}
		return id
	}
	first := held()
	ahead.Add(int64(8 * 24 * time.Hour))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := b.finish(t, first); v.State != host.StateFailed || v.Failure != why {
		t.Errorf("nobody came: %s %q", v.State, v.Failure)
	}
	second, started := held(), s.started
	b.writtenBy(t, second, host.RecordVersion) // in place of a newer binary that knows them
	b.reopen(t)
	if v := b.finish(t, second); v.State != host.StateSucceeded || s.started != started+1 {
		t.Errorf("under its own binary again it %s: %s; %d workers", v.State, v.Failure, s.started-started)
	}
}

// writtenBy gives the last record of a run the version of another binary, and the chain
// that it then has.
func (b *bench) writtenBy(t *testing.T, id host.RunID, version int) {
	t.Helper()
	db, done := b.beside(t)
	defer done()
	mark := func(n int) string {
		if b.config.Postgres != nil {
			return fmt.Sprintf("$%d", n)
		}
		return "?"
	}
	var prev, chain []byte
	var at int64
	r := store.Record{Version: version}
	err := db.QueryRowContext(t.Context(), `SELECT j.seq, j.call_no, j.kind, j.ts, j.body_enc, j.label_enc, p.chain_sha256 FROM journal j
		JOIN journal p ON p.ws = j.ws AND p.run_id = j.run_id AND p.seq = j.seq - 1 WHERE j.run_id = `+mark(1)+` ORDER BY j.seq DESC LIMIT 1`, id).
		Scan(&r.Seq, &r.Call, &r.Kind, &at, &r.Body, &r.Label, &prev)
	if err != nil {
		t.Fatal(err)
	}
	r.Time = time.Unix(0, at)
	head := journal.Link(abi.Digest(prev), &r)
	chain = head[:]
	_, e1 := db.ExecContext(t.Context(), `UPDATE journal SET rec_ver = `+mark(1)+`, chain_sha256 = `+mark(2)+` WHERE run_id = `+mark(3)+` AND seq = `+mark(4), version, chain, id, r.Seq)
	_, e2 := db.ExecContext(t.Context(), `UPDATE run SET chain_sha256 = `+mark(1)+` WHERE run_id = `+mark(2), chain, id)
	if err := errors.Join(e1, e2); err != nil {
		t.Fatal(err)
	}
}

func TestPinsThatAHostDoesNotMeet(t *testing.T) {
	for _, p := range []host.Pins{
		{Engine: "e/2", ABI: abi.Version}, {Engine: "e/1", ABI: abi.Version + 1}, {Engine: "e/1", ABI: abi.Version, Record: host.RecordVersion + 1},
	} {
		if p.Unmet("e/1", abi.Version) == "" {
			t.Errorf("%+v was met", p)
		}
	}
	if why := (host.Pins{Engine: "e/1", ABI: abi.Version, Record: host.RecordVersion}).Unmet("e/1", abi.Version); why != "" {
		t.Error(why)
	}
}

func TestAWorkerThatDoesNotStart(t *testing.T) {
	s := &fakeSpawner{err: errors.New("no processes left")}
	if v := newBench(t, s).result(t); v.State != host.StateFailed || v.Failure != "the host could not go on: the worker did not start: no processes left" {
		t.Errorf("no worker: %s %q", v.State, v.Failure)
	}
}

// TestViolationsAreAlarms: what a confined worker tried is in the audit log.
func TestViolationsAreAlarms(t *testing.T) {
	s := &fakeSpawner{tried: []string{"socket(2)"}, scripts: []script{func(c net.Conn) { open(c); done(c) }}}
	b := newBench(t, s)
	b.result(t)
	v, err := b.Audit(t.Context(), b.caller, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range v.Leaves {
		found = found || bytes.Contains(l.Body, []byte("socket(2)"))
	}
	if !found {
		t.Error("no leaf tells of it")
	}
}
