package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/getmonroe/monroe/host/durable"
)

func TestReplace(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "x")
	for _, text := range []string{"first", "second"} {
		if err := durable.Replace(path, []byte(text), temp, "new-*"); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if st, _ := os.Stat(path); err != nil || string(b) != text || st.Mode().Perm() != 0o600 {
			t.Errorf("%q, %v, %v", b, st.Mode(), err)
		}
	}
	// What cannot be moved into place leaves nothing behind.
	if err := durable.Replace(filepath.Join(dir, "no", "such"), []byte("third"), temp, "new-*"); err == nil {
		t.Error("it was written where there is no directory")
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCreateLeavesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := durable.Create(path, []byte("first"), dir, "new-*"); err != nil {
		t.Fatal(err)
	}
	if err := durable.Create(path, []byte("second"), dir, "new-*"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the second: %v", err)
	}
	b, err := os.ReadFile(path)
	if st, _ := os.Stat(path); err != nil || string(b) != "first" || st.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v", b, st.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c")
	for range 2 { // also what is there
		if err := durable.MkdirAll(path + "/"); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if st, err := os.Stat(p); err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(file, "x")} {
		if err := durable.MkdirAll(p); err == nil {
			t.Errorf("%s is a directory now", p)
		}
	}
	// Many make the same at once, and each has it.
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if err := durable.MkdirAll(filepath.Join(dir, "p", "q", "r")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}
