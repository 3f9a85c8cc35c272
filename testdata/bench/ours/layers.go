package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

const (
	layerStarts = 40
	layerRounds = 40  // of trips by turns
	layerPairs  = 5   // of workers, for a call
	layerTrips  = 125 // of each worker in a round
	layerWarm   = 100 // trips after its processor changed that do not count
	nobody      = 65534
)

// layers is what the walls cost: canaries within all of them and within none, by turns.
// A canary is a worker without a module, so loading one does not hide the walls.
func (b *bench) layers(ctx context.Context) (err error) {
	r, err := b.walled(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	all, none := r.direct(walls{"all"}), r.direct(walls{})
	if err := r.err; err != nil {
		return err
	}
	starts, fresh := map[*spawn.Spawner][]time.Duration{}, map[*spawn.Spawner][]time.Duration{}
	for range layerStarts {
		for _, s := range []*spawn.Spawner{all, none} {
			p, took, err := r.start(ctx, s)
			if err != nil {
				return err
			}
			starts[s] = append(starts[s], took)
			t, err := roundTrips(p, layerTrips)
			if err != nil {
				return err
			}
			fresh[s] = append(fresh[s], t...)
			_ = p.Close() // it is killed
		}
	}
	with, without, err := r.calls(ctx, all, none)
	if err != nil {
		return err
	}
	frames := func(p string, took []time.Duration) peer {
		return peer{p + " without any layer, by turns, on the same processor", at(took, 50, time.Microsecond)}
	}
	return errors.Join(
		b.report("layers_worker_start", time.Millisecond, starts[all], peer{"the same process without any layer, by turns", at(starts[none], 50, time.Millisecond)}, 2, true),
		b.report("layers_worker_start_p50", time.Millisecond, starts[all], peer{}, 40, false),
		b.served(ctx, r),
		b.report("layers_host_call", time.Microsecond, with, frames("the same frames", without), 1.3, true),
		b.report("layers_host_call_fresh", time.Microsecond, fresh[all], frames("the same frames of a worker that has just started,", fresh[none]), 0, true),
	)
}

// calls lets workers of each spawner live through rounds of trips by turns, as a guest
// lives through its calls. One after the other there are several pairs: by where the kernel
// puts its memory and its threads one worker may be slower than another all its life.
func (r *walled) calls(ctx context.Context, a, b *spawn.Spawner) (ofA, ofB []time.Duration, err error) {
	for range layerPairs {
		p, _, err1 := r.start(ctx, a)
		q, _, err2 := r.start(ctx, b)
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, err // whoever started ends with the spawners
		}
		for range layerRounds {
			of, err1 := roundTrips(p, layerTrips)
			ofA = append(ofA, of...)
			of, err2 := roundTrips(q, layerTrips)
			ofB = append(ofB, of...)
			err = errors.Join(err, err1, err2)
		}
		_, _ = p.Close(), q.Close() // they are killed
		if err != nil {
			return nil, nil, err
		}
	}
	return ofA, ofB, nil
}

// served measures the same starts where a small process forks, as monroe up does.
func (b *bench) served(ctx context.Context, r *walled) error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "ours: starts by monroe up are not measured: only root can fork workers of another user")
		return nil
	}
	all, none := r.served(ctx, walls{"all"}), r.served(ctx, walls{})
	if r.err != nil {
		return r.err
	}
	with, without, err := r.byTurns(ctx, all, none)
	if err != nil {
		return err
	}
	return b.report("layers_worker_start_served", time.Millisecond, with, peer{"the same without any layer, by turns", at(without, 50, time.Millisecond)}, 2, true)
}

// parts is what each wall adds to a start: each step has one more than the step before
// it, and the figure is the median of the differences in a round.
func (b *bench) parts(ctx context.Context) (err error) {
	r, err := b.walled(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	steps := []string{"rlimits", "landlock", "seccomp", "namespaces", "user", "groups"}
	spawners := []*spawn.Spawner{r.direct(walls{})}
	for i := range steps {
		spawners = append(spawners, r.direct(walls(steps[:i+1])))
	}
	if r.err != nil {
		return r.err
	}
	took := make([][]time.Duration, len(spawners))
	for range 5 * layerStarts {
		for i, s := range spawners {
			p, t, err := r.start(ctx, s)
			if err != nil {
				return err
			}
			_ = p.Close() // it is killed
			took[i] = append(took[i], t)
		}
	}
	err = b.report("layers_part_none", time.Microsecond, took[0], peer{}, 0, false)
	for i, name := range steps {
		var more []time.Duration
		for j := range took[i] {
			more = append(more, took[i+1][j]-took[i][j])
		}
		err = errors.Join(err, b.report("layers_part_"+name, time.Microsecond, more, peer{}, 0, false))
	}
	return err
}

// walls names those that stand: what a canary builds itself, and namespaces, user and
// groups, or all.
type walls []string

func (w walls) has(name string) bool {
	for _, x := range w {
		if x == name || x == "all" {
			return true
		}
	}
	return false
}

// set leaves out the others.
func (w walls) set(s *spawn.Spawner) {
	s.WithoutNamespaces, s.WithoutGroups = !w.has("namespaces"), !w.has("groups")
	for _, inner := range []string{"landlock", "seccomp", "rlimits"} {
		if !w.has(inner) {
			s.Without = append(s.Without, inner)
		}
	}
	if w.has("user") && os.Geteuid() == 0 {
		s.UID = nobody
	}
	s.Walls() // tried once, not at each start
}

// walled makes spawners of one worker program. Its first error stays.
type walled struct {
	dir, worker, spawner string
	err                  error
	ends                 []func() error
}

func (b *bench) walled(ctx context.Context) (*walled, error) {
	dir := filepath.Join(b.dir, "layers")
	r := &walled{dir: dir}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { //nolint:gosec // workers of another user read it
		return nil, err
	}
	var err1, err2 error
	r.worker, err1 = spawntest.Build(ctx, dir, spawntest.Worker)
	r.spawner, err2 = spawntest.Build(ctx, dir, "./testdata/bench/spawner")
	return r, errors.Join(err1, err2)
}

func (r *walled) close() (err error) {
	for i := range r.ends {
		err = errors.Join(err, r.ends[len(r.ends)-1-i]())
	}
	return err
}

// direct is a spawner that forks from this process.
func (r *walled) direct(w walls) *spawn.Spawner {
	s, err := spawn.New(r.worker, !w.has("all"))
	if err != nil {
		r.err = errors.Join(r.err, err)
		return nil
	}
	r.ends = append(r.ends, s.Close)
	w.set(s)
	return s
}

// served is one whose workers a process of its own forks.
func (r *walled) served(ctx context.Context, w walls) *spawn.Spawner {
	s, err := r.attach(ctx, !w.has("all"))
	if err != nil {
		r.err = errors.Join(r.err, err)
		return nil
	}
	w.set(s)
	return s
}

func (r *walled) attach(ctx context.Context, insecure bool) (*spawn.Spawner, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "spawner"), os.NewFile(uintptr(pair[1]), "spawner")
	cmd := exec.CommandContext(ctx, r.spawner, "-worker", r.worker, "-worker-uid", strconv.Itoa(nobody))
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{theirs}
	err = cmd.Start()
	if err := errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(err, mine.Close())
	}
	r.ends = append(r.ends, cmd.Wait, mine.Close)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("no spawner: %d messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	remote, err := spawn.Attach(os.NewFile(uintptr(fds[0]), "channel"))
	if err != nil {
		return nil, err
	}
	s, err := remote.New(insecure)
	r.ends = append(r.ends, remote.Close)
	if err == nil {
		r.ends = append(r.ends, s.Close)
	}
	return s, err
}

func (r *walled) start(ctx context.Context, s *spawn.Spawner) (*spawn.Process, time.Duration, error) {
	began := time.Now()
	p, err := s.Spawn(ctx, spawn.ModeCanary, r.dir, 0)
	return p, time.Since(began), err
}

func (r *walled) byTurns(ctx context.Context, a, b *spawn.Spawner) (ofA, ofB []time.Duration, err error) {
	for range layerStarts {
		for s, to := range map[*spawn.Spawner]*[]time.Duration{a: &ofA, b: &ofB} {
			p, took, err := r.start(ctx, s)
			if err != nil {
				return nil, nil, err
			}
			_ = p.Close() // it is killed
			*to = append(*to, took)
		}
	}
	return ofA, ofB, nil
}

// roundTrips asks a worker for nothing that it knows, as often. Both ends are on one
// processor: what a wake-up costs across two is the machine's affair, and differs from
// run to run by more than the walls cost.
func roundTrips(p *spawn.Process, n int) (took []time.Duration, err error) {
	release, err := pin(p.PID())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	for range layerWarm + n {
		began := time.Now()
		if err := wire.WriteFrame(p.Conn, wire.KindInput, []byte("nothing")); err != nil {
			return nil, err
		}
		if _, _, err := wire.ReadFrame(p.Conn, wire.KindLog); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took[layerWarm:], nil
}

// pin puts this process and another on one processor, until release.
func pin(pid int) (release func() error, err error) {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	release = func() error { return place(os.Getpid(), &before) }
	return release, errors.Join(place(os.Getpid(), &one), place(pid, &one))
}

// place lets every thread of a process run on these processors.
func place(pid int, on *unix.CPUSet) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, on); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
			return err
		}
	}
	return nil
}
