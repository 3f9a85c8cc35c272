package spawn

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// A forker makes processes and says how they ended. It is the half of a Spawner that
// may need privilege: this process's own nursery, or that of monroe up (Remote).
type forker interface {
	// fork starts one. The files stay the caller's.
	fork(birth) (child, error)
	// walls says what stands around a process that omits no more than this.
	walls(omitted) Walls
	// stop ends forking: when it returns, no child is made any more.
	stop()
	// close frees what is left, after the last child's end.
	close() error
}

// A child is one process. Its methods are safe for concurrent use; wait is called once.
type child interface {
	pid() int
	kill() // does not wait, and does nothing after the end
	wait() ending
}

// A birth is what a process is started with.
type birth struct {
	mode     Mode
	cpu      time.Duration // 0: no limit
	memory   int64         // bytes
	without  []string      // walls that a canary leaves out within itself
	omitted  omitted
	insecure bool
	// socket is the worker's end, stderr the end of a pipe that it writes to, dir its
	// directory, open for reading: no path is looked up for a worker.
	socket, stderr, dir *os.File
	plugin              *pluginStart
}

// omitted are walls around a worker that are left out, to look at the others alone.
type omitted struct{ namespaces, groups bool }

// from takes what is left out away from walls that were found.
func (o omitted) from(w Walls) Walls {
	const off = "switched off"
	if o.namespaces {
		w.Namespaces, w.NamespacesWhy = false, off
	}
	if o.groups {
		w.Groups, w.GroupsWhy, w.Unified = nil, []string{off}, ""
	}
	return w
}

// ending is how a process ended.
type ending struct {
	status syscall.WaitStatus
	cpu    time.Duration
	memory bool  // it was ended for what it held
	err    error // what could not be put in order after it
}

// An ExitError is the end of a process that did not exit with status 0.
type ExitError struct {
	Status syscall.WaitStatus
	CPU    time.Duration // processor time that it used
}

func (e *ExitError) Error() string {
	if e.Status.Signaled() {
		return "signal: " + e.Status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", e.Status.ExitStatus())
}

// A nursery forks as a child of this process.
type nursery struct {
	program *os.File
	hidden  *os.File // the same bytes, which nobody can read; nil if that cannot be had (whyMapped)
	digest  abi.Digest
	uid     uint32        // of workers; 0 means this process's own
	lender  owner         // whose the directories are that are lent to workers
	within  time.Duration // how long the program may take to answer in new namespaces

	thread    *forkThread
	live      atomic.Int64 // children that have not been waited for
	tried     sync.Once    // of namespaces
	spaces    error        // why there are none
	whyMapped error        // why no worker is anonymous
	unfit     error        // why the thread forks no more; for the thread alone
	opened    sync.Once    // of groups
	groups    housing      // its tree is nil where there are none
	own       bool         // the tree is closed with this
	lacking   []string     // why there are no groups
}

// newNursery opens and hashes the worker program.
func newNursery(workerPath string) (*nursery, error) {
	program, digest, err := openProgram(workerPath)
	if err != nil {
		return nil, fmt.Errorf("the worker program cannot be used, install monroe-worker beside monroed: %w", err)
	}
	hidden, whyMapped := hide(program, digest) // workers are mapped then
	return &nursery{program: program, hidden: hidden, whyMapped: whyMapped, digest: digest, lender: owner{os.Geteuid(), os.Getegid()}, within: ReadyWithin, thread: newForkThread(), own: true}, nil
}

// A forkThread forks every worker from one thread that lives until it is stopped: a
// parent-death signal follows the thread that forked, not the process.
type forkThread struct {
	forks          chan func()
	closing, ended chan struct{}
	once           sync.Once
}

func newForkThread() *forkThread {
	t := &forkThread{forks: make(chan func()), closing: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(t.ended)
		for {
			select {
			case f := <-t.forks:
				f()
			case <-t.closing:
				return
			}
		}
	}()
	return t
}

// do runs f on the thread.
func (t *forkThread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.forks <- func() { result <- f() }:
		return <-result
	case <-t.closing:
		return ErrClosed
	}
}

func (t *forkThread) stop() {
	t.once.Do(func() { close(t.closing) })
	<-t.ended
}

func (n *nursery) stop() { n.thread.stop() }

func (n *nursery) close() error {
	n.opened.Do(func() {}) // whoever comes later finds nothing
	n.groups.close()
	var err error
	if n.groups.tree != nil && n.own {
		err = n.groups.tree.Close()
	}
	if n.hidden != nil {
		err = errors.Join(err, n.hidden.Close())
	}
	return errors.Join(err, n.program.Close())
}

// other says that workers have a user of their own.
func (n *nursery) other() bool { return n.uid != 0 }

func (n *nursery) fork(b birth) (child, error) {
	w := n.walls(b.omitted)
	args := []string{"monroe-worker", "--cpu", b.cpu.String(), "--memory", strconv.FormatInt(b.memory, 10)}
	if !w.Namespaces { // whose parent is outside of its process namespace, so that it sees none
		args = append(args, "--parent", strconv.Itoa(os.Getpid()))
	}
	if len(b.without) > 0 {
		args = append(args, "--without", strings.Join(b.without, ","))
	}
	if b.insecure {
		args = append(args, "--insecure-dev")
	}
	k := n.kind(b.mode, w)
	cmd := &exec.Cmd{
		Path: n.path(k),
		Args: append(args, string(b.mode), "/proc/self/cwd"),
		Env:  []string{}, // nil would be this process's
		// The worker opens its directory by its working directory: the path may lead
		// through directories that its user may not enter.
		Dir:         fmt.Sprintf("/proc/self/fd/%d", b.dir.Fd()),
		Stderr:      b.stderr,
		ExtraFiles:  []*os.File{b.socket},
		SysProcAttr: n.attributes(k),
	}
	if b.plugin != nil {
		cmd.Env, cmd.Stdout, cmd.ExtraFiles = append([]string{}, b.plugin.env...), b.plugin.stdout, append(cmd.ExtraFiles, b.plugin.program)
	}
	f := &forked{n: n, cmd: cmd, gone: make(chan struct{})}
	if n.other() && (b.mode == ModeCompile || b.mode == ModePlugin) {
		lent, err := n.lend(b.dir)
		if err != nil {
			return nil, err
		}
		f.lent = lent
	}
	if err := n.thread.do(func() error { return n.house(f, b, k) }); err != nil {
		return nil, errors.Join(err, f.giveBack())
	}
	n.live.Add(1)
	if !slices.Contains(w.Groups, "memory") {
		f.watchers.Go(func() { f.watchMemory(b.memory) })
	}
	return f, nil
}

// forked is a child of this process.
type forked struct {
	n        *nursery
	cmd      *exec.Cmd
	group    *cgroup.Group // nil where there is none
	lent     *os.File      // nil where nothing was
	gone     chan struct{} // closed when the process has ended
	watchers sync.WaitGroup
	greedy   atomic.Bool // watchMemory ended it
}

func (f *forked) pid() int { return f.cmd.Process.Pid }

func (f *forked) kill() { _ = f.cmd.Process.Kill() } // one that has ended is no news

func (f *forked) wait() ending {
	err := f.cmd.Wait()
	close(f.gone)
	f.watchers.Wait()
	e := ending{memory: f.greedy.Load()}
	if s := f.cmd.ProcessState; s != nil {
		e.status, _ = s.Sys().(syscall.WaitStatus)
		e.cpu = s.UserTime() + s.SystemTime()
	} else {
		e.err = err
	}
	if f.group != nil {
		e.memory = e.memory || f.group.OutOfMemory() // also where whoever saw the socket close killed it before this
		_ = f.group.Remove()                         // the tree's end tells if one is left
	}
	e.err = errors.Join(e.err, f.giveBack())
	f.n.live.Add(-1)
	return e
}

func (f *forked) giveBack() error {
	if f.lent == nil {
		return nil
	}
	return errors.Join(f.n.takeBack(f.lent), f.lent.Close())
}

// share makes the forking thread's children create files that their group may use, as
// the lender of a directory has to connect to a socket in it. The mask is a process's,
// so that the thread needs one of its own.
func (n *nursery) share() error {
	return n.thread.do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("no mask of its own: %w", err)
		}
		unix.Umask(0o007)
		return nil
	})
}
