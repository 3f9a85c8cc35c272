package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// controllers are those that a worker is limited by.
var controllers = []string{"memory", "pids", "cpu"}

// A Tree is a place for groups, one directory for each hierarchy that the machine
// has. Its methods are safe for concurrent use; Close it after the last group.
type Tree struct {
	unified  string            // directory in the version 2 hierarchy, empty if it cannot be used
	place    string            // where its groups are made there: itself, or what House made for workers
	limited  []string          // controllers of version 2
	v1       map[string]string // directory by controller of version 1
	back     map[string]string // where this process is, by controller of version 1
	problems []string          // what could not be had
}

// A Group is the place of one process. Remove it after that process has ended.
type Group struct {
	tree *Tree
	dirs []string
	dir2 *os.File // open directory in version 2, nil if there is none
	v1   map[string]string
}

// Open makes a place for groups below this process's own. What it cannot use is in
// Problems; without anything it fails.
func Open() (*Tree, error) {
	t := &Tree{v1: map[string]string{}, back: map[string]string{}}
	mounts, err := mountPoints()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	own, err := memberships()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	name := fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), opened.Add(1))
	if at, ok := mounts[""]; ok {
		if err := t.openUnified(filepath.Join(at, own[""]), name); err != nil {
			t.problems = append(t.problems, "version 2: "+err.Error())
		}
	}
	for _, c := range controllers {
		at, ok := mounts[c]
		if !ok || slices.Contains(t.limited, c) {
			continue
		}
		base := filepath.Join(at, own[c])
		sweep(base)
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.problems = append(t.problems, fmt.Sprintf("version 1, %s: %v", c, err))
			continue
		}
		t.v1[c], t.back[c] = dir, base
	}
	for _, c := range controllers {
		if !slices.Contains(t.Enforces(), c) {
			t.problems = append(t.problems, "no controller for "+c)
		}
	}
	if t.unified == "" && len(t.v1) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnsupported, strings.Join(t.problems, "; "))
	}
	return t, nil
}

// prefix of a directory, before the id of the process that made it and a number.
const prefix = "monroe-"

var opened atomic.Int64 // trees of this process

// openUnified makes the place in version 2, with the controllers that are delegated.
func (t *Tree) openUnified(base, name string) error {
	housed := false
	if filepath.Base(base) == "host" { // the daemon's leaf, which systemd, House or an earlier start made
		base = filepath.Dir(base)
		if workers := filepath.Join(base, "workers"); isDir(workers) { // which House made beside it
			base, housed = workers, true
		}
	}
	sweep(base)
	if housed {
		if err := enable(base); err != nil {
			t.problems = append(t.problems, err.Error())
		}
	} else if err := delegate(base); err != nil {
		// A group with processes in it cannot have limited children: this one moves into
		// a leaf, also from what is a container's root. Where it may not, or others are
		// there, what is delegated stays unused.
		t.problems = append(t.problems, err.Error())
	}
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	t.unified, t.place = dir, dir
	have, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers")) // none is an answer
	for _, c := range controllers {
		if slices.Contains(strings.Fields(string(have)), c) {
			t.limited = append(t.limited, c)
		}
	}
	if err := enable(dir); err != nil {
		t.limited = nil
		return err
	}
	return nil
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// enable makes the controllers of a group available to its children.
func enable(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var want []string
	for _, c := range controllers {
		if slices.Contains(strings.Fields(string(have)), c) {
			want = append(want, "+"+c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	return put(dir, "cgroup.subtree_control", strings.Join(want, " "))
}

// delegate makes the controllers of a group available to its children.
func delegate(base string) error {
	have, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(controllers, func(c string) bool { return slices.Contains(strings.Fields(string(have)), c) }) {
		return nil
	}
	host := filepath.Join(base, "host")
	if err := os.Mkdir(host, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := put(host, "cgroup.procs", "0"); err != nil {
		return err
	}
	err = enable(base)
	if errors.Is(err, unix.EBUSY) { // as from a shell; in a unit this process comes first
		err = fmt.Errorf("no limits, since other processes are in this one's group: start it in one of its own, by a unit or by systemd-run --scope -p 'Delegate=memory pids cpu': %w", err)
	}
	return err
}

// House makes two places, so that programs can be attached to each: one for a daemon,
// which must be born in it, and one for workers. The groups of this tree are made in the
// second from then on, and so are those of a tree that the daemon opens. Both are removed
// with the tree.
func (t *Tree) House() (daemon, workers string, err error) {
	if t.unified == "" {
		return "", "", fmt.Errorf("%w: version 2 is needed: %s", ErrUnsupported, strings.Join(t.problems, "; "))
	}
	daemon, workers = filepath.Join(t.unified, "host"), filepath.Join(t.unified, "workers")
	if err := errors.Join(os.Mkdir(daemon, 0o755), os.Mkdir(workers, 0o755), enable(workers)); err != nil {
		return "", "", err
	}
	t.place = workers
	return daemon, workers, nil
}

// Enforces lists the limits that groups of this tree have: memory, pids, cpu.
func (t *Tree) Enforces() (list []string) {
	for _, c := range controllers {
		if _, ok := t.v1[c]; ok || slices.Contains(t.limited, c) {
			list = append(list, c)
		}
	}
	return list
}

// Unified is the version 2 directory above all groups, for programs that are attached
// to it; empty if there is none.
func (t *Tree) Unified() string { return t.place }

// Problems says for people what could not be had.
func (t *Tree) Problems() []string { return slices.Clone(t.problems) }

// Close removes the place.
func (t *Tree) Close() error {
	var errs []error
	for _, dir := range t.v1 {
		errs = append(errs, remove(dir))
	}
	if t.unified != "" {
		removeBelow(t.unified)
		errs = append(errs, remove(t.unified))
	}
	return errors.Join(errs...)
}

// New makes a group. Limits that the tree does not enforce are left out.
func (t *Tree) New(name string, l Limits) (*Group, error) {
	g := &Group{tree: t, v1: map[string]string{}}
	if err := g.make(name, l); err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup: %w", err), g.Remove())
	}
	return g, nil
}

func (g *Group) make(name string, l Limits) (err error) {
	t := g.tree
	if t.unified != "" {
		dir := filepath.Join(t.place, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		g.dirs = append(g.dirs, dir)
		if g.dir2, err = os.Open(dir); err != nil {
			return err
		}
		for _, c := range t.limited {
			if err := limit(c, dir, l, false); err != nil {
				return err
			}
		}
	}
	for c, parent := range t.v1 {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		g.dirs = append(g.dirs, dir)
		g.v1[c] = dir
		if err := limit(c, dir, l, true); err != nil {
			return err
		}
	}
	return nil
}

// period of the processor's limit, in microseconds.
const period = 100_000

func limit(controller, dir string, l Limits, v1 bool) error {
	switch {
	case controller == "memory" && l.Memory > 0 && v1:
		if err := put(dir, "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)); err != nil {
			return err
		}
		err := put(dir, "memory.memsw.limit_in_bytes", strconv.FormatInt(l.Memory, 10))
		if errors.Is(err, fs.ErrNotExist) { // a kernel that does not count swap
			return nil
		}
		return err
	case controller == "memory" && l.Memory > 0:
		err := put(dir, "memory.swap.max", "0")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return errors.Join(err, put(dir, "memory.max", strconv.FormatInt(l.Memory, 10)))
	case controller == "pids" && l.PIDs > 0:
		return put(dir, "pids.max", strconv.Itoa(l.PIDs))
	case controller == "cpu" && l.CPU > 0 && v1:
		return errors.Join(put(dir, "cpu.cfs_period_us", strconv.Itoa(period)), put(dir, "cpu.cfs_quota_us", strconv.Itoa(int(l.CPU*period))))
	case controller == "cpu" && l.CPU > 0:
		return put(dir, "cpu.max", fmt.Sprintf("%d %d", int(l.CPU*period), period))
	}
	return nil
}

// Dir is the open version 2 directory, for the kernel to start a process in; nil if
// there is none. It stays the group's.
func (g *Group) Dir() *os.File { return g.dir2 }

// Enter moves the calling thread into the version 1 groups, so that what it forks is
// born there. The goroutine must be locked to its thread, and call leave on it.
func (g *Group) Enter() (leave func() error, err error) {
	leave = func() error {
		var errs []error
		for c := range g.v1 {
			errs = append(errs, put(g.tree.back[c], "tasks", "0"))
		}
		return errors.Join(errs...)
	}
	for _, dir := range g.v1 {
		if err := put(dir, "tasks", "0"); err != nil {
			return nil, errors.Join(fmt.Errorf("cgroup: %w", err), leave())
		}
	}
	return leave, nil
}

// OutOfMemory reports whether the kernel killed in this group for want of memory.
func (g *Group) OutOfMemory() bool {
	dir, file := g.v1["memory"], "memory.oom_control"
	if dir == "" {
		if g.dir2 == nil {
			return false
		}
		dir, file = g.dir2.Name(), "memory.events"
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

// Remove ends the group. The processes in it must have been waited for.
func (g *Group) Remove() error {
	var errs []error
	if g.dir2 != nil {
		errs = append(errs, g.dir2.Close())
		g.dir2 = nil
	}
	for _, dir := range g.dirs {
		errs = append(errs, remove(dir))
	}
	g.dirs = nil
	return errors.Join(errs...)
}

// remove retries: the kernel lets a group go a moment after its last process.
func remove(dir string) (err error) {
	for range 100 {
		err = os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // the kernel tells nobody when it is done
	}
	return fmt.Errorf("cgroup: %w", err)
}

// sweep removes the places of daemons that have ended. A group with a process in it
// cannot be removed, so nothing that lives is touched.
func sweep(base string) {
	places, err := filepath.Glob(filepath.Join(base, prefix+"*"))
	if err != nil {
		return
	}
	for _, place := range places {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(place), prefix), "-")
		pid, err := strconv.Atoi(id)
		if err != nil || pid == os.Getpid() || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		removeBelow(place)
		_ = os.Remove(place)
	}
}

// removeBelow removes the empty groups below a directory, the deepest first.
func removeBelow(dir string) {
	list, _ := os.ReadDir(dir) // nothing to remove then
	for _, e := range list {
		if e.IsDir() {
			at := filepath.Join(dir, e.Name())
			removeBelow(at)
			_ = remove(at) // one with a process in it stays, and so does the place
		}
	}
}

func put(dir, file, text string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(text), 0)
}

// mountPoints returns where each controller of version 1 and, under "", version 2 is
// mounted.
func mountPoints() (map[string]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			found[""] = place[4]
		case "cgroup":
			for c := range strings.SplitSeq(kind[2], ",") {
				found[c] = place[4]
			}
		}
	}
	return found, nil
}

// memberships returns this process's group by controller, version 2 under "".
func memberships() (map[string]string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			found[c] = parts[2]
		}
	}
	return found, nil
}
