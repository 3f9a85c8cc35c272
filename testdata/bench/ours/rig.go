package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/workspace"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// rig is a workspace as monroed opens it, with a clock on the socket of its workers.
type rig struct {
	*workspace.Workspace
	owner host.Caller
	clock *clock
	ahead atomic.Int64 // how far the workspace's time is from that of the machine, in nanoseconds
	warm  *runner.Warm
	dir   string
}

const rigName = host.Workspace("bench")

// open opens a workspace with so many spare workers, and workers at the same time.
func (b *bench) open(ctx context.Context, dir string, spares, workers int) (*rig, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	operator, err := config.ReadOperator(filepath.Join(dir, "operator.yaml")) // there is none
	if err != nil {
		return nil, err
	}
	// Each sleep (50 ms) is to end in a replay, and an effect is not, also on a slow disk.
	keep := 20 * time.Millisecond
	operator.Waits.KeepWorker = &keep
	operator.Workers = workers
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	r := &rig{clock: &clock{s: b.spawner}, dir: dir}
	r.warm = runner.NewWarm(r.clock, spares, time.Minute, log)
	r.Workspace, err = workspace.Open(ctx, workspace.Config{
		Name: rigName, Dir: dir, Operator: operator, Compiler: compiler{b.spawner}, Spawner: r.warm, Confinement: "bench",
		World: func(*config.Workspace) (broker.World, error) { return still{}, nil },
		Now:   func() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }, Log: log,
	})
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(dir, "owner.token"))
	if err == nil {
		r.owner, err = r.Authenticate(ctx, strings.TrimSpace(string(token)))
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close ends the workspace and its workers.
func (r *rig) Close() error {
	err := r.Workspace.Close()
	r.warm.Close()
	return err
}

// push makes a module a skill and grants it the operation of the still world.
func (r *rig) push(ctx context.Context, upload []byte, granted bool) (string, error) {
	s, err := r.PushSkill(ctx, r.owner, upload)
	if err != nil || !granted {
		return s.Name, err
	}
	text := fmt.Sprintf("version: 1\nworkspace: %s\ncap_usd: \"100\"\nidentical_calls: 10000\ngrants:\n  - {skill: %s, operation: %s, resource: \"bench:**\"}\n", rigName, s.Name, meter)
	_, err = r.Apply(ctx, r.owner, api.ApplyInput{Config: text})
	return s.Name, err
}

// finish waits for the end of a run. It looks rarely, since every look costs what is
// being measured.
func (r *rig) finish(ctx context.Context, id host.RunID) (host.RunState, error) {
	for {
		_, _, done, err := r.Events(ctx, r.owner, id, 1<<60)
		if err != nil {
			return "", err
		}
		if done {
			v, err := r.Run(ctx, r.owner, id)
			return v.State, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// play runs a skill to its end and returns what its worker's socket saw.
func (r *rig) play(ctx context.Context, skill, input string, want host.RunState) (begin time.Time, l life, err error) {
	r.clock.reset()
	begin = time.Now()
	run, err := r.StartRun(ctx, r.owner, api.StartInput{Skill: skill, Input: []byte(input)})
	if err != nil {
		return begin, l, err
	}
	state, err := r.finish(ctx, run.ID)
	if err == nil && state != want {
		v, _ := r.Run(ctx, r.owner, run.ID)
		err = fmt.Errorf("the run %s: %s", state, v.Failure)
	}
	lives := r.clock.reset()
	if err == nil && len(lives) != 1 {
		err = fmt.Errorf("the run had %d workers", len(lives))
	}
	if err != nil {
		return begin, l, err
	}
	return begin, *lives[0], nil
}

// compiler and clock are what cmd/monroed/sandbox.go is, without its texts.
type compiler struct{ s *spawn.Spawner }

func (c compiler) Compile(ctx context.Context, upload []byte, dir string) (module.Compiled, error) {
	out, err := c.s.Compile(ctx, upload, dir)
	if err != nil {
		return module.Compiled{}, err
	}
	return module.Compiled{Engine: out.Engine, Manifest: out.Manifest}, nil
}

// life is what one worker's socket saw: when it was asked for, when it was ready, when
// it got its run, when each live call came and when its answer went.
type life struct {
	asked, ready   time.Time
	begun          time.Time
	calls, answers []time.Time
}

type clock struct {
	s     *spawn.Spawner
	mu    sync.Mutex
	lives []*life
}

func (c *clock) reset() []*life {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.lives
	c.lives = nil
	return out
}

// woken waits for the first live call after a moment, and tells when its worker got the
// run.
func (c *clock) woken(ctx context.Context, after time.Time) (begun, live time.Time, err error) {
	for {
		if begun, live = c.first(after); !live.IsZero() {
			return begun, live, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return begun, live, ctx.Err()
		}
	}
}

func (c *clock) first(after time.Time) (begun, live time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lives {
		if n := slices.IndexFunc(l.calls, func(t time.Time) bool { return t.After(after) }); n >= 0 {
			return l.begun, l.calls[n]
		}
	}
	return begun, live
}

// note writes into a life, which may be looked at meanwhile.
func (c *clock) note(do func(time.Time)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do(time.Now())
}

func (c *clock) Spawn(ctx context.Context, code runner.Code) (runner.Worker, error) {
	l := &life{asked: time.Now()}
	dir, err := code.Dir(ctx)
	if err != nil {
		return nil, err
	}
	p, err := c.s.Spawn(ctx, spawn.ModeRun, dir, code.CPU)
	if err != nil {
		return nil, err
	}
	l.ready = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives = append(c.lives, l)
	return &timed{p: p, c: c, life: l}, nil
}

// timed is a worker whose frames are timed as they pass.
type timed struct {
	p    *spawn.Process
	c    *clock
	life *life
	head []byte // of the frame that is being read
	rest int    // of it, still to come
}

func (t *timed) Read(b []byte) (int, error) {
	n, err := t.p.Conn.Read(b)
	for b = b[:n]; len(b) > 0; {
		skip := min(t.rest, len(b))
		t.rest, b = t.rest-skip, b[skip:]
		take := min(5-len(t.head), len(b))
		if t.rest > 0 || take == 0 {
			continue
		}
		t.head, b = append(t.head, b[:take]...), b[take:]
		if len(t.head) == 5 {
			if wire.Kind(t.head[4]) == wire.KindCall {
				t.c.note(func(now time.Time) { t.life.calls = append(t.life.calls, now) })
			}
			t.rest, t.head = int(binary.LittleEndian.Uint32(t.head))-1, t.head[:0]
		}
	}
	return n, err
}

func (t *timed) Write(b []byte) (int, error) {
	switch wire.Kind(b[4]) { //nolint:exhaustive // what else is written is not timed
	case wire.KindStart:
		t.c.note(func(now time.Time) { t.life.begun = now })
	case wire.KindReply:
		t.c.note(func(now time.Time) { t.life.answers = append(t.life.answers, now) })
	}
	return t.p.Conn.Write(b)
}

func (t *timed) Ready() wire.Ready     { return t.p.Ready }
func (t *timed) Done() <-chan struct{} { return t.p.Done() }
func (t *timed) Violations() []string  { return nil }

func (t *timed) Close() error {
	_ = t.p.Close()
	if err := t.p.Wait(); err != nil && !errors.Is(err, spawn.ErrKilled) {
		return err
	}
	return nil
}

// meter is the one operation of the still world: it costs something, so it is
// reserved, attempted, settled and witnessed like a call of a model.
const meter = "bench.meter"

// still is a world in which nothing happens.
type still struct{}

func (still) Operations() []connectors.Operation {
	return []connectors.Operation{{Name: meter, Version: 1, Effect: abi.EffectMetered, Replay: abi.ReplayKeyed, Summary: "Does nothing.", Args: []byte(`{}`), Renderer: connectors.RenderRaw}}
}

func (still) Pinned(string) abi.Digest { return abi.Digest{} }

func (still) Plan(_ context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{
		Resources: []string{"bench:one"}, Destination: "nowhere", Audience: []string{"workspace"}, Ceiling: 1,
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://bench.invalid/", Body: []byte(strings.Repeat("x", 100))}},
	}, nil
}

func (still) Perform(context.Context, grant.Permit, connectors.Call, connectors.Plan, func(string)) broker.Outcome {
	return broker.Outcome{Result: connectors.Result{Reply: struct{}{}, Provenance: connectors.Provenance{Internal: true, Readers: []string{"workspace"}}, Cost: new(abi.MicroUSD)}}
}

func (still) Ready(context.Context, connectors.Plan) *abi.Denial { return nil }

func (still) PlanProbe(connectors.Call, connectors.Plan) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{}, abi.Deny(abi.Unsupported, "nothing can be looked for", "")
}

func (still) Probe(context.Context, grant.Permit, connectors.Call, connectors.Plan, connectors.Plan) broker.Outcome {
	return broker.Outcome{}
}

func (still) Preview(string, connectors.Plan) host.Preview { return host.Preview{} }
