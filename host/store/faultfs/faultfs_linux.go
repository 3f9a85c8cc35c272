// Package faultfs is a file system for tests that loses what was not synced, and
// fails when it is told to. Nothing but tests may import it; mounting needs root and
// /dev/fuse.
//
// It keeps every file and every directory twice: as programs see it, and as it was when
// fsync of it last returned. A cut of the power leaves the second. So a name lasts once
// its directory was synced, and what it names is what was synced of that.
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
	"log"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
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
	Any     Op = ""
	Steps   Op = "step" // any but a write, which changes nothing that lasts
	Write   Op = "write"
	Sync    Op = "fsync"    // of a file
	SyncDir Op = "fsyncdir" // of a directory
	Create  Op = "create"
	Mkdir   Op = "mkdir"
	Rename  Op = "rename"
	Link    Op = "link"
	Remove  Op = "remove" // of a file or a directory
)

// Rule says what fails: the At-th operation of that kind and all that follow; 0 means
// none. A short write takes one byte less than it was given. Cut takes the power away
// instead, just before the operation. It is not applied to the memory that SQLite
// shares beside a database, as an error there would be a signal.
type Rule struct {
	Op    Op            `json:"op"`
	At    int           `json:"at"`
	Name  string        `json:"name,omitempty"` // only of names that match it, as in path.Match
	Errno syscall.Errno `json:"errno,omitempty"`
	Short bool          `json:"short,omitempty"`
	Cut   bool          `json:"cut,omitempty"`
	// Names makes the cut leave every name as it was seen, synced or not: a system may
	// well write a name and not what it names.
	Names bool `json:"names,omitempty"`
	// Lie answers a sync and does not do it.
	Lie bool `json:"lie,omitempty"`
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
	Err  string `json:"err,omitempty"`
	Seen int    `json:"seen"`
	Hit  string `json:"hit,omitempty"`
}

// Disk is what lasts from one mount to the next.
type Disk struct {
	t   testing.TB
	in  io.WriteCloser
	out *json.Decoder
	dir string
}

// Start returns an empty disk that lasts as long as the test, or skips the test where none
// can be mounted.
func Start(t testing.TB) *Disk {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skip("it mounts a FUSE file system: root and /dev/fuse are needed")
	}
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
		_ = in.Close()
		_ = cmd.Process.Kill() // by itself it would end a second later, with the race detector
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

// Dir is where it is mounted.
func (d *Disk) Dir() string { return d.dir }

// Format makes the disk hold what is in a directory, and nothing else. Nothing may be
// mounted.
func (d *Disk) Format(from string) { d.t.Helper(); d.ask(order{Do: "format", Dir: from}) }

// Inject replaces the rule. Its count begins now.
func (d *Disk) Inject(r Rule) { d.t.Helper(); d.ask(order{Do: "inject", Rule: r}) }

// Seen counts the operations that the rule is about.
func (d *Disk) Seen() int { d.t.Helper(); return d.ask(order{Do: "seen"}).Seen }

// Hit is the first operation that failed, in words; empty if none has.
func (d *Disk) Hit() string { d.t.Helper(); return d.ask(order{Do: "seen"}).Hit }

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
	m := &mount{root: newDir()}
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
		switch o.Do {
		case "format":
			m = &mount{}
			m.root, err = load(o.Dir)
		case "mount":
			m, err = m.again(o.Dir)
		case "unmount":
			err = m.server.Unmount()
		default:
			a.Seen, a.Hit = m.tell(o)
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
	root   *node

	mu   sync.Mutex // guards all nodes, too
	rule Rule
	seen int
	hit  string
	cut  bool
}

// again mounts what lasted of a mount at dir.
func (m *mount) again(dir string) (*mount, error) {
	next := &mount{}
	m.mu.Lock()
	next.root = m.root.lasts(next, m.cut && m.rule.Names, map[*node]*node{})
	m.mu.Unlock()
	var err error
	next.server, err = fs.Mount(dir, next.root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultfs", Name: "faultfs", Logger: log.New(io.Discard, "", 0)}})
	return next, err
}

// tell carries out an order that needs no system call, and says how far it has come.
func (m *mount) tell(o order) (seen int, hit string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch o.Do {
	case "inject":
		m.rule, m.seen, m.hit = o.Rule, 0, ""
	case "cut":
		m.cut = true
	}
	return m.seen, m.hit
}

// outcome is called with m.mu held.
func (m *mount) outcome(op Op, name string) (errno syscall.Errno, short, lie bool) {
	if strings.HasSuffix(name, "-shm") {
		return 0, false, false
	}
	if r := m.rule; r.At > 0 && (r.Op == Any || r.Op == op || r.Op == Steps && op != Write) && (r.Name == "" || matches(r.Name, name)) {
		m.seen++
		if m.seen == r.At {
			m.hit = string(op) + " " + name
		}
		if m.seen >= r.At {
			m.cut = m.cut || r.Cut
			errno, short, lie = r.Errno, r.Short, r.Lie
		}
	}
	if m.cut {
		return syscall.EIO, false, false
	}
	return errno, short, lie
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// names is one state of a directory.
type names map[string]*node

// node is a file or a directory, each as it is seen and as it lasts.
type node struct {
	fs.Inode
	m    *mount
	name string // the last one

	data, kept []byte
	dir        bool
	list, held names
}

func newDir() *node { return &node{dir: true, list: names{}, held: names{}} }

// load reads what lasts from a directory.
func load(from string) (*node, error) {
	d := newDir()
	list, err := os.ReadDir(from)
	for _, e := range list {
		n, at := &node{}, filepath.Join(from, e.Name())
		var err error
		if e.IsDir() {
			n, err = load(at)
		} else {
			n.kept, err = os.ReadFile(at)
		}
		if err != nil {
			return nil, err
		}
		d.held[e.Name()] = n
	}
	return d, err
}

// lasts is a node after the power came back. A file with two names is one file still.
func (n *node) lasts(m *mount, all bool, done map[*node]*node) *node {
	if again := done[n]; again != nil {
		return again
	}
	c := &node{m: m, name: n.name, dir: n.dir, kept: n.kept, data: bytes.Clone(n.kept), list: names{}}
	done[n] = c
	held := n.held
	if all {
		held = n.list
	}
	for name, child := range held {
		c.list[name] = child.lasts(m, all, done)
		c.list[name].name = name
	}
	c.held = maps.Clone(c.list)
	return c
}

var (
	_ fs.NodeOnAdder   = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeLinker    = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
)

func (n *node) mode() uint32 {
	if n.dir {
		return fuse.S_IFDIR
	}
	return fuse.S_IFREG
}

// inode is what the kernel knows a node by.
func (n *node) inode(ctx context.Context, parent *node) *fs.Inode {
	if i := n.EmbeddedInode(); i.StableAttr().Mode != 0 { // it has another name
		return i
	}
	return parent.NewPersistentInode(ctx, n, fs.StableAttr{Mode: n.mode()})
}

// OnAdd shows what lasted.
func (n *node) OnAdd(ctx context.Context) {
	n.m.mu.Lock()
	list := maps.Clone(n.list)
	n.m.mu.Unlock()
	for name, child := range list {
		n.AddChild(name, child.inode(ctx, n), true)
	}
}

// enter gives a new node, or one that has a name already, a name in this directory.
func (n *node) enter(ctx context.Context, op Op, name string, child *node, out *fuse.Attr) (*fs.Inode, syscall.Errno) {
	n.m.mu.Lock()
	errno, _, _ := n.m.outcome(op, name)
	if errno == 0 {
		child.m, child.name = n.m, name
		n.list[name] = child
		child.attr(out)
	}
	n.m.mu.Unlock()
	if errno != 0 {
		return nil, errno
	}
	return child.inode(ctx, n), 0 // it may call OnAdd
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	i, errno := n.enter(ctx, Create, name, &node{}, &out.Attr)
	return i, nil, 0, errno
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.enter(ctx, Mkdir, name, newDir(), &out.Attr)
}

// Link implements fs.NodeLinker.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.enter(ctx, Link, name, target.(*node), &out.Attr)
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if errno, _, _ := n.m.outcome(Remove, name); errno != 0 {
		return errno
	}
	if len(n.list[name].list) > 0 {
		return syscall.ENOTEMPTY
	}
	delete(n.list, name)
	return 0
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno { return n.Unlink(ctx, name) }

// Rename implements fs.NodeRenamer.
func (n *node) Rename(_ context.Context, from string, target fs.InodeEmbedder, to string, flags uint32) syscall.Errno {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if flags != 0 {
		return syscall.EINVAL
	}
	if errno, _, _ := n.m.outcome(Rename, to); errno != 0 {
		return errno
	}
	child := n.list[from]
	delete(n.list, from)
	target.(*node).list[to], child.name = child, to
	return 0
}

func (n *node) attr(out *fuse.Attr) {
	out.Mode, out.Size, out.Nlink = n.mode()|0o600, uint64(len(n.data)), 1
	if n.dir {
		out.Mode |= 0o100
	}
	out.Uid, out.Gid = uint32(os.Getuid()), uint32(os.Getgid()) //nolint:gosec // ids have 32 bits
}

// Getattr implements fs.NodeGetattrer.
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	n.attr(&out.Attr)
	return 0
}

// Setattr implements fs.NodeSetattrer: of all that could be set, the size counts.
func (n *node) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		if errno, _, _ := n.m.outcome(Write, n.name); errno != 0 {
			return errno
		}
		n.grow(int(size)) //nolint:gosec // the files of a test
		n.data = n.data[:size]
	}
	n.attr(&out.Attr)
	return 0
}

func (n *node) grow(size int) {
	if more := size - len(n.data); more > 0 {
		n.data = append(n.data, make([]byte, more)...)
	}
}

// Open implements fs.NodeOpener.
func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

// Read implements fs.NodeReader.
func (n *node) Read(_ context.Context, _ fs.FileHandle, to []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if off >= int64(len(n.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(to[:copy(to, n.data[off:])]), 0
}

// Write implements fs.NodeWriter.
func (n *node) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	errno, short, _ := n.m.outcome(Write, n.name)
	if errno != 0 {
		return 0, errno
	}
	if short && len(b) > 0 {
		b = b[:len(b)-1]
	}
	n.grow(int(off) + len(b))
	copy(n.data[off:], b)
	return uint32(len(b)), 0 //nolint:gosec // the kernel hands over 128 KiB at most
}

// Fsync implements fs.NodeFsyncer: it makes the content or the names last.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	op := Sync
	if n.dir {
		op = SyncDir
	}
	errno, _, lie := n.m.outcome(op, n.name)
	if errno != 0 || lie {
		return errno
	}
	n.kept, n.held = bytes.Clone(n.data), maps.Clone(n.list)
	return 0
}
