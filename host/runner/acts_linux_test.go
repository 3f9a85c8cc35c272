package runner_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
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
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/faultfs"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// post takes mail, and has it after the workspace's power was cut.
type post struct {
	fakeWorld
	mu   sync.Mutex
	sent []string
	lost bool // nobody hears whether it arrived
}

func (*post) Operations() []connectors.Operation { return brokenWorld{}.Operations() }

func (*post) Plan(_ context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	var a struct {
		Text string `json:"text"`
	}
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return connectors.Plan{}, d
	}
	return connectors.Plan{
		Resources: []string{"mail:bob@example.com"}, Destination: "bob", Audience: []string{"mail:bob@example.com"},
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://example.com/", Body: []byte(a.Text)}},
	}, nil
}

func (w *post) Perform(_ context.Context, _ grant.Permit, _ connectors.Call, p connectors.Plan, _ func(string)) broker.Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, string(p.Frozen.HTTP.Body))
	if w.lost {
		return unheard()
	}
	return broker.Outcome{Result: connectors.Result{Reply: "sent", Provenance: connectors.Provenance{Readers: []string{"workspace"}}}}
}

func (w *post) arrived() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent)
}

// asked makes one call, or replays it, and ends.
func asked(request string) script {
	return func(c net.Conn) {
		if recorded(c) > 0 {
			past(c, 1)
			seen(c, 1, request)
		} else {
			call(c, 1, request)
		}
		done(c)
	}
}

const (
	dear  = `{"op":"send","v":1,"args":{"operation":"mail.send","args":{"text":"dear"}}}`
	rules = grants + "identical_calls: 7\napprovers:\n  - {operation: mail.send, roles: [owner]}\n"
)

var raised = strings.Replace(grants, `"1"`, `"2"`, 1)

// office is a workspace in which one run asks a person whether it may send a mail, and
// another, which wrote a body that lies in a file, has ended.
type office struct {
	*bench
	t        *testing.T
	post     *post
	ahead    *atomic.Int64
	asks     host.RunID
	question host.Approval
	ended    host.RunID
	built    *config.Workspace // what the connectors in force were built for
}

// newOffice makes one in a directory, goes on to where an act begins, and closes it.
func newOffice(t *testing.T, dir string, before func(*office)) *office {
	t.Helper()
	o := &office{t: t, ahead: &atomic.Int64{}, post: &post{}}
	s := &cast{started: map[string]int{}, play: map[string]script{"fixture": asked(now), "mailing": asked(dear), "keeping": asked(put)}}
	o.bench = &bench{config: newBench(t, &fakeSpawner{}).config}
	o.config.Postgres, o.config.Spawner = nil, s
	o.config.Now = func() time.Time { return time.Now().Add(time.Duration(o.ahead.Load())) }
	o.config.World = func(c *config.Workspace) (broker.World, error) { o.built = c; return o.post, nil }
	o.open(dir)
	for _, m := range []string{manifest, mailing, keeping} {
		o.push(t, m)
	}
	o.must(o.apply(grants))
	o.ended = o.kept(t)
	o.asks = o.begin(t, "mailing")
	o.rest(o.asks)
	list, err := o.Approvals(t.Context(), o.caller, host.ApprovalPending)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d approvals, %v", len(list), err)
	}
	o.question = list[0]
	if before != nil {
		before(o)
	}
	o.must(o.Close())
	return o
}

func (o *office) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) open(dir string) {
	o.t.Helper()
	_, err := o.opened(o.t, dir)
	o.must(err)
}

func (o *office) apply(text string) error {
	_, err := o.Apply(o.t.Context(), o.caller, api.ApplyInput{Config: text})
	return err
}

func (o *office) decide(word api.Answer) error {
	_, err := o.Decide(o.t.Context(), o.caller, o.question.ID, api.Decision{Decision: word, Digest: o.question.Digest, SeenBytes: true})
	return err
}

// rest waits until a run that goes on waits again or has ended, or the power is off.
func (o *office) rest(id host.RunID) {
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	for after := int64(0); ; {
		list, more, ended, err := o.Events(o.t.Context(), o.caller, id, after)
		if err != nil || ended || slices.ContainsFunc(list, func(e host.Event) bool { return e.State == host.StateWaiting }) {
			return
		}
		if len(list) > 0 {
			after = list[len(list)-1].Seq
			continue
		}
		select {
		case <-more:
		case <-o.Failed():
			return
		case <-ctx.Done():
			o.t.Errorf("the run %s does not go on", id)
			return
		}
	}
}

// through carries a run to its end, by a truthful person who says yes to what it asks and by
// the sweep.
func (o *office) through(id host.RunID) api.RunView {
	o.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		v := o.view(o.t, id)
		switch {
		case v.State.Ended():
			return v
		case v.State != host.StateWaiting:
			continue
		case v.Wait == host.WaitApproval:
			list, err := o.Approvals(o.t.Context(), o.caller, host.ApprovalPending)
			o.must(err)
			for _, a := range list {
				if _, err := o.Decide(o.t.Context(), o.caller, a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest, SeenBytes: true}); err != nil {
					o.t.Errorf("the question %s cannot be answered: %v", a.ID, err)
				}
			}
		case v.Wait == host.WaitUnknown:
			said := host.DidNotHappen
			if len(o.post.arrived()) > 0 {
				said = host.Happened
			}
			if _, err := o.Resolve(o.t.Context(), o.caller, id, api.ResolveInput{Outcome: said}); err != nil && !errors.Is(err, host.ErrConflict) {
				o.t.Error(err)
			}
		default:
			o.ahead.Add(int64(time.Minute))
		}
		o.must(o.Sweep(o.t.Context()))
	}
	o.t.Fatalf("nobody can carry the run on: %+v", o.view(o.t, id).Run)
	return api.RunView{}
}

// succeeds carries the run that asks to its end, and sees what has been sent.
func (o *office) succeeds(sent ...string) {
	o.t.Helper()
	if v := o.through(o.asks); v.State != host.StateSucceeded || v.Reserved != 0 {
		o.t.Errorf("the run %s: %s, %+v", v.State, v.Failure, v.Log)
	}
	if got := o.post.arrived(); !slices.Equal(got, sent) {
		o.t.Errorf("sent %q, want %q", got, sent)
	}
}

// closed sees that the question cannot be answered any more.
func (o *office) closed() {
	o.t.Helper()
	sent := len(o.post.arrived())
	for _, word := range []api.Answer{api.Approve, api.Reject} {
		if err := o.decide(word); !errors.Is(err, host.ErrConflict) {
			o.t.Errorf("a question that was closed is answered with %s: %v", word, err)
		}
	}
	o.ahead.Add(int64(time.Hour))
	o.must(o.Sweep(o.t.Context()))
	if got := o.post.arrived(); len(got) != sent {
		o.t.Errorf("sent %q after it was closed", got)
	}
}

// is tells the state of the question.
func (o *office) is(st host.ApprovalState) bool {
	o.t.Helper()
	v, err := o.Approval(o.t.Context(), o.caller, o.question.ID)
	o.must(err)
	if v.State == host.ApprovalPending { // as it was
		if run := o.view(o.t, o.asks); run.State != host.StateWaiting || run.Wait != host.WaitApproval {
			o.t.Errorf("the question is open, and its run %s for %q", run.State, run.Wait)
		}
	}
	return v.State == st
}

// reads sees that all that is sealed opens: a result, a body in a file, what a question shows.
func (o *office) reads() {
	o.t.Helper()
	v := o.view(o.t, o.ended)
	if string(v.Result) != `"well"` || len(v.Log) != 1 || v.Notice != "" {
		o.t.Errorf("the run that ended has the result %s, %d calls: %s", v.Result, len(v.Log), v.Notice)
	}
	if _, err := o.Approval(o.t.Context(), o.caller, o.question.ID); err != nil {
		o.t.Error(err)
	}
}

// leaves counts the leaves of a kind that say something.
func (o *office) leaves(kind audit.Kind, detail string) (n int) {
	o.t.Helper()
	v, err := o.Audit(o.t.Context(), o.caller, 0, 1000)
	o.must(err)
	for _, x := range v.Leaves {
		l, err := audit.ParseLeaf(x.Body)
		o.must(err)
		if l.Kind == kind && strings.Contains(l.Detail, detail) {
			n++
		}
	}
	return n
}

// left counts what the database still has of a run's content. The workspace is closed for it.
func (o *office) left(id host.RunID) (n int) {
	o.t.Helper()
	o.must(o.Close())
	db, err := sql.Open("sqlite", filepath.Join(o.config.Dir, "monroe.db"))
	o.must(err)
	err = db.QueryRowContext(o.t.Context(), `SELECT (SELECT count(*) FROM journal WHERE run_id = ?1 AND (length(body_enc) > 0 OR length(label_enc) > 0 OR blob_ref <> ''))
		+ (SELECT count(*) FROM run WHERE run_id = ?1 AND (key_enc IS NOT NULL OR length(start_enc) > 0 OR result_enc IS NOT NULL))`, id).Scan(&n)
	o.must(errors.Join(err, db.Close()))
	o.open(filepath.Dir(filepath.Dir(o.config.Dir)))
	return n
}

// act is something that a person does to a workspace, and that is durable once it has been
// answered.
type act struct {
	before func(*office)       // what it is about, besides an office
	do     func(*office) error // and waits for what follows from it
	// done tells whether it has happened. It complains where it has by half, and where it has
	// not, if anything is not as it was.
	done func(*office) bool
	then func(*office) // carries everything on after it has happened, and sees how that ends
}

var acts = map[string]act{
	"a start": {
		do: func(o *office) error {
			r, err := o.StartRun(o.t.Context(), o.caller, api.StartInput{Skill: "fixture"})
			if err == nil {
				o.rest(r.ID)
			}
			return err
		},
		done: func(o *office) bool { return o.leaves(audit.KindStart, "") > 2 },
		then: func(o *office) {
			list, err := o.Runs(o.t.Context(), o.caller, 10)
			o.must(err)
			if n := o.leaves(audit.KindStart, ""); len(list) != n {
				o.t.Errorf("%d runs, %d leaves of a start", len(list), n)
			}
			for _, r := range list {
				if v := o.through(r.ID); v.State != host.StateSucceeded {
					o.t.Errorf("%s %s: %s", r.Skill, v.State, v.Failure)
				}
			}
			o.succeeds("dear")
		},
	},
	"a yes": {
		do:   func(o *office) error { err := o.decide(api.Approve); o.follow(err); return err },
		done: func(o *office) bool { return !o.is(host.ApprovalPending) },
		then: func(o *office) { o.succeeds("dear"); o.closed() },
	},
	"a no": {
		do:   func(o *office) error { err := o.decide(api.Reject); o.follow(err); return err },
		done: func(o *office) bool { return o.is(host.ApprovalRejected) },
		then: func(o *office) {
			o.succeeds()
			if v := o.view(o.t, o.asks); v.Log[0].Outcome != string(abi.ApprovalRejected) {
				o.t.Errorf("%+v", v.Log)
			}
			o.closed()
		},
	},
	"an edit": {
		do: func(o *office) error {
			_, err := o.Edit(o.t.Context(), o.caller, o.question.ID, api.EditInput{Digest: o.question.Digest, Fields: map[string]json.RawMessage{"text": []byte(`"dearest"`)}})
			o.follow(err)
			return err
		},
		done: func(o *office) bool { return o.is(host.ApprovalSuperseded) },
		then: func(o *office) { o.closed(); o.succeeds("dearest") },
	},
	"a cancellation": {
		do: func(o *office) error { return o.CancelRun(o.t.Context(), o.caller, o.asks) },
		done: func(o *office) bool {
			return o.view(o.t, o.asks).State == host.StateCancelled || !o.is(host.ApprovalPending)
		},
		then: func(o *office) {
			if v := o.view(o.t, o.asks); v.State != host.StateCancelled || v.Reserved != 0 {
				o.t.Errorf("%s: %+v", v.State, v.Run)
			}
			o.closed()
			if sent := o.post.arrived(); len(sent) != 0 {
				o.t.Errorf("a cancelled run sent %q", sent)
			}
		},
	},
	"an erasure": {
		do: func(o *office) error { _, err := o.EraseRun(o.t.Context(), o.caller, o.ended); return err },
		done: func(o *office) bool {
			if o.view(o.t, o.ended).ErasedAt.IsZero() {
				o.reads()
				return false
			}
			return true
		},
		then: func(o *office) {
			if v := o.view(o.t, o.ended); v.Result != nil || len(v.Log) != 0 || v.Records == 0 {
				o.t.Errorf("%+v", v)
			}
			if n := o.left(o.ended); n != 0 {
				o.t.Errorf("%d rows have content", n)
			}
			o.ahead.Add(int64(2 * time.Hour))
			o.must(o.Sweep(o.t.Context()))
			if files := o.blobs(o.t); len(files) != 0 {
				o.t.Errorf("files %v", files)
			}
			_, err := o.EraseRun(o.t.Context(), o.caller, o.ended)
			problem(o.t, err, "RUN_ERASED")
			o.succeeds("dear")
		},
	},
	"a higher cap": {
		do:   func(o *office) error { return o.apply(raised) },
		done: func(o *office) bool { o.is(host.ApprovalPending); return o.inForce(raised) },
		then: func(o *office) { o.must(o.decide(api.Approve)); o.succeeds("dear") }, // the question is the same
	},
	"other rules": {
		do: func(o *office) error { err := o.apply(rules); o.follow(err); return err },
		done: func(o *office) bool {
			is := o.inForce(rules)
			if is != o.is(host.ApprovalVoid) {
				o.t.Errorf("the new rules are in force: %v, and the question of the old ones is %v", is, !is)
			}
			return is
		},
		then: func(o *office) {
			o.closed()
			o.succeeds()
			if v := o.view(o.t, o.asks); v.Log[0].Outcome != string(abi.ApprovalExpired) {
				o.t.Errorf("%+v", v.Log)
			}
		},
	},
	"another module": {
		do: func(o *office) error {
			_, err := o.PushSkill(o.t.Context(), o.caller, []byte(strings.Replace(mailing, `"version":"1"`, `"version":"2"`, 1)))
			return err
		},
		done: func(o *office) bool {
			s, err := o.Skill(o.t.Context(), o.caller, "mailing")
			o.must(err)
			pushed := s.Version == "2"
			if n := o.leaves(audit.KindAdmin, "skill pushed"); pushed != (n == 4) {
				o.t.Errorf("version %s, and %d leaves of a push", s.Version, n)
			}
			return pushed
		},
		then: func(o *office) { o.succeeds("dear") }, // by the module that it began with
	},
	"a word about a doubt": {
		before: func(o *office) {
			o.post.lost = true
			o.must(o.decide(api.Approve))
			o.await(o.t, o.asks, func(host.RunState) bool { return o.view(o.t, o.asks).Wait == host.WaitUnknown })
		},
		do: func(o *office) error {
			_, err := o.Resolve(o.t.Context(), o.caller, o.asks, api.ResolveInput{Outcome: host.Happened})
			o.follow(err)
			return err
		},
		done: func(o *office) bool { return o.leaves(audit.KindResolved, "") > 0 },
		then: func(o *office) {
			o.succeeds() // it was sent before, and is not sent again
			if v := o.view(o.t, o.asks); v.Log[0].Outcome != "ok" {
				o.t.Errorf("%+v", v.Log)
			}
		},
	},
	"a release": {
		before: func(o *office) { // as after a restore
			dir, now := o.config.Dir, o.config.Now()
			o.must(o.Close())
			st, err := store.Open(o.t.Context(), filepath.Join(dir, "monroe.db"), o.config.Name, "a restore", now)
			o.must(err)
			o.must(st.Write(o.t.Context(), func(tx *store.Tx) error { _, _, err := tx.Restored(now, now.Add(runner.HeldLife)); return err }))
			o.must(st.Close())
			o.open(filepath.Dir(filepath.Dir(dir)))
		},
		do: func(o *office) error {
			_, err := o.ReleaseRun(o.t.Context(), o.caller, o.asks)
			o.follow(err)
			return err
		},
		done: func(o *office) bool {
			let := o.view(o.t, o.asks).Wait != host.WaitRestored
			if n := o.leaves(audit.KindAdmin, "released"); let != (n == 1) {
				o.t.Errorf("it may go on: %v, and %d leaves of that", let, n)
			}
			return let
		},
		then: func(o *office) {
			o.succeeds() // the question of before is void
			if v := o.view(o.t, o.asks); v.Log[0].Outcome != string(abi.ApprovalExpired) {
				o.t.Errorf("%+v", v.Log)
			}
			o.closed()
		},
	},
	"a rotation": {
		do: func(o *office) error { _, err := o.RotateKeys(o.t.Context(), o.caller); o.sealed(); return err },
		done: func(o *office) bool {
			o.reads()
			v, err := o.Keys(o.t.Context(), o.caller)
			o.must(err)
			return v.Keys > 1
		},
		then: func(o *office) {
			if n := o.leaves(audit.KindAdmin, "rotated"); n == 0 {
				o.t.Error("nothing witnesses the rotation")
			}
			o.sealed()
			if v, err := o.Keys(o.t.Context(), o.caller); err != nil || v.Rewrapping {
				o.t.Errorf("%+v, %v", v, err)
			}
			o.reads()
			o.succeeds("dear")
		},
	},
}

// follow waits for what an answer or new rules do to the run that asks.
func (o *office) follow(err error) {
	if err == nil {
		o.rest(o.asks)
	}
}

// sealed sweeps until nothing is left that an earlier key sealed, or the power is off.
func (o *office) sealed() {
	for range 10 {
		if err := o.Sweep(o.t.Context()); err != nil {
			return
		}
	}
}

// inForce tells whether a configuration is, and complains if neither it nor the first one is,
// as a whole.
func (o *office) inForce(text string) bool {
	o.t.Helper()
	v, err := o.Workspace.Workspace(o.t.Context(), o.caller)
	o.must(err)
	is := v.Config == text
	if !is && v.Config != grants {
		o.t.Errorf("the configuration is %s", v.Config)
	}
	if want, err := config.ParseWorkspace([]byte(v.Config)); err != nil || v.CapUSD != "$"+want.CapUSD+".00" || o.built.CapUSD != want.CapUSD || o.built.IdenticalCalls != want.IdenticalCalls {
		o.t.Errorf("cap %s, connectors of %+v, the text %+v (%v)", v.CapUSD, o.built, want, err)
	}
	s, err := o.Skill(o.t.Context(), o.caller, "mailing")
	if n := o.leaves(audit.KindAdmin, "configuration applied"); err != nil || !s.Granted || is != (n > 1) {
		o.t.Errorf("granted %v (%v), %d leaves of it, in force %v", s.Granted, err, n, is)
	}
	return is
}

// A person does something that lasts, and the power is cut before each step of the disk, with
// the names that were not synced or without. Afterwards it has happened wholly, or not at all
// and can be done again; what was answered has happened; and every run comes to its end with
// nothing sent twice, and nothing at all where a person said so.
func TestRootAnActThatIsCutOff(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	for name, a := range acts {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a commit leaves a processor idle
			from := t.TempDir()
			o := newOffice(t, from, a.before)
			disk, points := faultfs.Start(t), 0
			for at := 1; ; at += storetest.Stride {
				hit := ""
				for _, names := range []bool{false, true} {
					if storetest.Stride > 1 && names != (at%2 == 0) {
						continue
					}
					disk.Format(from)
					o.post.sent = nil
					o.ahead.Store(0)
					o.open(disk.Mount())
					disk.Inject(faultfs.Rule{Op: faultfs.Steps, At: at, Cut: true, Names: names})
					answered := a.do(o) == nil
					hit = disk.Hit()
					disk.Cut()
					_ = o.Close()
					disk.Unmount()

					o.open(disk.Mount())
					o.held(a, answered)
					o.must(o.Close())
					disk.Unmount()
					if t.Failed() {
						t.Fatalf("cut at step %d: %q, names last: %v, answered: %v", at, hit, names, answered)
					}
				}
				if hit == "" { // cut right after it
					break
				}
				points++
			}
			if points < 1 {
				t.Errorf("%d points", points)
			}
			t.Logf("%d points", points)
		})
	}
}

// held holds a workspace to what an act that may have been cut off may leave.
func (o *office) held(a act, answered bool) {
	o.t.Helper()
	happened := a.done(o)
	if answered && !happened {
		o.t.Error("it was answered, and is lost")
	}
	if !happened {
		if sent := o.post.arrived(); len(sent) > 0 {
			o.t.Errorf("it has not happened, and %q was sent", sent)
		}
		if err := a.do(o); err != nil {
			o.t.Errorf("it cannot be done again: %v", err)
		} else if !a.done(o) {
			o.t.Error("done again, it has not happened")
		}
	}
	a.then(o)
	o.verified(o.t)
}
