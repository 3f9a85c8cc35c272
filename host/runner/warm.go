package runner

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Warm is a Spawner that keeps spare workers: processes that have confined
// themselves and loaded a module, and wait for a run. A run that wakes up then pays
// for its replay alone.
//
// A spare knows nothing but its module's code, and serves one run, like every worker.
// It is started when a worker of its module ends, since that run, or another of the
// module, may soon be back. Like any process it loads what was verified right before,
// and a run that takes it has nothing to verify. It is safe for concurrent use.
type Warm struct {
	from Spawner
	most int           // spares of all modules together
	life time.Duration // of a spare that nobody takes
	log  *slog.Logger

	ctx     context.Context
	stop    context.CancelFunc
	all     sync.WaitGroup
	watches sync.WaitGroup // of spares, until they end

	mu       sync.Mutex
	spares   []*spare // oldest first
	starting int
}

type spare struct {
	Worker
	code Code
	end  *time.Timer
}

// NewWarm keeps at most most spares, each for at most life. With most 0 it keeps
// none.
func NewWarm(from Spawner, most int, life time.Duration, log *slog.Logger) *Warm {
	w := &Warm{from: from, most: most, life: life, log: log}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// Spawn takes the newest spare of the module, or starts a worker.
func (w *Warm) Spawn(ctx context.Context, c Code) (Worker, error) {
	for {
		s := w.take(c.Kit)
		if s == nil {
			fresh, err := w.from.Spawn(ctx, c)
			if err != nil {
				return nil, err
			}
			return &lent{Worker: fresh, w: w, code: c}, nil
		}
		select {
		case <-s.Done(): // something ended it while it waited: no run shall pay for that
			w.lost(s)
		default:
			return &lent{Worker: s.Worker, w: w, code: c}, nil
		}
	}
}

func (w *Warm) take(k Kit) *spare {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range slices.Backward(w.spares) {
		if s.code.Kit == k {
			w.spares = slices.Delete(w.spares, i, i+1)
			s.end.Stop()
			return s
		}
	}
	return nil
}

// lent is a worker that a run has. When it ends, a spare takes its place.
type lent struct {
	Worker
	w    *Warm
	code Code
	once sync.Once
}

func (l *lent) Close() error {
	err := l.Worker.Close()
	l.once.Do(func() { l.w.refill(l.code) })
	return err
}

// refill starts a spare in the background, unless as many are on their way as may be
// kept. The oldest makes room.
func (w *Warm) refill(c Code) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil || w.starting >= w.most {
		return
	}
	w.starting++
	w.all.Go(func() {
		fresh, err := w.from.Spawn(w.ctx, c)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.starting--
		switch {
		case err != nil:
			if e := new(EscapeError); errors.As(err, &e) {
				w.escaped(c, e.Tried)
			}
			if w.ctx.Err() == nil && !errors.Is(err, context.Canceled) { // the run that needs one says it aloud
				w.log.Warn("a spare worker did not start", slog.String("error", err.Error()))
			}
			return
		case w.ctx.Err() != nil:
			w.drop(&spare{Worker: fresh, code: c})
			return
		}
		s := &spare{Worker: fresh, code: c}
		s.end = time.AfterFunc(w.life, func() { w.expire(s) })
		w.watches.Go(func() { // nobody asks a spare how it is
			<-s.Done()
			if w.leave(s) {
				w.lost(s)
			}
		})
		w.spares = append(w.spares, s)
		if len(w.spares) > w.most {
			w.drop(w.spares[0])
			w.spares = slices.Delete(w.spares, 0, 1)
		}
	})
}

// lost says why a spare ended that nobody had asked to.
func (w *Warm) lost(s *spare) {
	err := s.Worker.Close()
	w.log.Warn("a spare worker ended while it waited", slog.Any("error", err))
	w.escaped(s.code, s.Violations())
}

// escaped tells in the background what a process tried that no run has.
func (w *Warm) escaped(c Code, tried []string) {
	if len(tried) > 0 {
		w.all.Go(func() { c.Escaped(tried) })
	}
}

// leave takes a spare out and reports whether it was still there.
func (w *Warm) leave(s *spare) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.spares, s)
	if i >= 0 {
		w.spares = slices.Delete(w.spares, i, i+1)
		s.end.Stop()
	}
	return i >= 0
}

func (w *Warm) expire(s *spare) {
	if w.leave(s) {
		w.drop(s)
	}
}

// drop ends a spare in the background, since it waits for the process.
func (w *Warm) drop(s *spare) {
	if s.end != nil {
		s.end.Stop()
	}
	w.all.Go(func() {
		_ = s.Worker.Close() // nobody was served by it
		if tried := s.Violations(); len(tried) > 0 {
			s.code.Escaped(tried)
		}
	})
}

// Close ends the spares and waits. It must come after the last Spawn and the last
// Close of a worker.
func (w *Warm) Close() {
	w.stop()
	w.mu.Lock()
	for _, s := range w.spares {
		w.drop(s)
	}
	w.spares = nil
	w.mu.Unlock()
	w.watches.Wait()
	w.all.Wait()
}
