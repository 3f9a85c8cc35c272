package runner

import (
	"sync"
	"time"

	"github.com/getmonroe/monroe/host"
)

// maxEvents bounds what is kept of one run for those who watch late. Older events
// are dropped; the journal and the audit log keep the record.
const maxEvents = 2000

// maxFeeds is how many runs' events are kept before those of ended runs are dropped;
// for such a run the end alone is told.
const maxFeeds = 256

// feed is what happened in one run, for people who watch.
type feed struct {
	mu    sync.Mutex
	now   func() time.Time
	next  int64
	list  []host.Event
	more  chan struct{}
	ended bool
}

func newFeed(now func() time.Time) *feed {
	return &feed{now: now, next: 1, more: make(chan struct{})}
}

func (f *feed) add(e host.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Seq, e.Time = f.next, f.now().UTC()
	f.next++
	if f.list = append(f.list, e); len(f.list) > maxEvents {
		f.list = append([]host.Event{}, f.list[len(f.list)-maxEvents/2:]...)
	}
	f.ended = f.ended || e.State.Ended()
	close(f.more)
	f.more = make(chan struct{})
}

// over reports whether the run's last event was told.
func (f *feed) over() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// after returns the events with a higher number, and a channel that is closed when
// there may be more.
func (f *feed) after(seq int64) (list []host.Event, more <-chan struct{}, done bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.list {
		if f.list[i].Seq > seq {
			list = append(list, f.list[i:]...)
			break
		}
	}
	return list, f.more, f.ended
}
