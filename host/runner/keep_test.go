package runner_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/vaulttest"
	"github.com/getmonroe/monroe/host/workspace"
)

const keeping = `{"abi":1,"name":"keeping","version":"1","description":"","ops":["kv.put","time.sleep","run.continue"]}`

// put stores a value of 100 kB: its record's body is a file.
var put = fmt.Sprintf(`{"op":"kv.put","v":1,"args":{"key":"k","value":%q}}`, strings.Repeat("CANARY ", 15_000))

// verified rebuilds the audit log and holds the journals to it, as audit verify does.
func (b *bench) verified(t *testing.T) (kinds map[audit.Kind]int) {
	t.Helper()
	v, err := b.Audit(t.Context(), b.caller, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var log audit.Log
	var books audit.Books
	heads := map[string]string{}
	for _, j := range v.Journal {
		heads[fmt.Sprint(j.Run, j.Seq)] = j.Head
	}
	kinds = map[audit.Kind]int{}
	for i, x := range v.Leaves {
		l, err := audit.ParseLeaf(x.Body)
		if err := errors.Join(err, log.Add(x.Body), books.Add(int64(i), l)); err != nil {
			t.Fatal(err)
		}
		kinds[l.Kind]++
		if l.Chain != "" && heads[fmt.Sprint(l.Run, l.Seq)] != l.Chain {
			t.Errorf("the journal of %s is not what leaf %d witnessed", l.Run, i)
		}
	}
	head, err := audit.OpenCheckpoint([]byte(v.Checkpoint), v.Verifier)
	if err := errors.Join(err, log.Check(head)); err != nil {
		t.Error(err)
	}
	return kinds
}

func (b *bench) blobs(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(b.config.Dir, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// keeper is a bench with a clock, whose runs put a value, continue, put and end.
func keeper(t *testing.T, change func(*workspace.Config)) (b *bench, ahead *atomic.Int64) {
	t.Helper()
	ahead = &atomic.Int64{}
	var worker atomic.Int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) {
		open(c)
		call(c, 1, put)
		if worker.Add(1)%2 == 1 {
			call(c, 2, `{"op":"run.continue","v":1,"args":{"state":"CANARY"}}`)
			return
		}
		done(c)
	}}}
	b = benchWith(t, s, func(c *workspace.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		change(c)
	})
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(keeping)); err != nil {
		t.Fatal(err)
	}
	return b, ahead
}

func (b *bench) kept(t *testing.T) host.RunID {
	t.Helper()
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "keeping", Input: []byte(`"CANARY"`)})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(host.RunState) bool { return false })
	if v := b.view(t, r.ID); v.State != host.StateSucceeded {
		t.Fatalf("%s: %s", v.State, v.Failure)
	}
	return r.ID
}

func problem(t *testing.T, err error, code string) {
	t.Helper()
	if p := new(host.Problem); !errors.As(err, &p) || p.Code != code {
		t.Errorf("%v, want %s", err, code)
	}
}

func TestAnErasedRunHasNoContentAndStillVerifies(t *testing.T) {
	b, _ := keeper(t, func(*workspace.Config) {})
	id, other := b.kept(t), b.kept(t)
	if n := len(b.blobs(t)); n != 4 {
		t.Fatalf("%d files of large bodies", n)
	}
	before := b.view(t, id)
	member := b.caller
	member.Role = host.RoleMember
	_, err := b.EraseRun(t.Context(), member, id)
	problem(t, err, "ROLE")
	_, err = b.EraseRun(t.Context(), b.caller, "run_00000000000000000000000000")
	problem(t, err, "RUN")
	if b.verified(t)[audit.KindErase] != 0 {
		t.Error("a refusal left a leaf")
	}

	if _, err := b.EraseRun(t.Context(), b.caller, id); err != nil {
		t.Fatal(err)
	}
	if kinds := b.verified(t); kinds[audit.KindErase] != 1 {
		t.Errorf("leaves: %v", kinds)
	}
	v := b.view(t, id)
	if v.ErasedAt.IsZero() || v.Result != nil || len(v.Log) != 0 || v.Receipt != before.Receipt || v.Records != before.Records || len(v.Segments) != 2 {
		t.Errorf("%+v", v)
	}
	for _, path := range b.blobs(t) {
		if strings.Contains(path, string(id)) {
			t.Errorf("%s is left", path)
		}
	}
	_, err = b.EraseRun(t.Context(), b.caller, id)
	problem(t, err, "RUN_ERASED")
	if o := b.view(t, other); string(o.Result) != `"well"` || len(o.Log) == 0 {
		t.Errorf("another run: %+v", o)
	}
	b.reopen(t)
	b.verified(t)
	if list, err := b.Runs(t.Context(), b.caller, 10); err != nil || list[1].ErasedAt.IsZero() || !list[0].ErasedAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestALiveRunIsErasedOnlyAfterItIsCancelled(t *testing.T) {
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, now); call(c, 2, sleep) }}}
	b := newBench(t, s)
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting })
	_, err = b.EraseRun(t.Context(), b.caller, r.ID)
	problem(t, err, "RUN_LIVE")
	if err := b.CancelRun(t.Context(), b.caller, r.ID); err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(host.RunState) bool { return false })
	if _, err := b.EraseRun(t.Context(), b.caller, r.ID); err != nil {
		t.Fatal(err)
	}
	if v := b.view(t, r.ID); v.State != host.StateCancelled || v.Failure != "erased" {
		t.Errorf("%s: %s", v.State, v.Failure)
	}
	b.verified(t)
}

func TestRetentionErasesWhatEndedLongAgo(t *testing.T) {
	b, ahead := keeper(t, func(c *workspace.Config) { c.Operator.Retention.Days = 30 })
	sweep := func(days int) {
		t.Helper()
		ahead.Store(int64(days) * int64(24*time.Hour))
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	old := b.kept(t)
	sweep(20)
	young := b.kept(t)
	sweep(29)
	if !b.view(t, old).ErasedAt.IsZero() {
		t.Error("it was erased too early")
	}
	sweep(31)
	if b.view(t, old).ErasedAt.IsZero() || !b.view(t, young).ErasedAt.IsZero() {
		t.Error("the old run is kept, or the young one is not")
	}
	sweep(51)
	if b.view(t, young).ErasedAt.IsZero() || len(b.blobs(t)) != 0 {
		t.Errorf("files %v", b.blobs(t))
	}
	if kinds := b.verified(t); kinds[audit.KindErase] != 2 {
		t.Errorf("leaves: %v", kinds)
	}
}

// What a crash left between an erasure and its files goes with the next sweep.
func TestFilesOfAnErasedRunThatACrashLeftAreSwept(t *testing.T) {
	b, ahead := keeper(t, func(*workspace.Config) {})
	id := b.kept(t)
	left := b.blobs(t)
	content, err := os.ReadFile(left[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.EraseRun(t.Context(), b.caller, id); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(left[0]), 0o700), os.WriteFile(left[0], content, 0o600)); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(2 * time.Hour))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.blobs(t); len(got) != 0 || bytes.Contains(content, []byte("CANARY")) {
		t.Errorf("files %v", got)
	}
}

// A run whose file of a large body is gone, or was changed, ends with a word that says so.
// The one beside it goes on.
func TestARunWithoutItsFileIsQuarantinedAlone(t *testing.T) {
	for what, damage := range map[string]func(path string) error{
		"its file is missing": os.Remove,
		"was changed": func(path string) error {
			b, err := os.ReadFile(path)
			b[len(b)/2] ^= 1
			return errors.Join(err, os.WriteFile(path, b, 0o600))
		},
	} {
		t.Run(what, func(t *testing.T) {
			var ahead, workers atomic.Int64
			s := &fakeSpawner{scripts: []script{func(c net.Conn) {
				open(c)
				if workers.Add(1) > 2 {
					past(c, 1)
					seen(c, 1, put)
				} else {
					call(c, 1, put)
				}
				call(c, 2, sleep)
				done(c)
			}}}
			b := benchWith(t, s, func(c *workspace.Config) {
				c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			})
			if _, err := b.PushSkill(t.Context(), b.caller, []byte(keeping)); err != nil {
				t.Fatal(err)
			}
			var ids [2]host.RunID
			for i := range ids {
				r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "keeping"})
				if err != nil {
					t.Fatal(err)
				}
				ids[i] = r.ID
				b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting })
			}
			for _, path := range b.blobs(t) {
				if strings.Contains(path, string(ids[0])) {
					if err := damage(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			if v := b.view(t, ids[0]); !strings.Contains(v.Notice, "quarantined") || !strings.Contains(v.Notice, what) {
				t.Errorf("notice %q", v.Notice)
			}
			ahead.Store(int64(2 * time.Hour))
			if err := b.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, want := range []host.RunState{host.StateFailed, host.StateSucceeded} {
				b.await(t, ids[i], func(host.RunState) bool { return false })
				v := b.view(t, ids[i])
				if v.State != want || i == 0 && !strings.Contains(v.Failure, what) {
					t.Errorf("run %d %s: %s", i, v.State, v.Failure)
				}
			}
		})
	}
}

// The workspace as a whole: a key service, a rotation while runs wait, a restart.
func TestAWorkspaceWithAKeyServiceIsRotatedWhileRunsWait(t *testing.T) {
	kek := &vaulttest.KEK{ID: "one"}
	var ahead atomic.Int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, sleep); done(c) }}}
	b := benchWith(t, s, func(c *workspace.Config) {
		c.KEK = kek
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting })
	member := b.caller
	member.Role = host.RoleMember
	_, err = b.RotateKeys(t.Context(), member)
	problem(t, err, "ROLE")
	v, err := b.RotateKeys(t.Context(), b.caller)
	if err != nil || v.Keys != 2 || v.KEK != "one" || !v.Rewrapping {
		t.Fatalf("%+v, %v", v, err)
	}
	for v.Rewrapping {
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		v, _ = b.Keys(t.Context(), b.caller)
	}
	b.reopen(t)
	ahead.Store(int64(2 * time.Hour))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(host.RunState) bool { return false })
	if v := b.view(t, r.ID); v.State != host.StateSucceeded {
		t.Errorf("%s: %s", v.State, v.Failure)
	}
	b.verified(t)

	// A service that is away: no start of the daemon, and the file is as it was.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	kek.Away.Store(true)
	if _, err := workspace.Open(t.Context(), b.config); !errors.Is(err, vault.ErrKEK) {
		t.Errorf("a start without the service: %v", err)
	}
	kek.Away.Store(false)
	// Back to clear text, and to another service, by the operator's word alone.
	find := func(string) (vault.KEK, error) { return kek, nil }
	back := b.config
	back.KEK = nil
	if _, err := workspace.Open(t.Context(), back); err == nil {
		t.Error("a sealed keyset was opened as clear text")
	}
	if err := workspace.RewrapKeys(t.Context(), back, find); err != nil {
		t.Fatal(err)
	}
	b.config = back
	if b.Workspace, err = workspace.Open(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	if v, err := b.Keys(t.Context(), b.caller); err != nil || v.KEK != "" || v.Keys != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	if b.view(t, r.ID).State != host.StateSucceeded {
		t.Error("the run is gone")
	}
}
