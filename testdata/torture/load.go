package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

const (
	openRuns = 10          // at the same time
	capStep  = 8           // metered calls that each raise of the cap makes room for
	settled  = time.Second // after a kill, until nothing of the dead daemon is under way
)

// step is one call of a run, and what has to come of it.
type step struct {
	id, class, operation string
	args                 any
	reject               bool
}

// job is one run.
type job struct {
	steps     []step
	run       host.RunID
	cancelled bool // this program ended it
	silent    bool // nobody answers its questions yet
	view      *api.RunView
}

// load starts runs, answers their questions, and keeps what came of them.
type load struct {
	ctx    context.Context
	o      *oracle
	rng    *rand.Rand
	grants string

	mu       sync.Mutex
	now      *client.Client // of the daemon that serves, nil while none does
	lastKill time.Time
	more     bool // new runs are wanted
	started  int  // runs that were started

	jobs     []*job
	open     map[host.RunID]*job
	yes      map[string]int // approvals given, by id
	no       map[string]bool
	noes     map[string]int // in a row, by operation
	cap      int64
	capped   int // how often the cap was reached
	unknown  int // outcomes that a person was asked about
	problems []string
}

func (l *load) problem(format string, args ...any) {
	l.problems = append(l.problems, fmt.Sprintf(format, args...))
}

// plan makes the next run: operations of every replay class in any order.
func (l *load) plan() *job {
	n := len(l.jobs)
	classes := []string{"pure", "keyed", "keyed", "conditional", "blind", "blind", "probe", "metered"}
	l.rng.Shuffle(len(classes), func(i, j int) { classes[i], classes[j] = classes[j], classes[i] })
	j := &job{}
	reject := l.rng.Float64() < 0.1
	for i, class := range classes {
		s := step{id: fmt.Sprintf("r%05ds%d", n, i), class: class, operation: "http." + class}
		url := l.o.base + "/" + class + "/" + s.id
		switch class {
		case "pure":
			s.operation, s.args = "http.fetch", map[string]any{"url": url}
		case "probe":
			s.operation, s.args = "mail.send", map[string]any{"to": []string{"ann@localhost"}, "subject": s.id, "text": "torture"}
		case "conditional":
			s.args = map[string]any{"url": url, "body": `{}`, "if_none_match": "*"}
		case "blind":
			s.reject, reject = reject, false // the other blind one is approved, so that noes do not stick
			fallthrough
		default:
			s.args = map[string]any{"url": url, "body": `{}`}
		}
		j.steps = append(j.steps, s)
	}
	return j
}

func (j *job) input() json.RawMessage {
	type call struct {
		Operation string `json:"operation"`
		Args      any    `json:"args"`
	}
	var in struct {
		Steps []call `json:"steps"`
	}
	for _, s := range j.steps {
		in.Steps = append(in.Steps, call{s.operation, s.args})
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	return b
}

func (l *load) config() string {
	return fmt.Sprintf("version: 1\nworkspace: %s\ncap_usd: \"%s\"\nquestions_per_hour: 10000\n%s", workspace, dollars(l.cap), l.grants)
}

// serve tells which daemon is there.
func (l *load) serve(c *client.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = c
	if c == nil {
		l.lastKill = time.Now()
	}
}

// begun is how many runs were started.
func (l *load) begun() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

func (l *load) want(more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.more = more
}

// work does one round; done says that every run has ended and no more are wanted.
// Errors of the API are expected: its daemon may be dead.
func (l *load) work() (done bool) {
	l.mu.Lock()
	c, more, quiet := l.now, l.more, time.Since(l.lastKill) > settled
	l.mu.Unlock()
	if c == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	for more && len(l.open) < openRuns {
		if !l.begin(ctx, c) {
			return false
		}
	}
	pins, err := c.Pins(ctx)
	if err != nil {
		return false
	}
	live, broke := map[host.RunID]bool{}, 0
	for _, p := range pins {
		live[p.Run] = true
		switch {
		case p.Wait == host.WaitUnknown && quiet:
			l.resolve(ctx, c, p.Run)
		case p.Wait == host.WaitBudget:
			broke++
		}
	}
	for id, j := range l.open {
		if !live[id] {
			if v, err := c.Run(ctx, id); err == nil && v.State.Ended() {
				j.view = &v
				delete(l.open, id)
			}
		}
	}
	l.answer(ctx, c)
	if broke > 0 && broke == len(l.open) || broke >= 4 {
		l.outOfMoney(ctx, c, pins, broke, more)
	}
	return !more && len(l.open) == 0
}

// begin starts one run. If the answer is lost, the run is found again.
func (l *load) begin(ctx context.Context, c *client.Client) bool {
	var j *job
	if n := len(l.jobs); n > 0 && l.jobs[n-1].run == "" {
		j = l.jobs[n-1]
		list, err := c.Runs(ctx, 20)
		if err != nil {
			return false
		}
		known := map[host.RunID]bool{}
		for _, k := range l.jobs {
			known[k.run] = true
		}
		for _, r := range list {
			if !known[r.ID] {
				j.run = r.ID
				l.open[r.ID] = j
				return true
			}
		}
	} else {
		j = l.plan()
		l.jobs = append(l.jobs, j)
	}
	r, err := c.StartRun(ctx, api.StartInput{Skill: "sender", Input: j.input(), MaxUSD: "1"})
	if err != nil {
		return false
	}
	j.run = r.ID
	l.open[r.ID] = j
	l.mu.Lock()
	l.started = len(l.jobs)
	l.mu.Unlock()
	return true
}

// answer decides what is pending, with the owner's token.
func (l *load) answer(ctx context.Context, c *client.Client) {
	list, err := c.Approvals(ctx, host.ApprovalPending)
	if err != nil {
		return
	}
	for _, a := range list {
		j := l.open[a.Run]
		if j == nil || j.silent || int(a.Call) > len(j.steps) || a.Call == 0 {
			continue
		}
		s := j.steps[a.Call-1]
		word := api.Decision{Decision: api.Approve, Digest: a.Digest}
		if s.reject {
			if l.noes[s.operation] >= 2 {
				continue // a third no in a row would stick
			}
			word.Decision = api.Reject
			l.no[s.id] = true
		} else {
			l.yes[s.id]++ // before it is said: the answer to it may be lost
		}
		if _, err := c.Decide(ctx, a.ID, word); err != nil {
			if p := new(client.Problem); errors.As(err, &p) && p.Status != 409 {
				l.problem("approval %s: %v", a.ID, err)
			}
			continue // it is answered, or pending still and comes again
		}
		if s.reject {
			l.noes[s.operation]++
		} else {
			l.noes[s.operation] = 0
		}
	}
}

// resolve says truthfully what became of an attempt.
func (l *load) resolve(ctx context.Context, c *client.Client, id host.RunID) {
	j := l.open[id]
	v, err := c.Run(ctx, id)
	if j == nil || err != nil {
		return
	}
	for _, call := range v.Log {
		if call.Outcome != string(host.WaitUnknown) || call.Call == 0 || int(call.Call) > len(j.steps) {
			continue
		}
		s := j.steps[call.Call-1]
		word := host.DidNotHappen
		if l.done(s) > 0 {
			word = host.Happened
		}
		if _, err := c.Resolve(ctx, id, api.ResolveInput{Outcome: word, Call: call.Call}); err == nil {
			l.unknown++
		}
		return
	}
}

// done is how often a step was done, as the other side knows it.
func (l *load) done(s step) int {
	if s.class == "probe" {
		return l.mails()[s.id]
	}
	return l.o.happened(s.id)
}

var maildir string // of the workspace

var subject = regexp.MustCompile(`(?m)^Subject: (r\d+s\d+)\r?$`)

// mails counts the delivered ones by id.
func (l *load) mails() map[string]int {
	n := map[string]int{}
	for _, sub := range []string{"new", "cur"} {
		list, _ := filepath.Glob(filepath.Join(maildir, sub, "*"))
		for _, f := range list {
			if b, err := os.ReadFile(f); err == nil {
				if m := subject.FindSubmatch(b); m != nil {
					n[string(m[1])]++
				}
			}
		}
	}
	return n
}

// outOfMoney raises the cap, or cancels the last runs that wait for it.
func (l *load) outOfMoney(ctx context.Context, c *client.Client, pins []host.Pins, broke int, more bool) {
	l.capped++
	if !more && broke == len(l.open) && broke <= 2 {
		for _, p := range pins {
			if j := l.open[p.Run]; j != nil && p.Wait == host.WaitBudget {
				j.cancelled = true
				_ = c.CancelRun(ctx, p.Run) // again in the next round, if that failed
			}
		}
		return
	}
	steps := int64(capStep)
	if !more {
		steps = int64(max(broke-2, 1)) // the last ones find nothing
	}
	l.cap += steps * price
	l.o.setCap(l.cap)
	_, _ = c.Apply(ctx, api.ApplyInput{Config: l.config()}) // again in the next round, if that failed
}

// cancelled counts the runs that this program ended.
func (l *load) cancelled() (n int) {
	for _, j := range l.jobs {
		if j.cancelled {
			n++
		}
	}
	return n
}

// figures are what it came to.
type figures struct{ runs, sends, lost, duplicated, unapproved, overspent int }

// count compares what the other side did with what the journals say.
func (l *load) count() (f figures) {
	mails := l.mails()
	sent := func(s step) int {
		if s.class == "probe" {
			return mails[s.id]
		}
		return l.o.happened(s.id)
	}
	late := 0
	for _, j := range l.jobs {
		f.runs++
		if j.view == nil {
			l.problem("run %s did not end", j.run)
			f.lost++
			continue
		}
		if want := host.StateSucceeded; j.view.State != want && !(j.cancelled && j.view.State == host.StateCancelled) {
			l.problem("run %s %s: %s", j.run, j.view.State, j.view.Failure)
			f.lost++
		}
		log := map[uint32]host.CallView{}
		for _, v := range j.view.Log {
			log[v.Call] = v
		}
		var told struct {
			Results []struct {
				Effect abi.Outcome `json:"effect"`
			} `json:"results"`
		}
		if err := json.Unmarshal(j.view.Result, &told); err != nil && j.view.State == host.StateSucceeded {
			l.problem("run %s: result %s: %v", j.run, j.view.Result, err)
		}
		for i, s := range j.steps {
			if s.class == "pure" {
				continue
			}
			v, n := log[uint32(i)+1], sent(s)
			f.sends += n
			switch {
			case s.class == "metered" && i < len(told.Results) && told.Results[i].Effect == abi.OutcomeMay:
				// Nobody is asked about what only costs: the guest is told that nobody knows, and
				// all of it is booked.
			case (v.Outcome == string(abi.Timeout) || v.Outcome == string(abi.Upstream)) && n == 0 && i < len(told.Results) && told.Results[i].Effect == abi.OutcomeNone:
				late++ // a busy machine: the guest was told that nothing left, and nothing did
			case j.cancelled && v.Outcome == string(host.WaitUnknown):
				// A run that was ended between its attempt and the answer says that nobody knows.
			case v.Outcome == "ok" && n == 0:
				l.problem("%s: the journal says that it was sent, and it did not arrive", s.id)
				f.lost++
			case v.Outcome != "ok" && n > 0:
				l.problem("%s: it arrived, and the journal says %s", s.id, v.Outcome)
				f.lost++
			case v.Outcome != "ok" && !s.reject && !j.cancelled:
				l.problem("%s (%s): %q %s", s.id, s.class, v.Outcome, v.Reason)
				f.lost++
			}
			if n > 1 {
				l.problem("%s (%s) was done %d times", s.id, s.class, n)
				f.duplicated += n - 1
			}
			if n > 0 && s.class != "metered" && (l.no[s.id] || l.yes[s.id] == 0) {
				l.problem("%s was done without a yes", s.id)
				f.unapproved++
			}
		}
	}
	if late > f.sends/10 {
		l.problem("%d of %d calls did not leave in time", late, late+f.sends)
	}
	paid, over := l.o.spent()
	if over > 0 {
		l.problem("%d metered calls were done beyond the cap: %d of %d micro-dollars", over, paid, l.cap)
	}
	f.overspent = over
	return f
}

// grantLines are the grants of the guest, on the oracle and its other listener.
func grantLines() string {
	var b strings.Builder
	b.WriteString("grants:\n")
	for _, op := range []string{"fetch", "keyed", "conditional", "blind", "metered", "late"} {
		fmt.Fprintf(&b, "  - {skill: sender, operation: http.%s, resource: \"http:**\"}\n", op)
	}
	b.WriteString("  - {skill: sender, operation: mail.send, resource: \"mail:ann@localhost\"}\n")
	return b.String()
}
