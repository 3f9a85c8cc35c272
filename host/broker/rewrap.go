package broker

import (
	"errors"

	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Rewrap seals at most limit rows of each kind anew that an earlier key of the workspace
// sealed, and returns how many it found. It is called until that is none.
func Rewrap(tx *store.Tx, keys *vault.Keyset, limit int) (n int, err error) {
	prefix := keys.Prefix()
	runs, e1 := tx.OldRunKeys(prefix, limit)
	labels, e2 := tx.OldKVNamespaces(prefix, limit)
	spaces, values, e3 := tx.OldKV(prefix, limit)
	if err := errors.Join(e1, e2, e3); err != nil {
		return 0, err
	}
	for id, wrapped := range runs {
		fresh, err := keys.RewrapRunKey(id, wrapped)
		if err == nil {
			err = tx.PutRunKey(id, fresh)
		}
		if err != nil {
			return 0, err
		}
	}
	for ns, label := range labels {
		fresh, err := keys.Rewrap(namespaceSlot(ns), label)
		if err == nil {
			err = tx.PutKVNamespace(ns, fresh)
		}
		if err != nil {
			return 0, err
		}
	}
	for i, v := range values {
		for _, part := range []struct {
			column string
			sealed *[]byte
		}{{"key", &v.Key}, {"value", &v.Value}, {"label", &v.Label}} {
			if *part.sealed, err = keys.Rewrap(kvSlot(spaces[i], part.column, v.KeyMAC), *part.sealed); err != nil {
				return 0, err
			}
		}
		if err := tx.PutKV(spaces[i], v); err != nil {
			return 0, err
		}
	}
	return len(runs) + len(labels) + len(values), nil
}
