package egress

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/durable"
)

func emptyBody() io.Reader { return strings.NewReader("") }

// maildir delivers as Maildir readers expect: the whole message is written and
// synced in tmp before it appears in new. The unique name is the call's, so a
// message that is there already was delivered by an earlier attempt.
func (a *attempt) maildir(m *connectors.Maildir) (*connectors.Answer, *abi.Denial) {
	path, ok := a.e.c.Maildirs[m.Folder]
	if !ok {
		return nil, abi.Deny(abi.ConnectorRevoked, "the mail folder of this message is no longer configured", "ask the operator, then send again")
	}
	if !regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$`).MatchString(m.Unique) {
		return nil, abi.Deny(abi.Internal, "the message's file name is not usable", "")
	}
	if a.late() {
		return nil, a.failed(errLate, false)
	}
	appeared, err := deliverMaildir(path, m)
	if err != nil {
		if appeared {
			return nil, a.failed(err, true)
		}
		return nil, abi.Deny(abi.Upstream, "the message could not be written into the mail folder", "ask the operator to check its space and permissions")
	}
	a.out.Add(int64(len(m.Data)))
	return &connectors.Answer{Status: 250, Body: emptyBody(), Emit: a.emit}, nil
}

// deliverMaildir reports whether the message may be visible.
func deliverMaildir(path string, m *connectors.Maildir) (appeared bool, err error) {
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := durable.MkdirAll(filepath.Join(path, sub)); err != nil {
			return false, fmt.Errorf("maildir: %w", err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return false, fmt.Errorf("maildir: %w", err)
	}
	defer func() { _ = root.Close() }()
	if there, err := delivered(root, m.Unique); err != nil || there != "" {
		return there != "", err
	}
	tmp, final := "tmp/"+m.Unique, "new/"+m.Unique
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("maildir: %w", err) // left over by a crash
	}
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, fmt.Errorf("maildir: %w", err)
	}
	_, err = f.Write(m.Data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		// Unlike a rename, a link never replaces what another attempt delivered.
		if err = root.Link(tmp, final); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		_ = root.Remove(tmp)
		return false, fmt.Errorf("maildir: %w", err)
	}
	_ = root.Remove(tmp) // the message is in new; a leftover in tmp is swept by its reader
	for _, sub := range []string{"new", "tmp"} {
		if err := syncDir(root, sub); err != nil {
			return true, fmt.Errorf("maildir: %w", err)
		}
	}
	return true, nil
}

// delivered finds the message that a reader has already, also where it moved it. It
// returns its path, empty if there is none. Its name is durable then: the attempt that
// made it may have ended before that.
func delivered(root *os.Root, unique string) (string, error) {
	path, err := find(root, unique)
	if err == nil && path != "" {
		err = syncDir(root, filepath.Dir(path))
	}
	if err != nil {
		return path, fmt.Errorf("maildir: %w", err)
	}
	return path, nil
}

func find(root *os.Root, unique string) (string, error) {
	if _, err := root.Lstat("new/" + unique); err == nil {
		return "new/" + unique, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	dir, err := root.Open("cur")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }()
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			if n == unique || strings.HasPrefix(n, unique+":") {
				return "cur/" + n, nil
			}
		}
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}

// syncDir makes names durable where the system can.
func syncDir(root *os.Root, name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
