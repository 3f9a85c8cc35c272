package spawn

import (
	"strconv"
	"sync"

	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// housing makes the control groups of workers. To make one takes some ten file
// operations, so while a worker starts, the group of the next one is made. Each serves
// one worker. It is safe for concurrent use; the zero value needs a tree.
type housing struct {
	tree *cgroup.Tree
	busy sync.WaitGroup // of what is made ahead

	mu     sync.Mutex
	number int64 // of the last group
	closed bool
	making bool
	ready  *cgroup.Group // nil if there is none
	limits cgroup.Limits // of ready
}

// take returns a group with these limits: the one that is ready if they are its own.
func (h *housing) take(l cgroup.Limits) (*cgroup.Group, error) {
	h.mu.Lock()
	if g := h.ready; g != nil && h.limits == l {
		h.ready = nil
		h.mu.Unlock()
		return g, nil
	}
	name := h.name()
	h.mu.Unlock()
	return h.tree.New(name, l)
}

// name is that of the next group; mu is held.
func (h *housing) name() string {
	h.number++
	return "w-" + strconv.FormatInt(h.number, 10)
}

// ahead makes the next group in the background, unless one is ready or being made. If
// that fails, the worker that needs a group says so.
func (h *housing) ahead(l cgroup.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.making || h.ready != nil {
		return
	}
	h.making = true
	name := h.name()
	h.busy.Go(func() {
		g, err := h.tree.New(name, l)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.making = false
		if err == nil {
			h.ready, h.limits = g, l
		}
	})
}

// close removes what no worker took. Nothing is made ahead any more.
func (h *housing) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.busy.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ready != nil {
		_ = h.ready.Remove() // the tree's end tells if it is left
		h.ready = nil
	}
}
