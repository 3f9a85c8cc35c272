package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

const pluginDirs = "monroe-plugins-"

// pluginDir makes the directory of the plugins' sockets. It is locked as long as this
// process lives, which is how sweepPluginDirs knows it.
func pluginDir() (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp("", pluginDirs)
		if err != nil {
			return "", nil, err
		}
		f, err := lockDir(dir)
		if err == nil {
			return dir, f, nil
		}
		// Somebody who sweeps was faster and is removing it: another one.
		if _, gone := os.Lstat(dir); gone == nil && !errors.Is(err, errTaken) {
			return "", nil, err
		}
	}
}

// errTaken says that a directory is locked, or is not what was opened any more.
const errTaken = syscall.EWOULDBLOCK

// lockDir locks a directory that is there, without waiting.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		opened, e1 := f.Stat()
		there, e2 := os.Lstat(dir)
		if e1 == nil && e2 == nil && os.SameFile(opened, there) {
			return f, nil
		}
		err = errTaken
	}
	_ = f.Close() // opened for reading
	return nil, err
}

// sweepPluginDirs removes what daemons left that were killed: directories of this name
// that belong to this user, are closed to all others and are locked by nobody.
func sweepPluginDirs(log *slog.Logger) {
	list, err := filepath.Glob(filepath.Join(os.TempDir(), pluginDirs+"*"))
	if err != nil {
		return // the pattern is fixed
	}
	for _, dir := range list {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
			continue
		}
		if owner, ok := st.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
			continue
		}
		f, err := lockDir(dir)
		if err != nil {
			continue // a living daemon's
		}
		if err := os.RemoveAll(dir); err != nil {
			log.Warn("what a daemon before this one left cannot be removed", slog.String("directory", dir), slog.String("error", err.Error()))
		}
		_ = f.Close()
	}
}
