package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/durable"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// manifestName is the file that makes a backup whole: it is written last.
const manifestName = "backup.json"

// databaseName is the SQLite database, in the workspace's directory and in a backup.
const databaseName = "monroe.db"

// Backup is what a backup says of itself.
type Backup struct {
	Version   int            `json:"version"` // 1
	Workspace host.Workspace `json:"workspace"`
	TakenAt   time.Time      `json:"taken_at"`
	// Database is sqlite, which is in the backup, or postgresql, which is not.
	Database string `json:"database"`
	// Keys says that keyset and owner's token are in it.
	Keys  bool              `json:"keys"`
	Files map[string]string `json:"files"` // path → SHA-256, hexadecimal
}

// secrets are the files that a backup holds only if it is asked to, since with them it
// opens itself. A keyset that a key service seals does not.
var secrets = []string{"keyset.json", "owner.token"}

// TakeBackup copies a workspace into a new directory, while a daemon serves it or not:
// first the database as it is at one moment, then the files, which only grow by what it
// does not refer to.
func TakeBackup(ctx context.Context, c Config, to string, withKeys bool) (b Backup, err error) {
	b = Backup{Version: 1, Workspace: c.Name, TakenAt: c.Now().UTC(), Database: "postgresql", Keys: withKeys, Files: map[string]string{}}
	if list, err := os.ReadDir(to); err == nil && len(list) > 0 {
		return b, fmt.Errorf("backup: %s is not empty", to)
	}
	if err := durable.MkdirAll(to); err != nil {
		return b, fmt.Errorf("backup: %w", err)
	}
	if c.Postgres == nil {
		b.Database = "sqlite"
		if err := store.Snapshot(ctx, filepath.Join(c.Dir, databaseName), filepath.Join(to, databaseName)); err != nil {
			return b, err
		}
		if b.Files[databaseName], err = digest(filepath.Join(to, databaseName)); err != nil {
			return b, err
		}
	}
	if err := b.files(c.Dir, to); err != nil {
		return b, err
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return b, err
	}
	return b, writeFile(filepath.Join(to, manifestName), strings.NewReader(string(text)+"\n"))
}

// files copies what is beside the database.
func (b *Backup) files(from, to string) error {
	for _, name := range secrets {
		if !b.wants(filepath.Join(from, name)) {
			continue
		}
		if err := b.copy(from, to, name); err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs", "modules/uploads", "modules/artefacts"} {
		err := filepath.WalkDir(filepath.Join(from, dir), func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
				return nil // a run was erased meanwhile, or it has none
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			return b.copy(from, to, rel)
		})
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
	return nil
}

// wants says whether a secret goes into the backup.
func (b *Backup) wants(path string) bool {
	if b.Keys {
		return true
	}
	name, err := vault.SealedBy(path, b.Workspace)
	return filepath.Base(path) == "keyset.json" && err == nil && name != ""
}

func (b *Backup) copy(from, to, rel string) error {
	f, err := os.Open(filepath.Join(from, rel))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if err := writeFile(filepath.Join(to, rel), io.TeeReader(f, h)); err != nil {
		return err
	}
	b.Files[filepath.ToSlash(rel)] = fmt.Sprintf("%x", h.Sum(nil))
	return nil
}

// writeFile makes a new file durably, for its owner alone.
func writeFile(path string, from io.Reader) error {
	if err := durable.MkdirAll(filepath.Dir(path)); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	_, err = io.Copy(f, from)
	if err = errors.Join(err, f.Sync(), f.Close(), durable.SyncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("backup: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// readBackup checks a backup: what it says is there, and nothing of it was changed.
func readBackup(c Config, from string) (b Backup, err error) {
	text, err := os.ReadFile(filepath.Join(from, manifestName))
	if err != nil {
		return b, fmt.Errorf("restore: %s is no whole backup: %w", from, err)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("restore: %w", err)
	}
	kind := "sqlite"
	if c.Postgres != nil {
		kind = "postgresql"
	}
	switch {
	case b.Version != 1:
		return b, fmt.Errorf("restore: version %d of a backup is not known to this binary", b.Version)
	case b.Workspace != c.Name:
		return b, fmt.Errorf("restore: the backup is of workspace %q, not %q", b.Workspace, c.Name)
	case b.Database != kind:
		return b, fmt.Errorf("restore: the backup is of a workspace in %s, the operator names %s", b.Database, kind)
	}
	for rel, want := range b.Files {
		if !filepath.IsLocal(filepath.FromSlash(rel)) {
			return b, fmt.Errorf("restore: the backup names a file %q", rel)
		}
		if got, err := digest(filepath.Join(from, rel)); err != nil || got != want {
			return b, errors.Join(fmt.Errorf("restore: %s is not what was backed up", rel), err)
		}
	}
	return b, nil
}

// Restore puts a backup in the place of a workspace that is not there. With PostgreSQL
// the database has been put back before. The runs that had not ended are held, so that
// nothing is sent that may have been sent since the backup: a person lets each go on.
func Restore(ctx context.Context, c Config, from string) error {
	b, err := readBackup(c, from)
	if err != nil {
		return err
	}
	for _, name := range []string{databaseName, "blobs", "modules"} {
		if _, err := os.Lstat(filepath.Join(c.Dir, name)); err == nil {
			return fmt.Errorf("restore: %s is there already: move the workspace's directory away first, and keep it", filepath.Join(c.Dir, name))
		}
	}
	if err := durable.MkdirAll(c.Dir); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	_, hasKeys := b.Files["keyset.json"]
	if _, err := os.Lstat(filepath.Join(c.Dir, "keyset.json")); err != nil && !hasKeys {
		return fmt.Errorf("restore: the backup has no keys: put keyset.json (and owner.token) into %s, mode 0600, and start again", c.Dir)
	}
	for _, name := range secrets { // one that is there already stays: it may be the only copy
		want, ok := b.Files[name]
		got, err := digest(filepath.Join(c.Dir, name))
		if ok && err == nil && got != want {
			return fmt.Errorf("restore: %s is there already, and is another one than the backup's: move it away, and keep it", filepath.Join(c.Dir, name))
		}
	}
	// A server's database is in place already: it is made safe to serve before there is a
	// workspace that could be served. Without its lease nothing is left, and one tries again.
	if c.Postgres != nil {
		if err := hold(ctx, c, "", b); err != nil {
			return err
		}
	}
	const halfway = "restoring.db" // a database that is safe to serve gets its name
	for rel := range b.Files {
		to := rel
		if rel == databaseName {
			to = halfway
		}
		if err := os.Remove(filepath.Join(c.Dir, to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("restore: %w", err)
		}
		f, err := os.Open(filepath.Join(from, rel))
		if err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		err = writeFile(filepath.Join(c.Dir, to), f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	if err := module.SealAll(filepath.Join(c.Dir, "modules")); err != nil { // workers of another user read them
		return err
	}
	if _, err := vault.OpenKeysetWith(ctx, filepath.Join(c.Dir, "keyset.json"), c.Name, c.KEK, 0); err != nil {
		return err
	}
	if c.Postgres == nil {
		if err := hold(ctx, c, halfway, b); err != nil {
			return err
		}
		// Without its name a daemon would begin a new workspace.
		if err := errors.Join(os.Rename(filepath.Join(c.Dir, halfway), filepath.Join(c.Dir, databaseName)), durable.SyncDir(c.Dir)); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		_ = os.Remove(filepath.Join(c.Dir, halfway+".lock"))
	}
	return nil
}

// hold makes the restored database safe to serve.
func hold(ctx context.Context, c Config, name string, b Backup) error {
	var st *store.Store
	var err error
	if c.Postgres != nil {
		st, err = openStore(ctx, c)
	} else {
		st, err = store.Open(ctx, filepath.Join(c.Dir, name), c.Name, "a restore", c.Now())
	}
	if err != nil {
		return err
	}
	now := c.Now()
	err = st.Write(ctx, func(tx *store.Tx) error {
		held, voided, err := tx.Restored(now, now.Add(runner.HeldLife))
		if err != nil {
			return err
		}
		detail := fmt.Sprintf("restored from a backup of %s: %d runs are held until %s, %d open approvals are void", b.TakenAt.Format(time.RFC3339), held, now.Add(runner.HeldLife).UTC().Format(time.DateOnly), voided)
		c.Log.Warn(detail, slog.String("next", "look at what was done since then; monroe runs release lets a run go on"))
		_, err = audit.Append(tx, audit.Leaf{TimeMS: now.UnixMilli(), Kind: audit.KindAdmin, Detail: detail})
		return err
	})
	return errors.Join(err, st.Close())
}

// ReleaseRun implements api.Backend.
func (w *Workspace) ReleaseRun(ctx context.Context, c host.Caller, id host.RunID) (run host.Run, err error) {
	if err := admin(c); err != nil {
		return run, err
	}
	now := w.Now()
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		row, err := tx.Run(id)
		if err != nil {
			return err
		}
		if row.State != host.StateWaiting || row.Wait != host.WaitRestored {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_NOT_HELD", Detail: fmt.Sprintf("the run is %s and not held after a restore", row.State), Remedy: "nothing to do"}
		}
		if err := tx.SetState(id, host.StateQueued, "", time.Time{}, now, host.StateWaiting); err != nil {
			return err
		}
		row.State, row.Wait = host.StateQueued, ""
		run = row.Run
		_, err = audit.Append(tx, audit.Leaf{TimeMS: now.UnixMilli(), Kind: audit.KindAdmin, Run: id, Who: c.ID, Skill: row.Skill, Module: row.Module.String(), Detail: "run released after a restore"})
		return err
	})
	if err != nil {
		return run, noRun(err)
	}
	w.runner.Wake(id)
	return run, nil
}
