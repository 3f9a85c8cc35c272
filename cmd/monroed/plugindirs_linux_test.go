package main_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLinuxADeadDaemonsPluginDirectoryIsSwept, and nobody else's: not that of a daemon
// that lives, not one that others could write, not a link, and no other user's.
func TestLinuxADeadDaemonsPluginDirectoryIsSwept(t *testing.T) {
	yaml, tmp := hostileYAML(t, ""), shortDir(t)
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	of := func(d *daemon) *daemon {
		d.env = []string{"TMPDIR=" + tmp}
		return d
	}
	dirs := func() []string {
		list, err := filepath.Glob(filepath.Join(tmp, "monroe-plugins-*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	dead, lives := of(newDaemon(t, yaml)), of(newDaemon(t, yaml))
	dead.up()
	left := dirs()
	lives.up()
	if len(left) != 1 || len(dirs()) != 2 {
		t.Fatalf("directories %v, then %v", left, dirs())
	}
	dead.kill()
	if len(dirs()) != 2 {
		t.Fatal("a killed daemon cannot have tidied up")
	}

	kept := slices.DeleteFunc(dirs(), func(s string) bool { return s == left[0] })
	target := shortDir(t)
	write(t, filepath.Join(target, "x"), "somebody's")
	link, open, other := filepath.Join(tmp, "monroe-plugins-link"), filepath.Join(tmp, "monroe-plugins-open"), filepath.Join(tmp, "monroe-plugins-other")
	kept = append(kept, link, open)
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		kept = append(kept, other)
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(other, 65533, 65533); err != nil {
			t.Fatal(err)
		}
	}
	dead.up()
	now := dirs()
	if slices.Contains(now, left[0]) || len(now) != len(kept)+1 {
		t.Errorf("after the next start there are %s", strings.Join(now, " "))
	}
	for _, dir := range kept {
		if !slices.Contains(now, dir) {
			t.Errorf("%s is gone", dir)
		}
	}
	if string(read(t, filepath.Join(target, "x"))) != "somebody's" {
		t.Error("what a link points to was changed")
	}
	dead.stop()
	if got := dirs(); len(got) != len(kept) {
		t.Errorf("after a stop in good order there are %v", got)
	}
}
