// Command torture kills monroed and its workers while many runs send, and holds what
// arrived to what was approved, paid and written down.
//
//	torture -kills 200 -store postgres
//
// The other side is in this process, outside the daemon: it does what its classes
// promise, loses answers, and holds requests so that many kills fall between an
// attempt and its result. A person answers every question, truthfully. In the end
// every run has ended, and each figure but the counts is 0. Anything else is status 1.
//
// It knows the programs, the API and, for the epoch of a lease, the database. It must
// not know the daemon's inside, nor be linked into a program that ships.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

type options struct {
	kills          int
	store, bin     string
	seed           uint64
	sabotage       string
	verbose        bool
	stdout, stderr io.Writer
}

func main() {
	o := options{stdout: os.Stdout, stderr: os.Stderr}
	flag.IntVar(&o.kills, "kills", 20, "how often the daemon or a worker is killed")
	flag.StringVar(&o.store, "store", "sqlite", "sqlite or postgres")
	flag.StringVar(&o.bin, "bin", "bin", "folder with monroe, monroed, monroe-worker and guests/sender.wasm")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of every choice") //nolint:gosec // any number will do
	flag.StringVar(&o.sabotage, "sabotage", "", "break the daemon first: "+strings.Join(sabotages(), ", "))
	flag.BoolVar(&o.verbose, "v", false, "print what the daemons say")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	green, err := o.run(ctx)
	if err != nil {
		fmt.Fprintln(o.stderr, "torture:", err)
	}
	if err != nil || !green {
		os.Exit(1) //nolint:gocritic // everything that was started is ended by now
	}
}

// run reports whether nothing was lost, sent twice, unapproved or overspent.
func (o options) run(ctx context.Context) (green bool, err error) {
	begin := time.Now()
	fmt.Fprintf(o.stderr, "torture: seed %d, store %s\n", o.seed, o.store)
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return false, err
	}
	if o.sabotage != "" {
		dir, err := build(ctx, o.sabotage, o.bin)
		if err != nil {
			return false, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		o.bin = dir
	}
	other, err := newOracle(o.seed)
	if err != nil {
		return false, err
	}
	defer other.srv.Close() //nolint:errcheck // the program ends
	late, err := newLateListener(other)
	if err != nil {
		return false, err
	}
	defer late.close()
	said := io.Discard
	if o.verbose {
		said = o.stderr
	}
	h, err := openHouse(ctx, o.bin, o.store, operator(other.base, late.base), said)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	maildir = filepath.Join(h.dir(), "Maildir")
	t := &torture{
		options: o, ctx: ctx, h: h, o: other, late: late, rng: rand.New(rand.NewPCG(o.seed, 2)),
		l: &load{
			ctx: ctx, o: other, rng: rand.New(rand.NewPCG(o.seed, 3)), grants: grantLines(), cap: capStep * price,
			open: map[host.RunID]*job{}, yes: map[string]int{}, no: map[string]bool{}, noes: map[string]int{},
		},
	}
	other.setCap(t.l.cap)
	defer t.stop()
	if err := t.begin(); err != nil {
		return false, err
	}
	if err := t.phases(); err != nil {
		return false, err
	}
	if t.kills > 0 {
		if err := t.kill(); err != nil {
			return false, err
		}
	}
	green, err = t.verdict()
	fmt.Fprintf(o.stderr, "torture: %s\n", time.Since(begin).Round(time.Second))
	return green, err
}

// operator opens the oracle for one operation of each class.
func operator(base, late string) string {
	const hour = ", window: 1h"
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nowner: {name: Ann, email: ann@localhost}\nworkers: 8\nwaits: {wakes_per_second: 1000}\nhttp:\n  private: [%q, %q]\n  endpoints:\n",
		strings.TrimPrefix(base, "http://"), strings.TrimPrefix(late, "http://"))
	for name, more := range map[string]string{
		"keyed": "effect: write, replay: keyed" + hour, "conditional": "method: PUT, effect: write, replay: conditional", "blind": "effect: send",
		"metered": "effect: metered, replay: keyed" + hour + ", price_usd: \"" + dollars(price) + "\"", "late": "effect: send",
	} {
		to, timeout := base, "2s"
		if name == "late" {
			to, timeout = late, "3s" // in which the daemon has to be paused
		}
		fmt.Fprintf(&b, "    - {name: %s, url: \"%s/**\", timeout: %s, %s}\n", name, to, timeout, more)
	}
	return b.String()
}

// torture is one go.
type torture struct {
	options
	ctx  context.Context
	h    *house
	d    *daemon
	o    *oracle
	late *lateListener
	l    *load
	rng  *rand.Rand

	killed, inDoubt, workers int

	stale int // daemons that went on without a lease
}

// begin starts the first daemon and gives it the guest.
func (t *torture) begin() error {
	if err := t.up(); err != nil {
		return err
	}
	module, err := os.ReadFile(filepath.Join(t.bin, "guests", "sender.wasm"))
	if err != nil {
		return err
	}
	if _, err := t.d.PushSkill(t.ctx, module); err != nil {
		return err
	}
	_, err = t.d.Apply(t.ctx, api.ApplyInput{Config: t.l.config()})
	return err
}

func (t *torture) up() (err error) {
	// As a supervisor does: a process that the dead daemon was just forking holds its
	// lock for another moment.
	for end := time.Now().Add(time.Minute); ; {
		if t.d, err = t.h.start(t.ctx); err == nil {
			break
		}
		if time.Now().After(end) || !strings.Contains(err.Error(), "another daemon holds this workspace") {
			return err
		}
	}
	t.l.serve(t.d.Client)
	return nil
}

// stop ends what is left.
func (t *torture) stop() {
	if t.d != nil {
		t.d.kill()
	}
}

// pause waits, or fails when the program is interrupted.
func (t *torture) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// kill kills as often as was asked for while the load goes on, and then lets every run
// come to its end.
func (t *torture) kill() error {
	t.l.want(true)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for t.ctx.Err() == nil && !t.l.work() {
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for t.killed < t.kills {
		if err := t.pause(time.Duration(50+t.rng.IntN(450)) * time.Millisecond); err != nil {
			break
		}
		if !t.one() {
			continue
		}
		t.killed++
		if t.killed%20 == 0 {
			fmt.Fprintf(t.stderr, "torture: %d kills, %d in doubt, %d of workers\n", t.killed, t.inDoubt, t.workers)
		}
		if t.d == nil {
			if err := t.up(); err != nil {
				return err
			}
		}
	}
	for enough := t.kills*6/7 + openRuns; ; {
		if t.l.begun() >= enough {
			break
		}
		if err := t.pause(50 * time.Millisecond); err != nil {
			break
		}
	}
	t.l.want(false)
	<-over
	return t.ctx.Err()
}

// one kills a worker or the daemon. It reports whether it did.
func (t *torture) one() bool {
	dice := t.rng.Float64()
	if t.inDoubt*3 < t.killed { // a good share has to fall between an attempt and its result
		dice = 0.5
	}
	if dice < 0.25 {
		if t.d.killWorker(t.rng.IntN) {
			t.workers++
			return true
		}
		return false
	}
	if dice < 0.7 {
		t.o.arm(true)
		select {
		case <-t.o.held:
		case <-time.After(2 * time.Second):
		case <-t.ctx.Done():
		}
		t.o.arm(false)
	}
	t.l.serve(nil)
	if t.o.holding() > 0 {
		t.inDoubt++
	}
	t.d.kill()
	t.d = nil
	return true
}

// verdict compares, verifies and prints.
func (t *torture) verdict() (green bool, err error) {
	f := t.l.count()
	audit := "verified"
	out, err := t.h.monroe(t.ctx, "audit", "verify")
	doubt := regexp.MustCompile(`, (\d+) in doubt,`).FindStringSubmatch(out)
	if err != nil || !strings.Contains(out, "audit: verified") || doubt == nil || doubt[1] != "0" && t.l.cancelled() == 0 {
		t.l.problem("audit: %v %s", err, out)
		audit = "FAILED"
	}
	if t.stale > 0 { // a log with two writers proves nothing
		audit = "FAILED"
	}
	paid, _ := t.o.spent()
	s, err := t.d.Spend(t.ctx)
	switch {
	case err != nil:
		return false, err
	case s.Reserved != 0 || s.Settled < paid || s.Settled > t.l.cap:
		t.l.problem("spend: %d settled, %d reserved, %d were done, the cap is %d", s.Settled, s.Reserved, paid, t.l.cap)
		f.overspent++
	}
	if t.sabotage == "" {
		if f.sends < 5*t.kills || t.inDoubt < t.kills/4 || t.kills > 0 && t.l.capped == 0 {
			t.l.problem("it was too easy: %d sends, %d kills in doubt, the cap was reached %d times", f.sends, t.inDoubt, t.l.capped)
		}
		if t.kills >= 100 && (t.workers == 0 || t.l.unknown == 0) { // with fewer, chance may leave them out
			t.l.problem("it was too easy: %d workers were killed, %d outcomes were unknown", t.workers, t.l.unknown)
		}
	}
	for _, p := range t.l.problems {
		fmt.Fprintln(t.stderr, "torture: PROBLEM:", p)
	}
	fmt.Fprintf(t.stdout, "torture: kills=%d runs=%d sends=%d in_doubt_kills=%d lost=%d duplicated=%d unapproved=%d overspent=%d unknown=%d audit=%s\n",
		t.killed, f.runs, f.sends, t.inDoubt, f.lost, f.duplicated, f.unapproved, f.overspent, t.l.unknown, audit)
	return len(t.l.problems) == 0 && f.lost+f.duplicated+f.unapproved+f.overspent == 0, nil
}
