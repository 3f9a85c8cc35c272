package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

// housekeepEvery is how often what nobody waits for is tidied up.
const housekeepEvery = time.Hour

// housekeep removes what is not needed any more, once an hour.
func (w *Workspace) housekeep(ctx context.Context) error {
	now := w.Now()
	w.keep.Lock()
	due := now.Sub(w.kept).Abs() >= housekeepEvery // the clock may have been ahead
	if due {
		w.kept = now
	}
	w.keep.Unlock()
	if !due {
		return nil
	}
	erased, err := w.retire(ctx, now)
	n, sweep := w.store.SweepBlobs(ctx, now)
	if n > 0 {
		w.Log.Info("files of large bodies that no record refers to were removed", slog.Int("files", n))
	}
	err = errors.Join(err, sweep)
	if erased > 0 || w.unscrubbed.Load() {
		w.scrub(ctx)
	}
	return err
}

// retire erases runs that ended longer ago than the operator keeps them.
func (w *Workspace) retire(ctx context.Context, now time.Time) (erased int, err error) {
	days := w.Operator.Retention.Days
	if days == 0 {
		return 0, nil
	}
	before := now.AddDate(0, 0, -days)
	for {
		var list []host.RunID
		err := w.store.Read(ctx, func(tx *store.Tx) (err error) {
			list, err = tx.Erasable(before, 100)
			return err
		})
		if err != nil || len(list) == 0 {
			return erased, err
		}
		for _, id := range list {
			if _, err := w.erase(ctx, id, "", fmt.Sprintf("content erased: kept for %d days", days)); err != nil {
				return erased, err
			}
			erased++
		}
	}
}

// erase takes a run's content away, in one transaction with the leaf that says so. who
// is empty for the host itself.
func (w *Workspace) erase(ctx context.Context, id host.RunID, who host.PrincipalID, why string) (run host.Run, err error) {
	now := w.Now()
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		row, err := tx.Run(id)
		if err != nil {
			return err
		}
		if !row.ErasedAt.IsZero() {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_ERASED", Detail: fmt.Sprintf("the run's content was erased on %s", row.ErasedAt.Format(time.RFC3339)), Remedy: "nothing to do"}
		}
		if !row.State.Ended() {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_LIVE", Detail: fmt.Sprintf("the run is %s; only a run that has ended can be erased", row.State), Remedy: "cancel it first: monroe runs cancel " + string(id)}
		}
		if up, err := tx.Run(row.Parent); err == nil && !up.State.Ended() {
			return &host.Problem{Kind: host.ErrConflict, Code: "RUN_LIVE", Detail: fmt.Sprintf("the run that called it is %s and may not have taken its result", up.State), Remedy: "wait for its end, or cancel it: monroe runs cancel " + string(up.ID)}
		}
		if err := tx.EraseRun(id, journal.Genesis(&row), now); err != nil {
			return err
		}
		if row, err = tx.Run(id); err != nil {
			return err
		}
		run = row.Run
		_, err = audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindErase, Run: id, Who: who, Skill: run.Skill, Module: run.Module.String(),
			Detail: why, Seq: row.NextSeq - 1, Chain: row.Chain.String(),
		})
		return err
	})
	if err != nil {
		return run, noRun(err)
	}
	w.runner.Forget(id)
	// The key is gone, and with it the content. What follows removes the rest of it from
	// this machine; what fails here is done by housekeep.
	if err := w.store.DropBlobs(id); err != nil {
		w.Log.Warn("files of an erased run are left until the next sweep", slog.String("run", string(id)), slog.String("error", err.Error()))
	}
	return run, nil
}

// scrub writes the database's log back.
func (w *Workspace) scrub(ctx context.Context) {
	err := w.store.Scrub(ctx)
	w.unscrubbed.Store(err != nil)
	if err != nil {
		w.Log.Warn("sealed bytes of erased runs are in the database's log until it is written back", slog.String("error", err.Error()))
	}
}

// EraseRun implements api.Backend.
func (w *Workspace) EraseRun(ctx context.Context, c host.Caller, id host.RunID) (host.Run, error) {
	if err := admin(c); err != nil {
		return host.Run{}, err
	}
	run, err := w.erase(ctx, id, c.ID, "content erased by a person's order")
	if err == nil {
		w.scrub(ctx)
	}
	return run, err
}
