package durable_test

import (
	"os"
	"path/filepath"
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
