// Package runner drives runs: it gives each a worker, feeds it what is recorded,
// passes its calls through the door, and parks it when it has to wait.
//
// Laws, each with a test:
//
//  1. A waiting run holds no worker, and a daemon that starts again goes on with
//     every run that had not ended.
//  2. No live call is let through before every recorded answer was asked for with
//     the request that it was recorded for.
//  3. A worker that says anything but the protocol ends its own run and nothing
//     else.
//  4. No run is driven twice at the same time.
//
// It knows runs, workers and frames. It must not know what a call means, the engine
// or how a worker is confined.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Worker is a started process on its descriptor.
type Worker interface {
	io.ReadWriter
	Ready() wire.Ready
	// Close kills the process, waits for it and says why it ended, with what it
	// printed. Nil means that it ended by itself with status 0, or because of Close.
	// ErrLimit is wrapped if a limit of its own ended it.
	Close() error
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Violations names what it tried and may not.
	Violations() []string
}

// An EscapeError is a process that tried what it may not before it was a Worker: the
// module that it loaded has left its engine.
type EscapeError struct{ Tried []string }

func (e *EscapeError) Error() string {
	return "the worker tried what it may not: " + strings.Join(e.Tried, "; ")
}

// Spawner starts run workers (law 17 of the design: directly, or through a
// privileged spawner). One that escapes while it starts is an *EscapeError; where none can
// start it is a *host.Problem, which ends the run.
type Spawner interface {
	Spawn(ctx context.Context, c Code) (Worker, error)
}

// Code is what a worker is started for.
type Code struct {
	Kit
	// Dir verifies the module and returns the directory to load it from. It is called
	// for each process, right before it is started: what is loaded already is not on
	// disk any more, and nobody can change it.
	Dir func(context.Context) (string, error)
	// Escaped is told what a process tried and may not that no run had.
	Escaped func(tried []string)
}

// Kit tells workers apart: one that has loaded a kit may serve any run of the same.
type Kit struct {
	Module abi.Digest    // of the upload
	Image  abi.Digest    // of what is executed
	CPU    time.Duration // processor time; 0 means no limit
}

// Config wires a Runner. All fields are needed.
type Config struct {
	Store   *store.Store
	Keys    *vault.Keyset
	Shelf   *module.Shelf
	Broker  *broker.Broker
	Spawner Spawner
	Now     func() time.Time
	Expiry  func() time.Time // the clock that approvals expire by; nil means Now
	Log     *slog.Logger
	// Workers bounds how many workers live at the same time.
	Workers int
	// Wakes bounds how many waiting runs are woken in a second, however often is swept,
	// 0 means 32. What is due beyond that is due later.
	Wakes int
}

// Runner is safe for concurrent use.
type Runner struct {
	Config
	ctx   context.Context
	stop  context.CancelFunc
	slots chan struct{}
	all   sync.WaitGroup
	loads sync.RWMutex                              // held for reading by what verifies a module, by a run or for a spare
	drive func(context.Context, host.RunID, *drive) // once, or what a test has instead

	pace struct { // a bucket of wake-ups
		sync.Mutex
		left  float64
		at    time.Time
		first []host.RunID // what the last daemon left at work, before all that is due
	}

	mu     sync.Mutex
	active map[host.RunID]*drive
	feeds  map[host.RunID]*feed
}

// drive is one run that a goroutine is busy with.
type drive struct {
	again  bool // it was woken meanwhile
	begun  bool // it has had the place of a worker
	seated bool // it has it now
	cancel context.CancelCauseFunc
}

// ErrCancelled is why a run ends that a person cancelled.
var ErrCancelled = errors.New("a person cancelled the run")

// halted is a run that something else than a person cancelled.
type halted struct{ why string }

func (h *halted) Error() string        { return h.why }
func (h *halted) Is(target error) bool { return target == ErrCancelled }

// New returns a runner that does nothing before Start.
func New(c Config) *Runner {
	if c.Wakes == 0 {
		c.Wakes = 32
	}
	if c.Expiry == nil {
		c.Expiry = c.Now
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Runner{
		Config: c, ctx: ctx, stop: stop, slots: make(chan struct{}, c.Workers),
		active: map[host.RunID]*drive{}, feeds: map[host.RunID]*feed{},
	}
	r.drive = r.once
	r.pace.left, r.pace.at = float64(c.Wakes), c.Now()
	return r
}

// Start takes up every run that had not ended when the daemon stopped, and ends those
// that were cancelled.
func (r *Runner) Start() error {
	var cancelled []store.Run
	err := r.Store.Read(r.ctx, func(tx *store.Tx) (err error) {
		if cancelled, err = tx.Cancelled(); err != nil {
			return err
		}
		if r.pace.first, err = tx.Busy(); err != nil {
			return err
		}
		model, err := tx.Waiting(host.WaitModel)  // that call is lost
		held, err2 := tx.Waiting(host.WaitPinned) // this binary may be the one that they wait for
		r.pace.first = append(append(r.pace.first, model...), held...)
		return errors.Join(err, err2)
	})
	if err != nil {
		return err
	}
	for _, run := range cancelled { // before any goes on, as one may belong to another
		r.end(run.ID, ending{state: host.StateCancelled, failure: run.Cancel})
	}
	return r.Recheck()
}

// Sweep wakes what has waited long enough: timers, expired approvals, new months,
// and answered approvals whose wake-up a crash lost. It is level-triggered: calling
// it too often is harmless.
func (r *Runner) Sweep() error {
	now := r.Now()
	err := r.Store.Write(r.ctx, func(tx *store.Tx) error {
		_, err := tx.Expired(r.Expiry()) // its runs are due then
		return err
	})
	if err != nil {
		return err
	}
	r.pace.Lock()
	defer r.pace.Unlock()
	r.refill(now)
	n := int(r.pace.left)
	if n == 0 {
		return nil
	}
	due := r.pace.first[:min(n, len(r.pace.first))]
	r.pace.first = r.pace.first[len(due):]
	err = r.Store.Read(r.ctx, func(tx *store.Tx) error {
		list, err := tx.Due(now, n-len(due))
		due = append(slices.Clone(due), list...)
		return err
	})
	for _, id := range due {
		r.mu.Lock()
		d := r.active[id]
		queued := d != nil && !d.begun
		r.mu.Unlock()
		if !queued { // one that waits for a worker is looked at then
			r.pace.left--
			r.Wake(id)
		}
	}
	return err
}

// refill puts wake-ups into the bucket for the time that passed, at most a second's.
// A clock that was set back takes none out.
func (r *Runner) refill(now time.Time) {
	if passed := now.Sub(r.pace.at); passed > 0 {
		r.pace.left = min(float64(r.Wakes), r.pace.left+passed.Seconds()*float64(r.Wakes))
	}
	r.pace.at = now
}

// Recheck lets runs that wait for what an admin or the operator changes go on as far
// as they can now, at the pace of the sweep.
func (r *Runner) Recheck() error {
	err := r.Store.Write(r.ctx, func(tx *store.Tx) error {
		return errors.Join(tx.MakeDue(host.WaitBudget, r.Now()), tx.MakeDue(host.WaitConnector, r.Now()))
	})
	if err != nil {
		return err
	}
	return r.Sweep()
}

// Wake lets a run go on, or start. It returns at once. A run that is driven already
// is looked at once more when it parks.
func (r *Runner) Wake(id host.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	if d := r.active[id]; d != nil {
		d.again = true
		return
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	d := &drive{cancel: cancel}
	r.active[id] = d
	r.all.Add(1)
	go func() {
		defer r.all.Done()
		defer cancel(nil)
		for {
			r.drive(ctx, id, d)
			r.mu.Lock()
			d.begun = false
			again := d.again && ctx.Err() == nil
			d.again = false
			// A person may cancel while the run parks: the word counts all the same.
			cancelled := errors.Is(context.Cause(ctx), ErrCancelled)
			if !again && !cancelled {
				delete(r.active, id)
			}
			r.mu.Unlock()
			if again {
				continue
			}
			if cancelled {
				r.end(id, ending{state: host.StateCancelled, failure: context.Cause(ctx).Error()}) // unless it has ended
				r.mu.Lock()
				delete(r.active, id)
				r.mu.Unlock()
			}
			return
		}
	}()
}

// once drives a run until it parks or ends.
func (r *Runner) once(ctx context.Context, id host.RunID, d *drive) {
	if r.seat(ctx, d) != nil {
		return
	}
	defer r.leave(d)
	err := r.run(ctx, id, d)
	switch {
	case err == nil, errors.Is(err, broker.ErrSuspended):
	case errors.Is(context.Cause(ctx), ErrCancelled): // Wake ends it
	case errors.Is(err, ErrCancelled):
		r.end(id, ending{state: host.StateCancelled, failure: err.Error()})
	case r.ctx.Err() != nil: // the daemon stops: the next one goes on
	default:
		r.Log.Error("run failed", slog.String("run", string(id)), slog.String("error", err.Error()))
		r.end(id, ending{state: host.StateFailed, failure: explain(err)})
	}
}

// seat waits for the place of a worker.
func (r *Runner) seat(ctx context.Context, d *drive) error {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d.begun, d.seated = true, true
	return nil
}

// leave gives the place back, if the drive has it.
func (r *Runner) leave(d *drive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.seated {
		d.seated = false
		<-r.slots
	}
}

// end records the end of a run that has no worker. If that fails, the run is still
// open in the store and the next daemon takes it up again.
func (r *Runner) end(id host.RunID, e ending) {
	if err := r.finish(id, nil, e); err != nil {
		r.Log.Error("the end of a run could not be recorded", slog.String("run", string(id)), slog.String("error", err.Error()))
	}
}

// explain is what a person is told of an error that ended a run.
func explain(err error) string {
	if p := new(host.Problem); errors.As(err, &p) {
		return p.Error()
	}
	return fmt.Sprintf("the host could not go on: %v", err)
}

// Cancel ends a run that has not ended, with all that it called.
func (r *Runner) Cancel(id host.RunID) error { return r.cancel(id, ErrCancelled) }

// Halt is Cancel where it is not a person who wants it. why tells people.
func (r *Runner) Halt(id host.RunID, why string) error { return r.cancel(id, &halted{why}) }

// cancel is durable when it returns, though the run may still have a worker.
func (r *Runner) cancel(id host.RunID, why error) error {
	err := r.Store.Write(context.WithoutCancel(r.ctx), func(tx *store.Tx) error { return tx.Cancel(id, why.Error()) })
	if errors.Is(err, host.ErrConflict) {
		return nil // it has ended already
	}
	if err != nil {
		return err
	}
	if r.interrupt(id, why) {
		return nil
	}
	return r.finish(id, nil, ending{state: host.StateCancelled, failure: why.Error()})
}

// interrupt stops the worker of a run that has one, and reports whether it has: then
// the run ends when the worker is gone.
func (r *Runner) interrupt(id host.RunID, why error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.active[id]
	if d != nil {
		d.cancel(why)
	}
	return d != nil
}

// Await waits until a run ends or waits itself, at most for d, and not at all while
// others have every worker: then its caller's is in its way.
func (r *Runner) Await(ctx context.Context, id host.RunID, d time.Duration) {
	if d <= 0 || r.crowded(id) {
		return
	}
	limit := time.NewTimer(d)
	defer limit.Stop()
	for after := int64(0); ; {
		list, more, done := r.Events(id, after)
		if done || slices.ContainsFunc(list, func(e host.Event) bool { return e.State == host.StateWaiting }) {
			return
		}
		if len(list) > 0 {
			after = list[len(list)-1].Seq
			continue
		}
		select {
		case <-more:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// crowded reports whether a run has no worker and every place is taken.
func (r *Runner) crowded(id host.RunID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.active[id]; d != nil && d.seated {
		return false
	}
	taken := 0 // len(r.slots) has the place of one that is about to sit down, too: it may be this one's
	for _, d := range r.active {
		if d.seated {
			taken++
		}
	}
	return taken == cap(r.slots)
}

// Events returns what happened in a run after an event, for people.
func (r *Runner) Events(id host.RunID, after int64) (list []host.Event, more <-chan struct{}, done bool) {
	return r.feed(id).after(after)
}

// Forget drops what was told of a run.
func (r *Runner) Forget(id host.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.feeds, id)
}

func (r *Runner) feed(id host.RunID) *feed {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.feeds[id]
	if f == nil {
		if len(r.feeds) >= maxFeeds {
			maps.DeleteFunc(r.feeds, func(_ host.RunID, old *feed) bool { return old.over() })
		}
		f = newFeed(r.Now)
		r.feeds[id] = f
	}
	return f
}

// Stop cancels everything that is under way, and does not wait.
func (r *Runner) Stop() { r.stop() }

// Close stops every worker and waits. Runs stay as they are recorded. Nothing uses the
// store after it, not even what a Spawner that outlives it still wants to load.
func (r *Runner) Close() {
	r.Stop()
	r.all.Wait()
	r.loads.Lock()
	defer r.loads.Unlock()
}
