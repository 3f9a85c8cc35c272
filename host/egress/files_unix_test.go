//go:build unix

package egress_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
)

func readPlan(path string) connectors.Plan {
	return connectors.Plan{
		Resources: []string{"files:docs/x"}, Destination: "files:docs", Audience: []string{"workspace"},
		Frozen: connectors.Frozen{FileRead: &connectors.FileRead{Folder: "docs", Path: path, Max: 1000}},
	}
}

func folder(t *testing.T) (root string, e *egress.Egress) {
	t.Helper()
	top := t.TempDir()
	root = filepath.Join(top, "docs")
	for name, text := range map[string]string{
		"outside.md": "secret", "docs/a.md": "alpha", "docs/sub/b.md": "beta", "docs/private/c.md": "private", "docs/big": strings.Repeat("x", 1001),
	} {
		p := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"docs/out": "../outside.md", "docs/abs": filepath.Join(top, "outside.md"), "docs/up": "..", "docs/in": "a.md", "docs/sub/side": "../private", "docs/loop": "loop",
	} {
		if err := os.Symlink(to, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root, open(t, egress.Config{Folders: map[string]string{"docs": root}}, &scripted{op: operation(abi.EffectRead), plan: planned(readPlan("a.md"))})
}

func read(t *testing.T, e *egress.Egress, path string) (string, *abi.Denial) {
	t.Helper()
	p := readPlan(path)
	o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
	if o.Denial != nil {
		return "", o.Denial
	}
	return o.Result.Reply.(string), nil
}

// Law 7.
func TestOnlyRegularFilesBelowRealDirectories(t *testing.T) {
	_, e := folder(t)
	for path, want := range map[string]string{"a.md": "alpha", "sub/b.md": "beta"} {
		if got, d := read(t, e, path); d != nil || got != want {
			t.Errorf("%s: %q %v", path, got, d)
		}
	}
	for path, code := range map[string]abi.Code{
		"out": abi.NotFound, "abs": abi.NotFound, "up/outside.md": abi.NotFound, "in": abi.NotFound, "sub/side/c.md": abi.NotFound, "loop": abi.NotFound,
		"pipe": abi.NotFound, "sub": abi.NotFound, "none": abi.NotFound, "a.md/b": abi.NotFound, "big": abi.TooLarge,
		"../outside.md": abi.Internal, "sub/../a.md": abi.Internal, "/etc/passwd": abi.Internal, ".": abi.Internal,
	} {
		if got, d := read(t, e, path); d == nil || d.Code != code || d.Effect != abi.OutcomeNone {
			t.Errorf("%s: %q %+v", path, got, d)
		}
	}
	if e.Counters().Dials != 0 {
		t.Error("a file was dialled")
	}
}

// Law 7, against somebody who swaps names while they are opened. Whatever is read
// is the file that was meant.
func TestSwappedNamesAreFoundOut(t *testing.T) {
	root, e := folder(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		name, spare := filepath.Join(root, "sub"), filepath.Join(root, "spare")
		link, file := filepath.Join(root, "evil"), filepath.Join(root, "a.md")
		for {
			select {
			case <-stop:
				return
			default:
			}
			// sub becomes a link to private, and back; a.md becomes a pipe, and back.
			_ = os.Rename(name, spare)
			_ = os.Symlink("private", name)
			_ = os.Remove(name)
			_ = os.Rename(spare, name)
			_ = os.Rename(file, link)
			_ = syscall.Mkfifo(file, 0o600)
			_ = os.Remove(file)
			_ = os.Symlink("../outside.md", file)
			_ = os.Remove(file)
			_ = os.Rename(link, file)
		}
	})
	for range 2000 {
		if got, d := read(t, e, "sub/c.md"); d == nil {
			t.Errorf("read %q through a link", got)
		}
		if got, d := read(t, e, "a.md"); d == nil && got != "alpha" {
			t.Errorf("read %q", got)
		}
	}
	close(stop)
	wg.Wait()
}

func TestListLeavesOutWhatCannotBeRead(t *testing.T) {
	root, _ := folder(t)
	if err := os.WriteFile(filepath.Join(root, "a\u202eb"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var answer *connectors.Answer
	list := func(path string, most int) (string, *abi.Denial) {
		p := readPlan("a.md")
		p.Frozen = connectors.Frozen{FileList: &connectors.FileList{Folder: "docs", Path: path, Max: most}}
		e := open(t, egress.Config{Folders: map[string]string{"docs": root}}, &scripted{op: operation(abi.EffectRead), plan: planned(p), parse: func(a *connectors.Answer) (connectors.Result, *abi.Denial) {
			answer = a
			return connectors.Result{}, nil
		}})
		o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
		if o.Denial != nil {
			return "", o.Denial
		}
		var names []string
		for _, f := range answer.Files {
			names = append(names, f.Path)
		}
		return strings.Join(names, " "), nil
	}
	if got, d := list(".", 100); d != nil || got != "a.md big private/c.md sub/b.md" || answer.Truncated {
		t.Errorf("%q %v", got, d)
	}
	if got, d := list("sub", 100); d != nil || got != "sub/b.md" {
		t.Errorf("%q %v", got, d)
	}
	if got, d := list(".", 2); d != nil || got != "a.md big" || !answer.Truncated {
		t.Errorf("%q %v %v", got, d, answer.Truncated)
	}
	for _, path := range []string{"up", "sub/side", "a.md", "none"} {
		if got, d := list(path, 100); d == nil || d.Code != abi.NotFound {
			t.Errorf("%s: %q %v", path, got, d)
		}
	}
}

func TestMaildirDeliversOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "box")
	p := connectors.Plan{
		Resources: []string{"mail:a@example.com"}, Destination: "maildir:out", Audience: []string{"mail:a@example.com"},
		Frozen: connectors.Frozen{Maildir: &connectors.Maildir{Folder: "out", Unique: "1.k.monroe", From: "f@example.com", To: []string{"a@example.com"}, Data: []byte("Subject: x\r\n\r\nbody\r\n")}},
	}
	e := open(t, egress.Config{Maildirs: map[string]string{"out": dir}}, &scripted{op: operation(abi.EffectSend), plan: planned(p)})
	count := func() (n int) {
		for _, sub := range []string{"new", "cur", "tmp"} {
			all, _ := os.ReadDir(filepath.Join(dir, sub))
			n += len(all)
		}
		return n
	}
	deliver := func() {
		t.Helper()
		if o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil); o.Denial != nil || count() != 1 {
			t.Fatalf("%+v, %d messages", o.Denial, count())
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp/1.k.monroe"), []byte("half"), 0o600); err != nil { // a crash left it
		t.Fatal(err)
	}
	deliver()
	got, err := os.ReadFile(filepath.Join(dir, "new/1.k.monroe"))
	if err != nil || string(got) != "Subject: x\r\n\r\nbody\r\n" {
		t.Errorf("%q %v", got, err)
	}
	deliver()
	// A mail reader moved it: it stays delivered.
	if err := os.Rename(filepath.Join(dir, "new/1.k.monroe"), filepath.Join(dir, "cur/1.k.monroe:2,S")); err != nil {
		t.Fatal(err)
	}
	deliver()
	q := p
	bad := *p.Frozen.Maildir
	bad.Unique = "../../x"
	q.Frozen.Maildir = &bad
	if o := e.Perform(t.Context(), permitFor(t, q), doIt, q, nil); o.Denial == nil || o.Denial.Effect != abi.OutcomeNone {
		t.Errorf("%+v", o.Denial)
	}
}
