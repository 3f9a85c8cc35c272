// Package durable writes files that survive a crash whole or not at all, and directories
// whose names survive it.
//
// It knows files and directories. It must not know what is in them.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace puts data at path: a crash leaves all of it, or what was there before. It is
// written to a new file in temp first, by pattern as in os.CreateTemp, on the same file
// system. The file is its owner's alone.
func Replace(path string, data []byte, temp, pattern string) error {
	return put(path, data, temp, pattern, os.Rename)
}

// Create is Replace for a file that must not be there: one that is stays as it is, and
// the error is fs.ErrExist.
func Create(path string, data []byte, temp, pattern string) error {
	return put(path, data, temp, pattern, func(from, to string) error {
		return errors.Join(os.Link(from, to), os.Remove(from))
	})
}

func put(path string, data []byte, temp, pattern string, move func(from, to string) error) error {
	f, err := os.CreateTemp(temp, pattern) // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = move(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// MkdirAll makes a directory and what is missing above it, for their owner alone. When it
// returns nil their names survive a crash. The name of one that is there is synced again:
// whoever made it may have ended before it was.
func MkdirAll(path string) error {
	path = filepath.Clean(path)
	above := filepath.Dir(path)
	if isDir(path) {
		// Who may not read the directory above did not make this one.
		if err := SyncDir(above); !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	// From above to below: a directory that is there has a durable name, but for the last.
	if above != path {
		if err := MkdirAll(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !isDir(path) { // somebody else may have been quicker
		return err
	}
	return SyncDir(above)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
