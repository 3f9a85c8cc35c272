package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/durable"
)

// MaxInline is the largest sealed body, in bytes, that is kept in its row. A larger
// one lies in a file of its own: a database that copies it through its log on every
// commit is slower than one file.
const MaxInline = 32 << 10

// BlobGrace is how old a file that no row refers to must be before SweepBlobs removes
// it. This daemon writes a file and its row in one turn; the grace is for another one
// that has just been taken over.
const BlobGrace = time.Hour

// blobs keeps sealed bodies as files, each below its run. A file is never changed
// and never written twice: its name ends with a digest of what is in it, which no
// other sealing has. An empty blobs has no directory and refuses.
type blobs string

// Ref names the file of a sealed body. id is a keyed hash of the plain text, so that
// the name tells nothing to who has no key.
func Ref(id, sealed []byte) string {
	sum := sha256.Sum256(sealed)
	return fmt.Sprintf("%x.%x", id, sum[:12])
}

func (b blobs) path(run host.RunID, ref string) (string, error) {
	if b == "" {
		return "", errors.New("store: there is no directory for large bodies")
	}
	for _, part := range []string{string(run), ref} {
		if part == "" || strings.ContainsAny(part, `/\`) || strings.HasPrefix(part, ".") {
			return "", fmt.Errorf("store: %q names no file", part)
		}
	}
	return filepath.Join(string(b), string(run), ref), nil
}

// unwritten is why a file of a body is not on the disk. It is final for the store, like a
// failed commit: what the disk has is not known any more.
type unwritten struct{ error }

func (u unwritten) Unwrap() error { return u.error }

// put writes a file durably: after it returns nil, a row may refer to it.
func (b blobs) put(run host.RunID, ref string, sealed []byte) (err error) {
	path, err := b.path(run, ref)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err = durable.MkdirAll(dir); err == nil {
		err = durable.Replace(path, sealed, dir, "new-*")
	}
	if err != nil {
		return unwritten{fmt.Errorf("store: a large body: %w", err)}
	}
	return nil
}

// get reads a file. A failure is the run's, not the store's.
func (b blobs) get(run host.RunID, ref string) ([]byte, error) {
	path, err := b.path(run, ref)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// drop removes every file of a run.
func (b blobs) drop(run host.RunID) error {
	path, err := b.path(run, "x")
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(path))
}

// old lists the files that were written before a moment, by run.
func (b blobs) old(before time.Time) (map[host.RunID][]string, error) {
	found := map[host.RunID][]string{}
	if b == "" {
		return found, nil
	}
	err := filepath.WalkDir(string(b), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it never held anything, or was erased meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil && st.ModTime().Before(before) {
			run := host.RunID(filepath.Base(filepath.Dir(path)))
			found[run] = append(found[run], d.Name())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return found, nil
}

// SweepBlobs removes files that no row refers to and that are older than BlobGrace:
// what a crash left between a file and its row, or between an erasure and its files.
// now is of the clock that files are stamped by.
func (s *Store) SweepBlobs(ctx context.Context, now time.Time) (removed int, err error) {
	old, err := s.blobs.old(now.Add(-BlobGrace))
	if err != nil || len(old) == 0 {
		return 0, err
	}
	for run, names := range old { // first without holding writers up: nearly every file is referred to
		err := s.Read(ctx, func(tx *Tx) error {
			names, err = tx.unused(run, names)
			return err
		})
		if err != nil {
			return 0, err
		}
		if old[run] = names; len(names) == 0 {
			delete(old, run)
		}
	}
	if len(old) == 0 {
		return 0, nil
	}
	// Once more in a writing turn: nobody is between a file and its row, and who lost the
	// workspace removes nothing.
	err = s.Write(ctx, func(tx *Tx) error {
		for run, names := range old {
			names, err := tx.unused(run, names)
			if err != nil {
				return err
			}
			for _, name := range names {
				if err := os.Remove(filepath.Join(string(s.blobs), string(run), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("store: %w", err)
				}
				removed++
			}
			_ = os.Remove(filepath.Join(string(s.blobs), string(run))) // if it is empty
		}
		return nil
	})
	return removed, err
}

// unused are the files of a run that none of its records refers to.
func (tx *Tx) unused(run host.RunID, names []string) ([]string, error) {
	used, err := tx.blobRefs(run)
	return slices.DeleteFunc(names, func(name string) bool { return used[name] }), err
}
