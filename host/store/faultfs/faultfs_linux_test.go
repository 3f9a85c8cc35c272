package faultfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host/store/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Main()
	os.Exit(m.Run())
}

// do carries out a script: operations on names below dir, each with its arguments.
func do(dir string, script ...string) error {
	for _, line := range script {
		f := strings.Fields(line)
		at := func(i int) string { return filepath.Join(dir, f[i]) }
		var err error
		switch f[0] {
		case "write": // a name and its content, not synced
			err = os.WriteFile(at(1), []byte(f[2]), 0o600)
		case "sync":
			var file *os.File
			if file, err = os.Open(at(1)); err == nil {
				err = errors.Join(file.Sync(), file.Close())
			}
		case "mkdir":
			err = os.Mkdir(at(1), 0o700)
		case "rename":
			err = os.Rename(at(1), at(2))
		case "link":
			err = os.Link(at(1), at(2))
		case "remove":
			err = os.Remove(at(1))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tree lists what is below dir: directories with a slash, files with their content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if e.IsDir() {
			list = append(list, rel+"/")
			return nil
		}
		b, err := os.ReadFile(path)
		list = append(list, rel+"="+string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestRootWhatACutLeaves(t *testing.T) {
	base := []string{"write a old", "sync a", "sync ."}
	for _, c := range []struct{ script, lasts, names string }{
		{"write b 1", "a=old", "a=old b="},
		{"write b 1, sync b", "a=old", "a=old b=1"},
		{"write b 1, sync .", "a=old b=", "a=old b="},
		{"write b 1, sync b, sync .", "a=old b=1", "a=old b=1"},
		{"write a new", "a=old", "a=old"},
		{"write a new, sync a", "a=new", "a=new"},
		{"remove a", "a=old", ""},
		{"remove a, sync .", "", ""},
		{"write b 1, sync b, rename b a", "a=old", "a=1"},
		{"write b 1, sync b, rename b a, sync .", "a=1", "a=1"},
		{"rename a b", "a=old", "b=old"},
		{"link a b", "a=old", "a=old b=old"},
		{"link a b, sync ., write b new, sync b", "a=new b=new", "a=new b=new"},
		{"mkdir d", "a=old", "a=old d/"},
		{"mkdir d, write d/x 1, sync d/x, sync d", "a=old", "a=old d/ d/x=1"},
		{"mkdir d, write d/x 1, sync d/x, sync .", "a=old d/", "a=old d/ d/x=1"},
		{"mkdir d, sync ., write d/x 1, sync d/x, sync d", "a=old d/ d/x=1", "a=old d/ d/x=1"},
		{"mkdir d, sync ., rename a d/a, sync d", "a=old d/ d/a=old", "d/ d/a=old"},
		{"mkdir d, sync ., remove d", "a=old d/", "a=old"},
	} {
		for names, want := range map[bool]string{false: c.lasts, true: c.names} {
			disk := faultfs.Start(t)
			dir := disk.Mount()
			if err := do(dir, append(slices.Clone(base), strings.Split(c.script, ", ")...)...); err != nil {
				t.Fatalf("%s: %v", c.script, err)
			}
			disk.Inject(faultfs.Rule{At: 1, Cut: true, Names: names})
			if err := do(dir, "mkdir late"); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: without power: %v", c.script, err)
			}
			disk.Unmount()
			if got := tree(t, disk.Mount()); got != want {
				t.Errorf("%s: names %v: %q, want %q", c.script, names, got, want)
			}
		}
	}
}

func TestRootEachOperationFails(t *testing.T) {
	for op, script := range map[faultfs.Op]string{
		faultfs.Write: "write a new", faultfs.Sync: "sync a", faultfs.SyncDir: "sync .", faultfs.Create: "write b 1", faultfs.Mkdir: "mkdir d",
		faultfs.Rename: "rename a b", faultfs.Link: "link a b", faultfs.Remove: "remove a",
	} {
		disk := faultfs.Start(t)
		from := t.TempDir()
		if err := do(from, "write a old"); err != nil {
			t.Fatal(err)
		}
		disk.Format(from)
		dir := disk.Mount()
		disk.Inject(faultfs.Rule{Op: op, At: 1, Name: "x*", Errno: syscall.ENOSPC})
		if err := do(dir, "write y 1", "sync y", "rename y z", "remove z"); err != nil {
			t.Errorf("%s: another name: %v", op, err)
		}
		disk.Inject(faultfs.Rule{Op: op, At: 1, Errno: syscall.ENOSPC})
		if err := do(dir, script); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", op, err)
		}
		if n, hit := disk.Seen(), disk.Hit(); n != 1 || !strings.HasPrefix(hit, string(op)+" ") {
			t.Errorf("%s: %d seen, %s", op, n, hit)
		}
	}
}

func TestRootALieIsLostLater(t *testing.T) {
	disk := faultfs.Start(t)
	dir := disk.Mount()
	disk.Inject(faultfs.Rule{Op: faultfs.Sync, At: 1, Name: "lost*", Lie: true})
	if err := do(dir, "write lost1 1", "sync lost1", "write kept 2", "sync kept", "sync ."); err != nil {
		t.Fatal(err)
	}
	disk.Cut()
	disk.Unmount()
	if got := tree(t, disk.Mount()); got != "kept=2 lost1=" {
		t.Error(got)
	}
}
