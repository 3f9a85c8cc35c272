package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

const (
	starters = 6   // who start runs and wait until each is suspended
	wakes    = 100 // of the suspended runs, with a spare worker and as many without
	week     = `{"args":{"ms":604800000},"op":"time.sleep","v":1}`
)

// suspended lets a real daemon suspend runs that have really run: each had a worker
// and made its calls. Then it wakes some of them, one at a time, on a clock that goes on
// from one to the next.
func (b *bench) suspended(ctx context.Context) error {
	home := filepath.Join(b.dir, "suspended")
	dozing, err := b.suspend(ctx, home)
	if err != nil {
		return err
	}
	begin := time.Now()
	r, err := b.open(ctx, filepath.Join(home, string(rigName)), 0, 4)
	if err != nil {
		return err
	}
	half := len(dozing) / 2
	err = b.report("restart_with_suspended", time.Millisecond, []time.Duration{time.Since(begin)}, peer{}, 0, false)
	if err == nil {
		err = b.wake(ctx, r, "wake_cold", dozing[:half], 0)
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if r, err = b.open(ctx, filepath.Join(home, string(rigName)), 2, 4); err != nil {
		return err
	}
	// A spare is there once a run of the module had a worker: that one is not counted.
	if _, _, err = b.wakeOne(ctx, r, dozing[half]); err == nil {
		err = b.wake(ctx, r, "wake_warm", dozing[half+1:], 50)
	}
	return errors.Join(err, r.Close())
}

// suspend starts a daemon, suspends runs and ends it. Most are of a guest of a few hundred
// bytes and sleep for a week. Those that it returns lie evenly among them, are of a guest
// in Go, and are due after a day, ten seconds apart.
func (b *bench) suspend(ctx context.Context, home string) (dozing []host.RunID, err error) {
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, err
	}
	// No spare workers, so that every process that is left is one too many.
	if err := os.WriteFile(filepath.Join(home, "operator.yaml"), []byte("version: 1\nspare_workers: 0\n"), 0o600); err != nil {
		return nil, err
	}
	d := exec.CommandContext(ctx, b.monroed, "--home", home, "--workspace", string(rigName))
	var said bytes.Buffer
	d.Stderr = &said // a line for each listener, unless something is wrong
	d.Cancel = func() error { return d.Process.Signal(syscall.SIGTERM) }
	if err := d.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = d.Process.Signal(syscall.SIGTERM) // it may have ended already; Wait tells
		if ended := d.Wait(); ended != nil || err != nil {
			err = errors.Join(err, ended, errors.New(said.String()))
		}
	}()
	c, err := answering(ctx, filepath.Join(home, string(rigName)))
	if err != nil {
		return nil, err
	}
	before, err := memory(d.Process.Pid)
	if err != nil {
		return nil, err
	}
	sleeper, err := c.PushSkill(ctx, asks("sleeper", `,"ops":["time.sleep"]`, request{describe, 2}, request{week, 1}))
	if err != nil {
		return nil, err
	}
	dozer, err := c.PushSkill(ctx, b.dozer)
	if err != nil {
		return nil, err
	}
	dozing = make([]host.RunID, min(2*wakes+1, b.runs))
	every := b.runs / len(dozing)
	begin := time.Now()
	all, within := errgroup.WithContext(ctx)
	for i := range starters {
		all.Go(func() error {
			for n := i; n < b.runs; n += starters {
				in := api.StartInput{Skill: sleeper.Name, Input: []byte("{}")}
				k := n / every
				doze := n%every == 0 && k < len(dozing)
				if doze {
					due := 24*time.Hour + time.Duration(k)*10*time.Second
					in = api.StartInput{Skill: dozer.Name, Input: fmt.Appendf(nil, `{"calls":10,"sleeps":2,"ms":%d}`, due.Milliseconds())}
				}
				id, err := untilSuspended(within, c, in)
				if err != nil {
					return err
				}
				if doze {
					dozing[k] = id
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	left, err := children(d.Process.Pid)
	for range 50 { // the last workers are on their way out
		if err != nil || left == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
		left, err = children(d.Process.Pid)
	}
	if err != nil {
		return nil, err
	}
	after, err := memory(d.Process.Pid)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("suspended_%d", b.runs)
	return dozing, errors.Join(
		b.number(name+"_rss_growth", "MiB", float64(after-before)/1024, 64),
		b.number(name+"_workers", "processes", float64(left), 0),
		b.number(name+"_took", "s", took.Seconds(), -1))
}

func untilSuspended(ctx context.Context, c *client.Client, in api.StartInput) (host.RunID, error) {
	run, err := c.StartRun(ctx, in)
	if err != nil {
		return "", err
	}
	for run.State != host.StateWaiting {
		if run.State.Ended() {
			return "", fmt.Errorf("the run %s: %s", run.State, run.Failure)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", ctx.Err()
		}
		v, err := c.Run(ctx, run.ID)
		if err != nil {
			return "", err
		}
		run = v.Run
	}
	return run.ID, nil
}

// answering waits for a daemon that was started.
func answering(ctx context.Context, dir string) (*client.Client, error) {
	var last error
	for range 100 {
		c, err := client.Dial(dir, "")
		if err == nil {
			if _, err = c.Workspace(ctx); err == nil {
				return c, nil
			}
		}
		last = err
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, last
}

// memory is the resident set of a process in KiB.
func memory(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("no VmRSS")
	}
	return strconv.Atoi(fields[0])
}

// children counts the processes of a parent.
func children(parent int) (n int, err error) {
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range list {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may hold spaces; the state and the parent come after it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) && fields[0] != "Z" {
			n++
		}
	}
	return n, err
}

// wake is from the sweep that finds a run due to the first live call of its guest, and
// its halves: until the run's worker gets it, and from then on.
func (b *bench) wake(ctx context.Context, r *rig, name string, runs []host.RunID, most float64) error {
	var took, claim, guest []time.Duration
	for _, id := range runs {
		host, guests, err := b.wakeOne(ctx, r, id)
		if err != nil {
			return err
		}
		took, claim, guest = append(took, host+guests), append(claim, host), append(guest, guests)
	}
	return errors.Join(
		b.report(name, time.Millisecond, took, peer{}, most, false),
		b.report(name+"_host", time.Millisecond, claim, peer{}, 0, false),
		b.report(name+"_guest", time.Millisecond, guest, peer{}, 0, false),
	)
}

// wakeOne goes on to when a run is due, and waits until it sleeps again.
func (b *bench) wakeOne(ctx context.Context, r *rig, id host.RunID) (claim, guest time.Duration, err error) {
	run, err := r.Run(ctx, r.owner, id)
	if err != nil {
		return 0, 0, err
	}
	r.ahead.Store(int64(time.Until(run.WakeAt) + time.Second))
	begin := time.Now()
	if err := r.Sweep(ctx); err != nil {
		return 0, 0, err
	}
	begun, live, err := r.clock.woken(ctx, begin)
	if err != nil {
		return 0, 0, err
	}
	err = r.parked(ctx, id)
	time.Sleep(150 * time.Millisecond) // its worker has ended, and a spare has started where one is kept
	return begun.Sub(begin), live.Sub(begun), err
}

// parked waits until a run waits, or has ended.
func (r *rig) parked(ctx context.Context, id host.RunID) error {
	time.Sleep(5 * time.Millisecond) // it is on its way, or will not be
	for {
		v, err := r.Run(ctx, r.owner, id)
		if err != nil || v.State == host.StateWaiting || v.State == host.StateSucceeded {
			return err
		}
		if v.State.Ended() {
			return fmt.Errorf("the run %s: %s", v.State, v.Failure)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
