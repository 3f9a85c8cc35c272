package workspace

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// rewrapAtOnce bounds how many rows of a kind one sweep seals anew.
const rewrapAtOnce = 64

// rewrap seals rows anew that an earlier key sealed, a few at a time, until there are
// none. A row that does not open stops it: it was changed, and whoever reads it will say
// so.
func (w *Workspace) rewrap(ctx context.Context) error {
	if !w.rewrapping.Load() {
		return nil
	}
	var n int
	err := w.store.Write(ctx, func(tx *store.Tx) (err error) {
		n, err = broker.Rewrap(tx, w.keys, rewrapAtOnce)
		return err
	})
	if err != nil || n == 0 {
		w.rewrapping.Store(false)
	}
	return err
}

// confirm asks the key service now and then, beside everything else, so that one that is
// slow holds nothing up.
func (w *Workspace) confirm(ctx context.Context) {
	if !w.confirming.CompareAndSwap(false, true) {
		return
	}
	w.aside.Go(func() {
		defer w.confirming.Store(false)
		if !w.keys.Confirm(ctx, w.Now()) {
			return
		}
		if err := w.keys.Stale(w.Now()); err != nil {
			w.Log.Error("nothing new is done until the key service answers", slog.String("error", err.Error()))
			return
		}
		w.Log.Warn("the key service's answer changed", slog.String("kek", w.keys.KEK()))
		if err := w.runner.Recheck(); err != nil && ctx.Err() == nil {
			w.Log.Error("sweep", slog.String("error", err.Error()))
		}
	})
}

// Keys implements api.Backend.
func (w *Workspace) Keys(ctx context.Context, _ host.Caller) (api.KeysView, error) {
	v := api.KeysView{Keys: w.keys.Keys(), KEK: w.keys.KEK(), Rewrapping: w.rewrapping.Load()}
	if err := w.keys.Stale(w.Now()); err != nil {
		v.Stale = err.Error()
	}
	return v, ctx.Err()
}

// RotateKeys implements api.Backend. The keys are in a file and the log is not: it is told
// before, too, so that a stop in between leaves no new key that nothing witnesses.
func (w *Workspace) RotateKeys(ctx context.Context, c host.Caller) (api.KeysView, error) {
	if err := admin(c); err != nil {
		return api.KeysView{}, err
	}
	witness := func(detail string) error {
		return w.store.Write(ctx, func(tx *store.Tx) error {
			_, err := audit.Append(tx, audit.Leaf{TimeMS: w.Now().UnixMilli(), Kind: audit.KindAdmin, Who: c.ID, Detail: detail})
			return err
		})
	}
	if err := witness("keys are to be rotated"); err != nil {
		return api.KeysView{}, err
	}
	if err := w.keys.Rotate(ctx); err != nil {
		if errors.Is(err, vault.ErrKEK) {
			err = &host.Problem{Kind: host.ErrOverload, Code: "KEYS", Detail: err.Error(), Remedy: "nothing was changed; try again when the key service answers"}
		}
		return api.KeysView{}, err
	}
	w.rewrapping.Store(true)
	if err := witness("keys rotated"); err != nil {
		return api.KeysView{}, err
	}
	return w.Keys(ctx, c)
}

// RewrapKeys seals the keyset of a workspace that nobody serves by what the operator
// names now. was finds the key that it is sealed by.
func RewrapKeys(ctx context.Context, c Config, was func(name string) (vault.KEK, error)) error {
	st, err := openStore(ctx, c) // so that no daemon rotates meanwhile
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	path := filepath.Join(c.Dir, "keyset.json")
	name, err := vault.SealedBy(path, c.Name)
	if err != nil {
		return err
	}
	var from vault.KEK
	if name != "" {
		if from, err = was(name); err != nil {
			return err
		}
	}
	if err := vault.RewrapFile(ctx, path, c.Name, from, c.KEK); err != nil {
		return err
	}
	_, err = vault.OpenKeysetWith(ctx, path, c.Name, c.KEK, 0) // it opens, or its owner is told now
	return err
}
