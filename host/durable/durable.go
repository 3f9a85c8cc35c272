// Package durable writes files that survive a crash whole or not at all.
//
// It knows files and directories. It must not know what is in them.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace puts data at path: a crash leaves all of it, or what was there before. It is
// written to a new file in temp first, by pattern as in os.CreateTemp, on the same file
// system. The file is its owner's alone.
func Replace(path string, data []byte, temp, pattern string) error {
	f, err := os.CreateTemp(temp, pattern) // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
