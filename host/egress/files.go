package egress

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
)

// Limits of a walk.
const (
	maxWalked = 20_000 // entries looked at
	maxDepth  = 32
)

// errNotPlain is wrapped for whatever is not what it seems: links, devices, pipes,
// and names that changed while they were opened.
var errNotPlain = errors.New("not a regular file or directory")

// errWalked ends a walk that has enough.
var errWalked = errors.New("enough entries")

func (a *attempt) fileRead(r *connectors.FileRead) (*connectors.Answer, *abi.Denial) {
	clean, err := canon.Path(r.Path)
	if err != nil || clean != r.Path || clean == "." || r.Max <= 0 {
		return nil, abi.Deny(abi.Internal, "the stored path was refused", "")
	}
	dir, d := a.openFolder(r.Folder, path.Dir(clean))
	if d != nil {
		return nil, d
	}
	defer func() { _ = dir.Close() }()
	f, info, err := openRegular(dir, path.Base(clean))
	if err != nil {
		return nil, fileDenial(err)
	}
	a.close = append(a.close, func() { _ = f.Close() })
	if info.Size() > r.Max {
		return nil, abi.Deny(abi.TooLarge, fmt.Sprintf("the file has %d bytes, at most %d were asked for", info.Size(), r.Max), "raise max_bytes or read a smaller file")
	}
	return &connectors.Answer{
		Files: []connectors.FileEntry{{Path: clean, Size: info.Size(), Modified: info.ModTime().UTC()}},
		Body:  &counting{&limited{f, r.Max}, a}, Emit: a.emit,
	}, nil
}

type counting struct {
	r io.Reader
	a *attempt
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.a.in.Add(int64(n))
	return n, err
}

func (a *attempt) fileList(l *connectors.FileList) (*connectors.Answer, *abi.Denial) {
	clean, err := canon.Path(l.Path)
	if err != nil || clean != l.Path || l.Max <= 0 {
		return nil, abi.Deny(abi.Internal, "the stored path was refused", "")
	}
	dir, d := a.openFolder(l.Folder, clean)
	if d != nil {
		return nil, d
	}
	defer func() { _ = dir.Close() }()
	w := walk{max: l.Max}
	err = w.dir(dir, clean, 0)
	if err != nil && !errors.Is(err, errWalked) {
		return nil, fileDenial(err)
	}
	slices.SortFunc(w.found, func(x, y connectors.FileEntry) int { return strings.Compare(x.Path, y.Path) })
	return &connectors.Answer{Files: w.found, Truncated: err != nil, Body: emptyBody(), Emit: a.emit}, nil
}

type walk struct {
	max, seen int
	found     []connectors.FileEntry
}

// dir collects the regular files below one directory, in the order of their names,
// so that what a limit leaves out is the same each time.
func (w *walk) dir(root *os.Root, at string, depth int) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(maxWalked - w.seen + 1)
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	slices.SortFunc(entries, func(x, y fs.DirEntry) int { return strings.Compare(x.Name(), y.Name()) })
	for _, e := range entries {
		if w.seen++; w.seen > maxWalked {
			return errWalked
		}
		name := path.Join(at, e.Name())
		if clean, err := canon.Path(name); err != nil || clean != name {
			continue // it could not be read by its name
		}
		switch {
		case e.IsDir():
			if depth == maxDepth {
				return errWalked
			}
			sub, err := openDir(root, e.Name())
			if err != nil {
				continue // gone, swapped or closed to us
			}
			err = w.dir(sub, name, depth+1)
			_ = sub.Close()
			if err != nil {
				return err
			}
		case e.Type().IsRegular():
			info, err := root.Lstat(e.Name())
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			if len(w.found) == w.max {
				return errWalked
			}
			w.found = append(w.found, connectors.FileEntry{Path: name, Size: info.Size(), Modified: info.ModTime().UTC()})
		}
	}
	return nil
}

// openFolder goes down to a directory below a configured folder, step by step.
func (a *attempt) openFolder(folder, sub string) (*os.Root, *abi.Denial) {
	place, ok := a.e.c.Folders[folder]
	if !ok {
		return nil, fileDenial(fs.ErrNotExist)
	}
	at, err := os.OpenRoot(place)
	if err != nil {
		return nil, fileDenial(err)
	}
	if sub == "." {
		return at, nil
	}
	for name := range strings.SplitSeq(sub, "/") {
		next, err := openDir(at, name)
		_ = at.Close()
		if err != nil {
			return nil, fileDenial(err)
		}
		at = next
	}
	return at, nil
}

// openDir opens one real directory. The grant covers a path, not where a link in
// it leads, so links are refused although they would stay inside the folder. What
// was opened is compared with what was looked at: a link that is swapped in between
// leads elsewhere and is found out.
func openDir(root *os.Root, name string) (*os.Root, error) {
	seen, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !seen.IsDir() {
		return nil, errNotPlain
	}
	sub, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if got, err := sub.Stat("."); err != nil || !os.SameFile(seen, got) {
		_ = sub.Close()
		return nil, errNotPlain
	}
	return sub, nil
}

// openRegular opens one regular file, and never waits for a pipe that is swapped
// in.
func openRegular(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	seen, err := root.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !seen.Mode().IsRegular() {
		return nil, nil, errNotPlain
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	got, err := f.Stat()
	if err != nil || !got.Mode().IsRegular() || !os.SameFile(seen, got) {
		_ = f.Close()
		return nil, nil, errNotPlain
	}
	return f, got, nil
}

// fileDenial gives absent, forbidden and disguised things the same words.
func fileDenial(err error) *abi.Denial {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, errNotPlain) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return abi.Deny(abi.NotFound, "there is no such regular file or folder; links are not followed", "look with files.list")
	}
	return abi.Deny(abi.Upstream, "the file or folder could not be opened", "try again, or ask the operator to look at the folder")
}
