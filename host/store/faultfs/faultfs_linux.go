// Package faultfs is a file system for tests that loses what was not synced, and
// fails when it is told to. Nothing but tests may import it; mounting needs root and
// /dev/fuse.
//
// It keeps every file twice: as programs see it, and as it was when fsync last
// returned. A cut of the power leaves the second. Names are durable at once: what it
// tests is whether contents are synced, not directories.
//
// It runs in a process of its own, the test's program once more: a program that waits
// for a page of a file system that it serves itself stands still for ever.
package faultfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Op is a file operation that can fail.
type Op string

const (
	Any   Op = ""
	Write Op = "write"
	Sync  Op = "fsync"
)

// Rule says what fails: the At-th operation of that kind and all that follow; 0 means
// none. A short write takes one byte less than it was given. Cut takes the power away
// instead, just before the operation. It is not applied to the memory that SQLite
// shares beside a database, as an error there would be a signal.
type Rule struct {
	Op    Op            `json:"op"`
	At    int           `json:"at"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Short bool          `json:"short,omitempty"`
	Cut   bool          `json:"cut,omitempty"`
}

const variable = "MONROE_FAULTFS"

// Main serves a disk, if this process was started for that, and does not return then.
// A package that uses this one calls it first in TestMain.
func Main() {
	if os.Getenv(variable) == "" {
		return
	}
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "faultfs:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type order struct {
	Do   string `json:"do"`
	Dir  string `json:"dir,omitempty"`
	Rule Rule   `json:"rule"`
}

type answer struct {
	Err   string `json:"err,omitempty"`
	Later int    `json:"later"`
}

// Disk is what lasts from one mount to the next.
type Disk struct {
	t   testing.TB
	in  io.WriteCloser
	out *json.Decoder
	dir string
}

// Start returns an empty disk that lasts as long as the test.
func Start(t testing.TB) *Disk {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env, cmd.Stderr = append(os.Environ(), variable+"=1"), os.Stderr
	in, e1 := cmd.StdinPipe()
	out, e2 := cmd.StdoutPipe()
	if err := errors.Join(e1, e2); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &Disk{t: t, in: in, out: json.NewDecoder(out)}
	t.Cleanup(func() {
		if d.dir != "" {
			_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
			_ = os.Remove(d.dir)
		}
		_ = in.Close() // it ends then
		_ = cmd.Wait()
	})
	return d
}

func (d *Disk) ask(o order) answer {
	d.t.Helper()
	var a answer
	b, err := json.Marshal(o)
	if err == nil {
		_, err = d.in.Write(append(b, '\n'))
	}
	if err == nil {
		err = d.out.Decode(&a)
	}
	if err != nil || a.Err != "" {
		d.t.Fatalf("faultfs: %s: %v %s", o.Do, err, a.Err)
	}
	return a
}

// Mount makes what was synced visible in a new directory, which it returns.
func (d *Disk) Mount() string {
	d.t.Helper()
	dir, err := os.MkdirTemp("", "faultfs-")
	if err != nil {
		d.t.Fatal(err)
	}
	d.dir = dir
	d.ask(order{Do: "mount", Dir: dir})
	return dir
}

// Inject replaces the rule. Its count begins now.
func (d *Disk) Inject(r Rule) { d.t.Helper(); d.ask(order{Do: "inject", Rule: r}) }

// Later counts the operations after the first that failed.
func (d *Disk) Later() int { d.t.Helper(); return d.ask(order{Do: "later"}).Later }

// Cut takes the power away: nothing is synced any more and every operation fails.
func (d *Disk) Cut() { d.t.Helper(); d.ask(order{Do: "cut"}) }

// Unmount gives the directory back. Every file in it has to be closed.
func (d *Disk) Unmount() {
	d.t.Helper()
	d.ask(order{Do: "unmount"})
	_ = os.Remove(d.dir)
	d.dir = ""
}

// serve does what it is told until nobody tells it any more.
func serve(in io.Reader, out io.Writer) error {
	lasts := map[string][]byte{}
	var m *mount
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil // whoever mounted it unmounts it
		} else if err != nil {
			return err
		}
		var a answer
		var err error
		switch {
		case o.Do == "mount":
			m, err = mountAt(o.Dir, lasts)
		case m == nil:
			err = errors.New("nothing is mounted")
		case o.Do == "inject":
			m.mu.Lock()
			m.rule, m.seen, m.later = o.Rule, 0, 0
			m.mu.Unlock()
		case o.Do == "later":
			m.mu.Lock()
			a.Later = m.later
			m.mu.Unlock()
		case o.Do == "cut":
			m.mu.Lock()
			m.cut = true
			m.mu.Unlock()
		case o.Do == "unmount":
			err = m.server.Unmount()
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// mount is one mounted state of the disk.
type mount struct {
	server *fuse.Server

	mu          sync.Mutex
	lasts       map[string][]byte
	files       map[string]*file
	rule        Rule
	seen, later int
	cut         bool
}

func mountAt(dir string, lasts map[string][]byte) (*mount, error) {
	m := &mount{lasts: lasts, files: map[string]*file{}}
	for name, b := range lasts {
		m.files[name] = &file{m: m, name: name, data: bytes.Clone(b)}
	}
	var err error
	m.server, err = fs.Mount(dir, &root{m: m}, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultfs", Name: "faultfs"}})
	return m, err
}

// outcome is called with m.mu held.
func (m *mount) outcome(op Op, name string) (errno syscall.Errno, short bool) {
	if strings.HasSuffix(name, "-shm") {
		return 0, false
	}
	if r := m.rule; r.At > 0 && (r.Op == Any || r.Op == op) {
		m.seen++
		if m.seen >= r.At {
			m.cut = m.cut || r.Cut
			errno, short = r.Errno, r.Short
		}
		if m.seen > r.At {
			m.later++
		}
	}
	if m.cut {
		return syscall.EIO, false
	}
	return errno, short
}

// keep makes a file's content last. It is called with m.mu held.
func (m *mount) keep(name string, b []byte, there bool) {
	switch {
	case m.cut:
	case there:
		m.lasts[name] = bytes.Clone(b)
	default:
		delete(m.lasts, name)
	}
}

// root is the one directory.
type root struct {
	fs.Inode
	m *mount
}

var (
	_ fs.NodeOnAdder   = (*root)(nil)
	_ fs.NodeCreater   = (*root)(nil)
	_ fs.NodeUnlinker  = (*root)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeSetattrer = (*file)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

// OnAdd shows what lasted.
func (r *root) OnAdd(ctx context.Context) {
	r.m.mu.Lock()
	list := maps.Clone(r.m.files)
	r.m.mu.Unlock()
	for name, f := range list {
		r.AddChild(name, r.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG}), true)
	}
}

// Create makes an empty file.
func (r *root) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	m := r.m
	f := &file{m: m, name: name}
	m.mu.Lock()
	if m.cut {
		m.mu.Unlock()
		return nil, nil, 0, syscall.EIO
	}
	m.files[name] = f
	m.keep(name, nil, true)
	f.attr(&out.Attr)
	m.mu.Unlock()
	return r.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG}), nil, 0, 0
}

// Unlink removes a file.
func (r *root) Unlink(_ context.Context, name string) syscall.Errno {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.m.cut {
		return syscall.EIO
	}
	delete(r.m.files, name)
	r.m.keep(name, nil, false)
	return 0
}

// Fsync of the directory has nothing to do.
func (r *root) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// file is one file; m.mu guards its data.
type file struct {
	fs.Inode
	m    *mount
	name string
	data []byte
}

func (f *file) attr(out *fuse.Attr) {
	out.Mode, out.Size, out.Nlink = fuse.S_IFREG|0o600, uint64(len(f.data)), 1
	out.Uid, out.Gid = uint32(os.Getuid()), uint32(os.Getgid()) //nolint:gosec // ids have 32 bits
}

// Getattr implements fs.NodeGetattrer.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.attr(&out.Attr)
	return 0
}

// Setattr implements fs.NodeSetattrer: of all that could be set, the size counts.
func (f *file) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		if errno, _ := f.m.outcome(Write, f.name); errno != 0 {
			return errno
		}
		f.grow(int(size)) //nolint:gosec // the files of a test
		f.data = f.data[:size]
	}
	f.attr(&out.Attr)
	return 0
}

func (f *file) grow(size int) {
	if n := size - len(f.data); n > 0 {
		f.data = append(f.data, make([]byte, n)...)
	}
}

// Open implements fs.NodeOpener.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

// Read implements fs.NodeReader.
func (f *file) Read(_ context.Context, _ fs.FileHandle, to []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off >= int64(len(f.data)) {
		return fuse.ReadResultData(nil), 0
	}
	n := copy(to, f.data[off:])
	return fuse.ReadResultData(to[:n]), 0
}

// Write implements fs.NodeWriter.
func (f *file) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	errno, short := f.m.outcome(Write, f.name)
	if errno != 0 {
		return 0, errno
	}
	if short && len(b) > 0 {
		b = b[:len(b)-1]
	}
	f.grow(int(off) + len(b))
	copy(f.data[off:], b)
	return uint32(len(b)), 0 //nolint:gosec // the kernel hands over 128 KiB at most
}

// Fsync implements fs.NodeFsyncer.
func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if errno, _ := f.m.outcome(Sync, f.name); errno != 0 {
		return errno
	}
	if f.m.files[f.name] == f { // one that was removed meanwhile has no name to last under
		f.m.keep(f.name, f.data, true)
	}
	return 0
}
