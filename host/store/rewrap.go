package store

import (
	"database/sql"

	"github.com/getmonroe/monroe/host"
)

// What is sealed by the workspace's own keys begins with a prefix that names the key.
// These methods find rows with another prefix than that of the primary key, so that a
// sweep can seal them anew. The bodies of runs are sealed by run keys and stay as they are.

// OldRunKeys returns at most limit wrapped keys of runs that begin otherwise.
func (tx *Tx) OldRunKeys(prefix []byte, limit int) (map[host.RunID][]byte, error) {
	keys := map[host.RunID][]byte{}
	err := tx.each(func(rows *sql.Rows) error {
		var id host.RunID
		var key []byte
		err := rows.Scan(&id, &key)
		keys[id] = key
		return err
	}, `SELECT run_id, key_enc FROM run WHERE ws = ? AND key_enc IS NOT NULL AND substr(key_enc, 1, 5) <> ? LIMIT ?`, tx.ws, prefix, limit)
	return keys, err
}

// PutRunKey replaces a run's wrapped key. One that was erased meanwhile is
// host.ErrConflict: a key never comes back.
func (tx *Tx) PutRunKey(id host.RunID, key []byte) error {
	return tx.change(`UPDATE run SET key_enc = ? WHERE ws = ? AND run_id = ? AND key_enc IS NOT NULL`, key, tx.ws, id)
}

// OldKV returns at most limit values of skills' memories of which a part begins
// otherwise, with their namespaces.
func (tx *Tx) OldKV(prefix []byte, limit int) (spaces []string, list []KV, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		var ns string
		var v KV
		if err := rows.Scan(&ns, &v.KeyMAC, &v.Key, &v.Value, &v.Label); err != nil {
			return err
		}
		spaces, list = append(spaces, ns), append(list, v)
		return nil
	}, `SELECT namespace, key_mac, key_enc, value_enc, label_enc FROM kv
		WHERE ws = ? AND (substr(key_enc, 1, 5) <> ? OR substr(value_enc, 1, 5) <> ? OR substr(label_enc, 1, 5) <> ?) LIMIT ?`, tx.ws, prefix, prefix, prefix, limit)
	return spaces, list, err
}

// OldKVNamespaces returns at most limit high-water labels that begin otherwise.
func (tx *Tx) OldKVNamespaces(prefix []byte, limit int) (map[string][]byte, error) {
	labels := map[string][]byte{}
	err := tx.each(func(rows *sql.Rows) error {
		var ns string
		var label []byte
		err := rows.Scan(&ns, &label)
		labels[ns] = label
		return err
	}, `SELECT namespace, label_enc FROM kv_namespace WHERE ws = ? AND substr(label_enc, 1, 5) <> ? LIMIT ?`, tx.ws, prefix, limit)
	return labels, err
}
