package runner_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/workspace"
)

// cast starts workers that follow the script of their skill.
type cast struct {
	mu      sync.Mutex
	play    map[string]script
	started map[string]int
	spawned func(dir string)
}

func (s *cast) Spawn(ctx context.Context, c runner.Code) (runner.Worker, error) {
	dir, err := c.Dir(ctx)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "module.wasm"))
	var m abi.Manifest
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started[m.Name]++
	if s.spawned != nil {
		s.spawned(dir)
	}
	one := &fakeSpawner{ready: engine, scripts: []script{s.play[m.Name]}}
	return one.next()
}

func (s *cast) count(skill string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started[skill]
}

// skilled is a manifest of a skill that may do what the tests of this file do.
func skilled(name string) []byte {
	return fmt.Appendf(nil, `{"abi":1,"name":%q,"version":"1","description":"","ops":["time.sleep","skill.call"],"limits":{"calls":12}}`, name)
}

// stage is a workspace with the skills of a cast.
func stage(t *testing.T, s *cast, clock func() time.Time, change func(*workspace.Config)) *bench {
	t.Helper()
	s.started = map[string]int{}
	b := benchWith(t, &fakeSpawner{}, func(c *workspace.Config) {
		c.Spawner, c.Now = s, clock
		if change != nil {
			change(c)
		}
	})
	for name := range s.play {
		if _, err := b.PushSkill(t.Context(), b.caller, skilled(name)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bench) begin(t *testing.T, skill string) host.RunID {
	t.Helper()
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: skill})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

func (b *bench) sweep(t *testing.T) {
	t.Helper()
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// finish waits for a run's end.
func (b *bench) finish(t *testing.T, id host.RunID) api.RunView {
	t.Helper()
	b.await(t, id, func(host.RunState) bool { return false })
	return b.view(t, id)
}

func ask(c net.Conn, n uint32, request string) string {
	send(c, wire.KindCall, wire.AppendCall(nil, n), []byte(request))
	_, payload, err := wire.ReadFrame(c, wire.KindReply)
	if err != nil {
		return ""
	}
	return string(payload[12:])
}

func calls(skill string) string {
	return fmt.Sprintf(`{"op":"skill.call","v":1,"args":{"skill":%q}}`, skill)
}

// calling asks for a skill, also after it was parked, and ends with the answer.
func calling(skill string) script {
	return func(c net.Conn) {
		open(c)
		got, _ := json.Marshal(ask(c, 1, calls(skill)))
		send(c, wire.KindDone, u32(0), got)
	}
}

// One worker for all: the caller has to leave its place.
func TestASkillIsCalledThroughTheWholeHost(t *testing.T) {
	for name, workers := range map[string]int{"one worker": 1, "two workers": 2} {
		t.Run(name, func(t *testing.T) {
			s := &cast{play: map[string]script{
				"upper": calling("lower"),
				"lower": func(c net.Conn) { open(c); call(c, 1, now); send(c, wire.KindDone, u32(0), []byte(`{"said":"hello"}`)) },
			}}
			b := stage(t, s, time.Now, func(c *workspace.Config) {
				keep := time.Minute
				c.Operator.Workers, c.Operator.Waits.KeepWorker = workers, &keep
			})
			id := b.begin(t, "upper")
			v := b.finish(t, id)
			if v.State != host.StateSucceeded || string(v.Result) != `"{\"ok\":{\"result\":{\"said\":\"hello\"}}}"` {
				t.Errorf("%s: %s %s", v.State, v.Failure, v.Result)
			}
			if len(v.Tree) != 2 || v.Tree[1].Parent != id || v.Tree[1].Skill != "lower" || v.Tree[1].State != host.StateSucceeded {
				t.Errorf("%+v", v.Tree)
			}
			// What it calls spends out of its own: the ceiling is told before the start.
			if v.Estimate.Ceiling != abi.USD || v.Tree[1].Budget != abi.USD {
				t.Errorf("the ceilings are %s and %s", v.Estimate.Ceiling, v.Tree[1].Budget)
			}
			if w := b.view(t, v.Tree[1].ID); w.Root != id || w.OnBehalfOf.ID != b.caller.ID || !w.Attended {
				t.Errorf("%+v", w.Run)
			}
			if s.count("lower") != 1 || s.count("upper") != 3-workers {
				t.Errorf("%v were started", s.started)
			}
		})
	}
}

// What a run may call is bounded for the tree as a whole: a child's calls count.
func TestATreeSharesItsCalls(t *testing.T) {
	s := &cast{play: map[string]script{
		"upper": func(c net.Conn) {
			open(c)
			for n := range uint32(8) {
				if ask(c, n+1, calls("lower")) == "" {
					return
				}
			}
			done(c)
		},
		"lower": func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, now); done(c) },
	}}
	b := stage(t, s, time.Now, func(c *workspace.Config) {
		keep := time.Minute
		c.Operator.Workers, c.Operator.Waits.KeepWorker = 4, &keep
	})
	v := b.finish(t, b.begin(t, "upper"))
	if v.State != host.StateFailed || !strings.Contains(v.Failure, "made more than 12 calls") {
		t.Errorf("%s: %s", v.State, v.Failure)
	}
	if len(v.Tree) != 5 { // four times 1 + 2, then the fifth call is the thirteenth
		t.Errorf("%d runs", len(v.Tree))
	}
}

// A daemon that stops while both wait goes on with both, and starts neither twice.
func TestATreeSurvivesARestart(t *testing.T) {
	var ahead atomic.Int64
	s := &cast{play: map[string]script{
		"upper": calling("middle"), "middle": calling("lower"), "lower": func(c net.Conn) { open(c); call(c, 1, sleep); done(c) },
	}}
	b := stage(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, nil)
	id := b.begin(t, "upper")
	b.await(t, id, func(host.RunState) bool {
		v := b.view(t, id)
		return len(v.Tree) == 3 && v.Tree[0].Wait == host.WaitSkill && v.Tree[1].Wait == host.WaitSkill && v.Tree[2].Wait == host.WaitTimer
	})
	b.reopen(t)
	ahead.Store(int64(2 * time.Hour))
	b.sweep(t)
	if v := b.finish(t, id); v.State != host.StateSucceeded || len(v.Tree) != 3 || string(v.Result) != `"{\"ok\":{\"result\":\"{\\\"ok\\\":{\\\"result\\\":\\\"well\\\"}}\"}}"` {
		t.Errorf("%s: %s %s %+v", v.State, v.Failure, v.Result, v.Tree)
	}
	if s.count("lower") != 2 || s.count("middle") != 2 || s.count("upper") != 2 {
		t.Errorf("%v were started", s.started)
	}
}

// Whoever ends the caller ends all that it called, in its place or at work.
func TestCancellingEndsTheTree(t *testing.T) {
	working := make(chan struct{}, 10)
	for name, lower := range map[string]script{
		"waiting": func(c net.Conn) { open(c); call(c, 1, sleep) },
		"at work": func(c net.Conn) {
			open(c)
			working <- struct{}{}
			_, _, _ = wire.ReadFrame(c, wire.KindReply) // until it is killed
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &cast{play: map[string]script{"upper": calling("middle"), "middle": calling("lower"), "lower": lower}}
			b := stage(t, s, time.Now, nil)
			id := b.begin(t, "upper")
			if name == "at work" {
				<-working
			}
			b.await(t, id, func(host.RunState) bool {
				v := b.view(t, id)
				return len(v.Tree) == 3 && v.Tree[0].Wait == host.WaitSkill && v.Tree[1].Wait == host.WaitSkill && (name == "at work" || v.Tree[2].Wait == host.WaitTimer)
			})
			if err := b.CancelRun(t.Context(), b.caller, id); err != nil {
				t.Fatal(err)
			}
			v := b.finish(t, id)
			for _, n := range v.Tree {
				if n.State != host.StateCancelled {
					t.Errorf("%s is %s", n.Skill, n.State)
				}
				b.finish(t, n.ID)
			}
			// Ended from below, so that each gave back before the one above it ended.
			a, err := b.Audit(t.Context(), b.caller, 0, 1000)
			if err != nil {
				t.Fatal(err)
			}
			var ends []string
			for _, l := range a.Leaves {
				var leaf struct{ Kind, Skill string }
				if json.Unmarshal(l.Body, &leaf) == nil && leaf.Kind == "run_end" {
					ends = append(ends, leaf.Skill)
				}
			}
			if strings.Join(ends, " ") != "lower middle upper" {
				t.Errorf("ended in the order %v", ends)
			}
		})
	}
}

// A callee that a person ends is a refusal, and the caller goes on.
func TestACancelledCalleeIsARefusal(t *testing.T) {
	s := &cast{play: map[string]script{"upper": calling("lower"), "lower": func(c net.Conn) { open(c); call(c, 1, sleep) }}}
	b := stage(t, s, time.Now, nil)
	id := b.begin(t, "upper")
	b.await(t, id, func(host.RunState) bool {
		v := b.view(t, id)
		return len(v.Tree) == 2 && v.Tree[0].Wait == host.WaitSkill && v.Tree[1].Wait == host.WaitTimer
	})
	if err := b.CancelRun(t.Context(), b.caller, b.view(t, id).Tree[1].ID); err != nil {
		t.Fatal(err)
	}
	if v := b.finish(t, id); v.State != host.StateSucceeded || !strings.Contains(string(v.Result), `\"code\":\"DENIED\"`) {
		t.Errorf("%s: %s", v.State, v.Result)
	}
}

// A skill that calls itself comes to an end.
func TestRecursionEnds(t *testing.T) {
	s := &cast{play: map[string]script{"upper": calling("upper")}}
	b := stage(t, s, time.Now, nil)
	v := b.finish(t, b.begin(t, "upper"))
	if v.State != host.StateSucceeded || len(v.Tree) != broker.MaxDepth || !strings.Contains(string(v.Result), "RATE") {
		t.Errorf("%s: %s, %d runs", v.State, v.Result, len(v.Tree))
	}
}

// What is granted is the intersection of the chain: the caller's manifest lacks what
// the callee's lists.
func TestACalleeGetsNoMoreThanItsCaller(t *testing.T) {
	random := `{"op":"random.bytes","v":1,"args":{"n":1}}`
	s := &cast{play: map[string]script{"upper": calling("greedy")}}
	b := stage(t, s, time.Now, nil)
	s.mu.Lock()
	s.play["greedy"] = func(c net.Conn) {
		open(c)
		got, _ := json.Marshal(ask(c, 1, random))
		send(c, wire.KindDone, u32(0), got)
	}
	s.mu.Unlock()
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(`{"abi":1,"name":"greedy","version":"1","description":"","ops":["random.bytes"]}`)); err != nil {
		t.Fatal(err)
	}
	if v := b.finish(t, b.begin(t, "greedy")); !strings.Contains(string(v.Result), "base64") {
		t.Errorf("by itself it got %s", v.Result)
	}
	if v := b.finish(t, b.begin(t, "upper")); !strings.Contains(string(v.Result), "SCOPE") || !strings.Contains(string(v.Result), "manifest of upper") {
		t.Errorf("called it got %s", v.Result)
	}
}
