package runner_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store/faultfs"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/workspace"
)

func serveDisk() { faultfs.Main() }

// cuts are the moments at which something that is not the database's changes on a disk.
// The database's own syncs are sampled here: host/broker has each of them.
var cuts = []faultfs.Rule{
	{Op: faultfs.Mkdir},
	{Op: faultfs.Create},
	{Op: faultfs.Link},
	{Op: faultfs.Rename},
	{Op: faultfs.Remove},
	{Op: faultfs.SyncDir},
	{Op: faultfs.Sync, Name: ".*"},
	{Op: faultfs.Sync, Name: "upload-*"},
	{Op: faultfs.Sync, Name: "module.wasm"},
	{Op: faultfs.Sync, Name: "keyset.json"},
	{Op: faultfs.SyncDir, Errno: syscall.EIO}, // it is cut off there, and done again before the power is cut
	{Op: faultfs.Sync, Name: "*.db", At: -12},
	{Op: faultfs.Sync, Name: "*-journal", At: -12},
}

// atEach mounts a disk with what is in a directory and does something until the power is cut,
// at each of cuts in turn, with the names that were not synced or without. Then the power is
// back, and check is called.
func atEach(t *testing.T, from string, do func(dir string), check func(dir, when string)) {
	t.Helper()
	disk, points := faultfs.Start(t), 0
	for _, rule := range cuts {
		step := max(1, -rule.At) * storetest.Stride
		rule.Cut = rule.Errno == 0
		for rule.At = 1; ; rule.At += step {
			rule.Names = !rule.Names
			disk.Format(from)
			dir := disk.Mount()
			disk.Inject(rule)
			do(dir)
			when := fmt.Sprintf("cut at %s %d: %s, names last: %v", rule.Op, rule.At, disk.Hit(), rule.Names)
			off := disk.Hit() != ""
			if !rule.Cut {
				disk.Inject(faultfs.Rule{})
				do(dir)
			}
			disk.Cut()
			disk.Unmount()
			check(disk.Mount(), when)
			disk.Unmount()
			if t.Failed() {
				t.Fatal(when)
			}
			if !off {
				break
			}
			points++
		}
	}
	t.Logf("%d points", points)
}

// opened opens a workspace and returns its owner's token.
func (b *bench) opened(t *testing.T, dir string) (token string, err error) {
	t.Helper()
	b.config.Dir = filepath.Join(dir, "home", "team")
	if b.Workspace, err = workspace.Open(t.Context(), b.config); err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(b.config.Dir, "owner.token"))
	if err == nil {
		token = strings.TrimSpace(string(text))
		b.caller, err = b.Authenticate(t.Context(), token)
	}
	return token, err
}

// TestRootANetworkIsWarnedOf: a workspace on a file system that another machine may have
// behind it is kept in the safe mode, which doctor names, and a warning says what that means.
func TestRootANetworkIsWarnedOf(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	b := &bench{config: newBench(t, &fakeSpawner{ready: engine}).config}
	for dir, fuse := range map[string]bool{faultfs.Start(t).Mount(): true, t.TempDir(): false} {
		var said bytes.Buffer
		b.config.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
		if _, err := b.opened(t, dir); err != nil {
			t.Fatal(err)
		}
		v, err := b.Doctor(t.Context(), b.caller)
		if err != nil || strings.HasPrefix(v.Host.Store, "SQLite on FUSE: one connection and a rollback journal") != fuse {
			t.Errorf("on FUSE %v: the store is %q (%v)", fuse, v.Host.Store, err)
		}
		if warned := strings.Contains(said.String(), "on a network file system") && strings.Contains(said.String(), "file_system=FUSE"); warned != fuse {
			t.Errorf("on FUSE %v: it said %q", fuse, said.String())
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A new workspace is opened and a skill is pushed, and the power is cut at any moment. What
// was said is there, the owner can log in, and what was not finished can be done again.
func TestRootAFirstStartThatIsCutOff(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	s := &fakeSpawner{ready: engine}
	b := &bench{config: newBench(t, s).config}
	var token string
	var pushed bool
	do := func(dir string) {
		var err error
		if token, err = b.opened(t, dir); err != nil {
			token = ""
		}
		if pushed = false; err == nil {
			_, err = b.PushSkill(t.Context(), b.caller, []byte(manifest))
			pushed = err == nil
		}
		if b.Workspace != nil {
			_ = b.Close()
		}
	}
	check := func(dir, when string) {
		again, err := b.opened(t, dir)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if token != "" && again != token {
			t.Errorf("%s: the owner has another token", when)
		}
		list, err := b.Skills(t.Context(), b.caller)
		if err != nil || pushed && len(list) != 1 {
			t.Errorf("%s: skills %v, %v", when, list, err)
		}
		if len(list) == 0 {
			if _, err := b.PushSkill(t.Context(), b.caller, []byte(manifest)); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		s.scripts = []script{func(c net.Conn) { open(c); done(c) }}
		if r := b.result(t); r.State != host.StateSucceeded {
			t.Errorf("%s: the run is %s: %s", when, r.State, r.Failure)
		}
		if err := b.Close(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	atEach(t, t.TempDir(), do, check)
}

// A backup is put back, and the power is cut at any moment. Afterwards the workspace is the one
// that was backed up, or it can be put back once more: it is never a new one that begins.
func TestRootARestoreThatIsCutOff(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	s := &fakeSpawner{ready: engine}
	old := newBench(t, s)
	from := t.TempDir()
	if _, err := workspace.TakeBackup(t.Context(), old.config, filepath.Join(from, "backup"), true); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(from, "backup", "owner.token"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{config: old.config}
	restored := false
	restore := func(dir string) {
		b.config.Dir = filepath.Join(dir, "home", "team")
		restored = workspace.Restore(t.Context(), b.config, filepath.Join(dir, "backup")) == nil
	}
	check := func(dir, when string) {
		if !restored {
			if err := os.RemoveAll(filepath.Join(dir, "home")); err != nil { // the remedy that a refusal names
				t.Fatal(err)
			}
			if restore(dir); !restored {
				t.Fatalf("%s: it cannot be put back any more", when)
			}
		}
		token, err := b.opened(t, dir)
		if err != nil || token != strings.TrimSpace(string(want)) {
			t.Fatalf("%s: another workspace has begun: %v", when, err)
		}
		s.scripts = []script{func(c net.Conn) { open(c); done(c) }}
		if r := b.result(t); r.State != host.StateSucceeded {
			t.Errorf("%s: the run is %s: %s", when, r.State, r.Failure)
		}
		if err := b.Close(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	atEach(t, from, restore, check)
}

// A backup that was taken is whole after a power cut, or says that it is not.
func TestRootABackupThatIsCutOff(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // the disk is SQLite's
	}
	b := newBench(t, &fakeSpawner{ready: engine})
	taken := false
	take := func(dir string) {
		_, err := workspace.TakeBackup(t.Context(), b.config, filepath.Join(dir, "backups", "today"), true)
		taken = err == nil
	}
	check := func(dir, when string) {
		c := b.config
		c.Dir = filepath.Join(t.TempDir(), "team")
		if err := workspace.Restore(t.Context(), c, filepath.Join(dir, "backups", "today")); taken && err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	atEach(t, t.TempDir(), take, check)
}
