package runner_test

import (
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
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/workspace"
)

// restored closes a bench, puts a backup of it in its place and serves that. With
// PostgreSQL the database stays: what a dump would hold is not tested here.
func (b *bench) restored(t *testing.T, backup string) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.config.Dir, b.config.Dir+".before"); err != nil {
		t.Fatal(err)
	}
	if err := workspace.Restore(t.Context(), b.config, backup); err != nil {
		t.Fatal(err)
	}
	w, err := workspace.Open(t.Context(), b.config)
	if err != nil {
		t.Fatal(err)
	}
	b.Workspace = w
}

func (b *bench) backup(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "backup")
	if _, err := workspace.TakeBackup(t.Context(), b.config, dir, true); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An old database does not know what was sent since. So after a restore nothing goes on
// by itself, no question of before can be answered, and what was in doubt stays so.
func TestARestoredWorkspaceSendsNothingUntilAPersonSaysGo(t *testing.T) {
	var sent, ahead atomic.Int64
	mail := `{"op":"send","v":1,"args":{"operation":"mail.send","args":{}}}`
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, mail); done(c) }}}
	b := benchWith(t, s, func(c *workspace.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.World = func(*config.Workspace) (broker.World, error) { return brokenWorld{sent: &sent}, nil }
	})
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(mailing)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Apply(t.Context(), b.caller, api.ApplyInput{Config: grants}); err != nil {
		t.Fatal(err)
	}
	start := func(enough func(host.RunState) bool) host.RunID {
		t.Helper()
		r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "mailing"})
		if err != nil {
			t.Fatal(err)
		}
		b.await(t, r.ID, enough)
		return r.ID
	}
	waits := func(st host.RunState) bool { return st == host.StateWaiting }
	approve := func(id host.ApprovalID) error {
		v, err := b.Approval(t.Context(), b.caller, id)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Decide(t.Context(), b.caller, id, api.Decision{Decision: api.Approve, Digest: v.Digest, SeenBytes: true})
		return err
	}
	pending := func() []host.Approval {
		t.Helper()
		list, err := b.Approvals(t.Context(), b.caller, host.ApprovalPending)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	wait := func(id host.RunID, kind host.WaitKind) {
		t.Helper()
		for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
			if v := b.view(t, id); v.State == host.StateWaiting && v.Wait == kind {
				return
			}
		}
		t.Fatalf("the run is %+v, want %s", b.view(t, id).Run, kind)
	}
	doubt := start(waits) // sent, and its answer lost
	if err := approve(pending()[0].ID); err != nil {
		t.Fatal(err)
	}
	wait(doubt, host.WaitUnknown)
	asks := start(waits)
	open := pending()[0].ID

	dir := b.backup(t)
	if b.config.Postgres == nil { // what happens after the backup: the mail is sent
		if err := approve(open); err != nil {
			t.Fatal(err)
		}
		wait(asks, host.WaitUnknown)
	}
	count := sent.Load()
	b.restored(t, dir)

	for range 3 { // whatever time passes, until nobody is waited for any more
		ahead.Add(int64(9 * 24 * time.Hour))
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ahead.Store(0)
	for _, id := range []host.RunID{doubt, asks} {
		if v := b.view(t, id); v.State != host.StateWaiting || v.Wait != host.WaitRestored {
			t.Errorf("%s is %s %s", id, v.State, v.Wait)
		}
		if _, err := b.Resolve(t.Context(), b.caller, id, api.ResolveInput{Outcome: host.DidNotHappen}); err == nil {
			t.Error("a held run was resolved")
		}
	}
	if err := approve(open); err == nil || len(pending()) != 0 {
		t.Errorf("a question of before the restore was answered: %v, %d pending", err, len(pending()))
	}
	if _, err := b.Apply(t.Context(), b.caller, api.ApplyInput{Config: grants}); err != nil {
		t.Fatal(err)
	}
	if sent.Load() != count {
		t.Fatal("something was sent")
	}
	member := b.caller
	member.Role = host.RoleMember
	_, err := b.ReleaseRun(t.Context(), member, doubt)
	problem(t, err, "ROLE")

	// In doubt before, in doubt after: blind, so nobody sends it again.
	if _, err := b.ReleaseRun(t.Context(), b.caller, doubt); err != nil {
		t.Fatal(err)
	}
	wait(doubt, host.WaitUnknown)
	// The question is void: the guest is told so, and nothing was sent.
	if _, err := b.ReleaseRun(t.Context(), b.caller, asks); err != nil {
		t.Fatal(err)
	}
	b.await(t, asks, func(host.RunState) bool { return false })
	if v := b.view(t, asks); v.State != host.StateSucceeded || v.Log[0].Outcome != "APPROVAL_EXPIRED" {
		t.Errorf("%s: %+v", v.State, v.Log)
	}
	_, err = b.ReleaseRun(t.Context(), b.caller, asks)
	problem(t, err, "RUN_NOT_HELD")
	if sent.Load() != count {
		t.Error("something was sent")
	}
	if kinds := b.verified(t); kinds[audit.KindAdmin] < 5 {
		t.Errorf("leaves %v", kinds)
	}
}

// Nobody lets a run go on after a restore: it ends, and has done nothing more.
func TestNobodyReleasesARun(t *testing.T) {
	var ahead atomic.Int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, sleep); done(c) }}}
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	id := b.parked(t)
	b.restored(t, b.backup(t))
	if v := b.view(t, id); v.Waiting.Kind != host.WaitRestored || time.Until(v.Waiting.Expires) < runner.HeldLife-time.Hour {
		t.Errorf("%+v", v.Waiting)
	}
	ahead.Store(int64(runner.HeldLife + time.Minute))
	b.sweep(t)
	if v := b.finish(t, id); v.State != host.StateFailed || v.Failure != "nobody let it go on in time after a backup was restored" || s.started != 1 {
		t.Errorf("%s: %q, with %d workers", v.State, v.Failure, s.started)
	}
	b.verified(t)
}

// What a backup holds, and what a restore refuses.
func TestABackupIsWholeOrRefused(t *testing.T) {
	b, _ := keeper(t, func(*workspace.Config) {})
	id := b.kept(t)
	dir := b.backup(t)
	for _, name := range []string{"keyset.json", "owner.token", "blobs/" + string(id), "modules/uploads"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := workspace.TakeBackup(t.Context(), b.config, dir, true); err == nil {
		t.Error("a backup was overwritten")
	}
	without := filepath.Join(t.TempDir(), "backup")
	made, err := workspace.TakeBackup(t.Context(), b.config, without, false)
	if err != nil || made.Keys {
		t.Fatal(err)
	}
	if list := strings.Join(keysOf(made.Files), " "); strings.Contains(list, "keyset") || strings.Contains(list, "token") {
		t.Errorf("files %s", list)
	}
	if err := workspace.Restore(t.Context(), b.config, dir); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("over a workspace: %v", err)
	}

	elsewhere := b.config
	elsewhere.Dir = filepath.Join(t.TempDir(), "team")
	refused := func(what, word string, from string) {
		t.Helper()
		if err := workspace.Restore(t.Context(), elsewhere, from); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(elsewhere.Dir, "monroe.db")); err == nil {
			t.Errorf("%s: there is a database now", what)
		}
	}
	refused("no keys", "put keyset.json", without)
	if err := os.WriteFile(filepath.Join(elsewhere.Dir, "keyset.json"), []byte("another one"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("over other keys", "move it away, and keep it", dir)
	if kept, err := os.ReadFile(filepath.Join(elsewhere.Dir, "keyset.json")); err != nil || string(kept) != "another one" {
		t.Errorf("the keys that were there: %q, %v", kept, err)
	}
	other := elsewhere
	other.Name = "other"
	if err := workspace.Restore(t.Context(), other, dir); err == nil {
		t.Error("another workspace's backup was restored")
	}
	var blob string
	for rel := range made.Files {
		if strings.HasPrefix(rel, "blobs/") {
			blob = filepath.Join(without, rel)
		}
	}
	text, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	text[0] ^= 1
	_ = os.WriteFile(blob, text, 0o600)
	refused("a changed file", "not what was backed up", without)
	_ = os.Remove(blob)
	refused("a missing file", "not what was backed up", without)
	_ = os.Remove(filepath.Join(without, "backup.json"))
	refused("half a backup", "no whole backup", without)

	b.restored(t, dir)
	artefacts, err := filepath.Glob(filepath.Join(b.config.Dir, "modules", "artefacts", "*", "module.wasm"))
	if err != nil || len(artefacts) == 0 {
		t.Fatal(artefacts, err)
	}
	for _, path := range artefacts { // a worker of another user reads them
		file, _ := os.Stat(path)
		folder, _ := os.Stat(filepath.Dir(path))
		if file.Mode().Perm() != 0o444 || folder.Mode().Perm() != 0o755 {
			t.Errorf("%s: modes %v and %v", path, file.Mode(), folder.Mode())
		}
	}
	if v := b.view(t, id); v.State != host.StateSucceeded || string(v.Result) != `"well"` || len(v.Log) == 0 {
		t.Errorf("%+v", v)
	}
	b.verified(t)
	b.kept(t) // and it goes on
}

func keysOf(m map[string]string) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	return list
}
