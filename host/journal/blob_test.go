package journal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// blobs lists the files of large bodies.
func (f *fixture) blobs(t *testing.T) (paths []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(f.dir, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func (f *fixture) open(t *testing.T) *journal.Log {
	t.Helper()
	f.load(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// add writes a value of a size, and lets the transaction end as after says.
func (f *fixture) add(t *testing.T, log *journal.Log, call uint32, reply []byte, after error) error {
	t.Helper()
	if err := log.Add(journal.Value, call, now, journal.Body{Op: abi.OpTimeNow, Fingerprint: abi.Digest{byte(call)}, Reply: reply}, label.Clean()); err != nil {
		t.Fatal(err)
	}
	err := f.store.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(log.Stage(tx), after) })
	log.Staged(err)
	return err
}

func TestALargeBodyLiesInASealedFile(t *testing.T) {
	f := newFixture(t)
	log := f.open(t)
	small, large := bytes.Repeat([]byte("s"), store.MaxInline-200), bytes.Repeat([]byte("CANARY "), store.MaxInline/7)
	for i, reply := range [][]byte{small, large, large} {
		if err := f.add(t, log, uint32(4+i), reply, nil); err != nil {
			t.Fatal(err)
		}
	}
	files := f.blobs(t)
	if len(files) != 2 { // the same plain text twice is two sealings
		t.Fatalf("files %v", files)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		st, _ := os.Stat(path)
		if err != nil || bytes.Contains(b, []byte("CANARY")) || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), err)
		}
	}
	log = f.open(t)
	for i, want := range [][]byte{small, large, large} {
		e, err := log.Recall(uint32(4+i), abi.Digest{byte(4 + i)})
		if err != nil || !bytes.Equal(e.Answer.Reply, want) {
			t.Errorf("call %d: %v", 4+i, err)
		}
	}
	if f.row.JournalBytes < int64(2*len(large)) {
		t.Errorf("the files are not counted: %d", f.row.JournalBytes)
	}
}

// A crash between a file and its row leaves a file that no row refers to. It goes
// when it is old; one that a row refers to never does.
func TestACrashBetweenFileAndRowLeavesAnOrphanThatIsSwept(t *testing.T) {
	f := newFixture(t)
	large := bytes.Repeat([]byte("x"), 2*store.MaxInline)
	log := f.open(t)
	if err := f.add(t, log, 4, large, nil); err != nil {
		t.Fatal(err)
	}
	kept := f.blobs(t)
	if err := f.add(t, log, 5, large, errors.New("the power fails here")); err == nil {
		t.Fatal("the transaction did not fail")
	}
	if got := f.blobs(t); len(kept) != 1 || len(got) != 2 {
		t.Fatalf("before %v, after %v: the file must be there before its row", kept, got)
	}
	half := filepath.Join(filepath.Dir(kept[0]), "new-123") // or in the middle of a file
	if err := os.WriteFile(half, large[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	sweep := func(now time.Time, want int) {
		t.Helper()
		if n, err := f.store.SweepBlobs(t.Context(), now); n != want || err != nil {
			t.Errorf("%d files were removed, want %d: %v", n, want, err)
		}
	}
	sweep(time.Now(), 0) // somebody may be about to write its row
	sweep(time.Now().Add(store.BlobGrace+time.Minute), 2)
	if got := f.blobs(t); len(got) != 1 || got[0] != kept[0] {
		t.Errorf("files %v, want %v", got, kept)
	}
	log = f.open(t)
	if e, err := log.Recall(4, abi.Digest{4}); err != nil || !bytes.Equal(e.Answer.Reply, large) {
		t.Error(err)
	}
	if e, err := log.Recall(5, abi.Digest{5}); err != nil || e != nil { // and the call is made again
		t.Error(e, err)
	}
}

func TestAMissingOrAlteredFileStopsThatRunAlone(t *testing.T) {
	f := newFixture(t)
	log := f.open(t)
	for call := uint32(4); call < 6; call++ {
		if err := f.add(t, log, call, bytes.Repeat([]byte{byte(call)}, 2*store.MaxInline), nil); err != nil {
			t.Fatal(err)
		}
	}
	files := f.blobs(t)
	good := make([][]byte, len(files))
	for i, path := range files {
		good[i], _ = os.ReadFile(path)
	}
	broken := func(what, word string) {
		t.Helper()
		f.load(t)
		_, err := journal.Open(&f.row, f.key, f.recs)
		if !errors.Is(err, journal.ErrCorrupt) || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), f.dir) {
			t.Errorf("%s: %v", what, err)
		}
		for i, path := range files {
			if err := os.WriteFile(path, good[i], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.open(t)
	}
	for at := 0; at < len(good[0]); at += 4001 {
		b := bytes.Clone(good[0])
		b[at] ^= 1
		_ = os.WriteFile(files[0], b, 0o600)
		broken("a flipped bit", "was changed")
	}
	_ = os.WriteFile(files[0], good[1], 0o600)
	broken("another record's file", "was changed")
	_ = os.WriteFile(files[0], good[0][:100], 0o600)
	broken("cut off", "was changed")
	_ = os.Remove(files[0])
	broken("missing", "its file is missing")

	// Another run of the same store goes on.
	_ = os.Remove(files[0])
	other, key := newRun(t, f, "run_2")
	if _, err := journal.Open(&other, key, nil); err != nil {
		t.Error(err)
	}
}

// A file that cannot be written takes its transaction with it, and is final for the store:
// no row refers to nothing.
func TestARowIsNotWrittenWithoutItsFile(t *testing.T) {
	f := newFixture(t)
	if err := os.WriteFile(filepath.Join(f.dir, "blobs"), nil, 0o600); err != nil { // where a directory should be
		t.Fatal(err)
	}
	before := f.row.NextSeq
	if err := f.add(t, f.open(t), 4, bytes.Repeat([]byte("x"), 2*store.MaxInline), nil); err == nil {
		t.Fatal("it was written")
	}
	select {
	case <-f.store.Failed():
	default:
		t.Error("the store goes on")
	}
	_ = f.store.Close()
	var err error
	if f.store, err = storetest.Open(t, f.dir, "acme", now); err != nil {
		t.Fatal(err)
	}
	if f.open(t); f.row.NextSeq != before {
		t.Errorf("%d records, %d before", f.row.NextSeq-1, before-1)
	}
}
