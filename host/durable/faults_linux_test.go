package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host/durable"
	"github.com/getmonroe/monroe/host/store/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Main()
	os.Exit(m.Run())
}

// steps are what has to last once it has returned nil.
var steps = []func(dir string) error{
	func(dir string) error { return durable.MkdirAll(filepath.Join(dir, "a", "b")) },
	func(dir string) error {
		return durable.Replace(filepath.Join(dir, "a", "b", "x"), []byte("one"), dir, "x-*")
	},
	func(dir string) error {
		return durable.Replace(filepath.Join(dir, "a", "b", "x"), []byte("two"), dir, "x-*")
	},
	func(dir string) error {
		err := durable.Create(filepath.Join(dir, "a", "y"), []byte("three"), filepath.Join(dir, "a"), "y-*")
		if errors.Is(err, os.ErrExist) { // from an earlier attempt; whoever reads it then has it
			return durable.SyncDir(filepath.Join(dir, "a"))
		}
		return err
	},
}

// check says what of the first n steps is not there, and what is there by half.
func check(t *testing.T, dir, when string, n int) {
	t.Helper()
	x, err := os.ReadFile(filepath.Join(dir, "a", "b", "x"))
	switch {
	case err != nil && n >= 2, err == nil && string(x) != "one" && string(x) != "two", n >= 3 && string(x) != "two":
		t.Errorf("%s, %d steps done: x holds %q, %v", when, n, x, err)
	}
	y, err := os.ReadFile(filepath.Join(dir, "a", "y"))
	if err != nil && n >= 4 || err == nil && string(y) != "three" {
		t.Errorf("%s, %d steps done: y holds %q, %v", when, n, y, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a", "b")); err != nil && n >= 1 {
		t.Errorf("%s, %d steps done: %v", when, n, err)
	}
}

// run carries the steps out until one fails.
func run(dir string) (done int) {
	for _, step := range steps {
		if step(dir) != nil {
			break
		}
		done++
	}
	return done
}

func TestRootWhatWasSaidLasts(t *testing.T) {
	disk, empty := faultfs.Start(t), t.TempDir()
	for _, c := range []struct {
		what string
		rule faultfs.Rule
	}{
		{"cut", faultfs.Rule{Cut: true}},
		{"cut, names last", faultfs.Rule{Cut: true, Names: true}},
		{"cut off", faultfs.Rule{Errno: syscall.EIO}}, // and tried again before the cut
	} {
		points := 0
		for rule := c.rule; ; {
			rule.At++
			disk.Format(empty)
			dir := disk.Mount()
			disk.Inject(rule)
			done := run(dir)
			when := c.what + " at " + disk.Hit()
			if done == len(steps) {
				disk.Unmount()
				break
			}
			points++
			if !rule.Cut {
				disk.Inject(faultfs.Rule{})
				if done = run(dir); done != len(steps) {
					t.Fatalf("%s: it does not go on after step %d", when, done)
				}
				disk.Cut()
			}
			disk.Unmount()
			dir = disk.Mount()
			check(t, dir, when, done)
			if done = run(dir); done != len(steps) {
				t.Fatalf("%s: after the cut it does not go on after step %d", when, done)
			}
			disk.Cut()
			disk.Unmount()
			check(t, disk.Mount(), when+", and once more", len(steps))
			disk.Unmount()
		}
		if points < 20 {
			t.Errorf("%s: only %d points", c.what, points)
		}
	}
}
