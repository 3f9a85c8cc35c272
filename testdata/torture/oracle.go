package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// price is what one metered call costs, in micro-dollars.
const price = 10_000

// fact is what the other side knows of one thing that was to be done, by its id.
type fact struct {
	class   string
	applied int // how often it was done
	keys    map[string]bool
}

// oracle is the other side: it does what arrives, as its class promises, and
// remembers. It alone says what happened.
type oracle struct {
	base string // http://host:port
	srv  *http.Server

	mu     sync.Mutex
	rng    *rand.Rand
	facts  map[string]*fact
	armed  bool          // the next change is held
	held   chan struct{} // told when one is
	holds  int           // requests that are held at the moment
	paid   int64         // metered calls that were done
	cap    int64         // micro-dollars
	over   int           // metered calls that were done beyond it
	breaks bool          // answers are lost at times
	loses  bool          // the next answer is lost
}

func newOracle(seed uint64) (*oracle, error) {
	o := &oracle{rng: rand.New(rand.NewPCG(seed, 1)), facts: map[string]*fact{}, held: make(chan struct{}, 1), breaks: true}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o.base = "http://" + l.Addr().String()
	o.srv = &http.Server{Handler: o, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = o.srv.Serve(l) }()
	return o, nil
}

// ServeHTTP takes /<class>/<id>.
func (o *oracle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it did not arrive
	}
	class, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if class == "pure" {
		_, _ = io.WriteString(w, "a page")
		return
	}
	o.mu.Lock()
	hold := o.armed
	o.armed = false
	arrived := !hold || o.rng.Float64() < 0.7 // else the other side dies before it does it
	lost := o.loses || o.breaks && o.rng.Float64() < 0.02
	o.loses = false
	status := http.StatusOK
	if arrived {
		status = o.apply(class, id, r)
	}
	if hold {
		o.holds++
	}
	o.mu.Unlock()
	if hold {
		select {
		case o.held <- struct{}{}:
		default:
		}
		<-r.Context().Done() // until whoever asked is dead or has lost patience
		o.mu.Lock()
		o.holds--
		o.mu.Unlock()
		lost = true
	}
	if lost {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(status)
}

// apply does it, as its class promises.
func (o *oracle) apply(class, id string, r *http.Request) int {
	f := o.facts[id]
	if f == nil {
		f = &fact{class: class, keys: map[string]bool{}}
		o.facts[id] = f
	}
	if class == "metered" { // each arrival costs, a repeated one too
		if o.paid += price; o.paid > o.cap {
			o.over++
		}
	}
	switch class {
	case "keyed", "metered":
		if key := r.Header.Get("Idempotency-Key"); key != "" {
			if f.keys[key] {
				return http.StatusOK
			}
			f.keys[key] = true
		}
	case "conditional":
		if f.applied > 0 && r.Header.Get("If-None-Match") == "*" {
			return http.StatusPreconditionFailed
		}
	}
	f.applied++
	return http.StatusOK
}

// arm makes the oracle hold the next change.
func (o *oracle) arm(yes bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.armed = yes
	select {
	case <-o.held:
	default:
	}
}

func (o *oracle) holding() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.holds
}

// happened is the truth about an id.
func (o *oracle) happened(id string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f := o.facts[id]; f != nil {
		return f.applied
	}
	return 0
}

func (o *oracle) setCap(micro int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cap = max(o.cap, micro)
}

func (o *oracle) spent() (paid int64, over int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.paid, o.over
}

// idOf takes the id out of a resource that the journal names.
func idOf(resource string) string {
	u, err := url.Parse(resource)
	if err != nil {
		return ""
	}
	_, id, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	return id
}

func dollars(micro int64) string { return fmt.Sprintf("%d.%06d", micro/1_000_000, micro%1_000_000) }
