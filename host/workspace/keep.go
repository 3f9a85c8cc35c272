package workspace

import (
	"context"
	"log/slog"
	"time"
)

// housekeepEvery is how often what nobody waits for is tidied up.
const housekeepEvery = time.Hour

// housekeep removes what is not needed any more, once an hour.
func (w *Workspace) housekeep(ctx context.Context) error {
	now := w.Now()
	w.keep.Lock()
	due := now.Sub(w.kept) >= housekeepEvery
	if due {
		w.kept = now
	}
	w.keep.Unlock()
	if !due {
		return nil
	}
	n, err := w.store.SweepBlobs(ctx, now)
	if n > 0 {
		w.Log.Info("files of large bodies that no record refers to were removed", slog.Int("files", n))
	}
	return err
}
