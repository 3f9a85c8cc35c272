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
	starters = 6 // who start runs and wait until each is suspended
	wakes    = 100
	day      = `{"args":{"ms":86400000},"op":"time.sleep","v":1}`
)

// suspended lets a real daemon suspend runs that have really run: each had a worker
// and made its calls. Then it wakes others that lie among them.
func (b *bench) suspended(ctx context.Context) error {
	home := filepath.Join(b.dir, "suspended")
	if err := b.suspend(ctx, home); err != nil {
		return err
	}
	begin := time.Now()
	r, err := b.open(ctx, filepath.Join(home, string(rigName)), 0, 4)
	if err != nil {
		return err
	}
	err = b.report("restart_with_suspended", time.Millisecond, []time.Duration{time.Since(begin)}, peer{}, 0, false)
	if err == nil {
		err = b.wake(ctx, r, "wake_cold", 0)
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if r, err = b.open(ctx, filepath.Join(home, string(rigName)), 2, 4); err != nil {
		return err
	}
	return errors.Join(b.wake(ctx, r, "wake_warm", 50), r.Close())
}

// suspend starts a daemon, suspends runs and ends it.
func (b *bench) suspend(ctx context.Context, home string) (err error) {
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	// No spare workers, so that every process that is left is one too many.
	if err := os.WriteFile(filepath.Join(home, "operator.yaml"), []byte("version: 1\nspare_workers: 0\n"), 0o600); err != nil {
		return err
	}
	d := exec.CommandContext(ctx, b.monroed, "--home", home, "--workspace", string(rigName))
	var said bytes.Buffer
	d.Stderr = &said // a line for each listener, unless something is wrong
	d.Cancel = func() error { return d.Process.Signal(syscall.SIGTERM) }
	if err := d.Start(); err != nil {
		return err
	}
	defer func() {
		_ = d.Process.Signal(syscall.SIGTERM) // it may have ended already; Wait tells
		if ended := d.Wait(); ended != nil || err != nil {
			err = errors.Join(err, ended, errors.New(said.String()))
		}
	}()
	c, err := answering(ctx, filepath.Join(home, string(rigName)))
	if err != nil {
		return err
	}
	before, err := memory(d.Process.Pid)
	if err != nil {
		return err
	}
	skill, err := c.PushSkill(ctx, asks("sleeper", `,"ops":["time.sleep"]`, request{describe, 2}, request{day, 1}))
	if err != nil {
		return err
	}
	begin := time.Now()
	all, within := errgroup.WithContext(ctx)
	for i := range starters {
		all.Go(func() error {
			for n := i; n < b.runs; n += starters {
				if err := untilSuspended(within, c, skill.Name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := memory(d.Process.Pid)
	if err != nil {
		return err
	}
	left, err := children(d.Process.Pid)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("suspended_%d", b.runs)
	return errors.Join(
		b.number(name+"_rss_growth", "MiB", float64(after-before)/1024, 64),
		b.number(name+"_workers", "processes", float64(left), 0),
		b.number(name+"_took", "s", took.Seconds(), -1))
}

func untilSuspended(ctx context.Context, c *client.Client, skill string) error {
	run, err := c.StartRun(ctx, api.StartInput{Skill: skill, Input: []byte("{}")})
	if err != nil {
		return err
	}
	for run.State != host.StateWaiting {
		if run.State.Ended() {
			return fmt.Errorf("the run %s: %s", run.State, run.Failure)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		v, err := c.Run(ctx, run.ID)
		if err != nil {
			return err
		}
		run = v.Run
	}
	return nil
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
func (b *bench) wake(ctx context.Context, r *rig, name string, most float64) error {
	skill, err := r.push(ctx, b.dozer, false)
	if err != nil {
		return err
	}
	r.clock.reset()
	run, err := r.StartRun(ctx, r.owner, api.StartInput{Skill: skill, Input: fmt.Appendf(nil, `{"calls":10,"sleeps":%d}`, wakes)})
	if err != nil {
		return err
	}
	var took, claim, guest []time.Duration
	for range wakes {
		if err := r.parked(ctx, run.ID); err != nil {
			return err
		}
		time.Sleep(150 * time.Millisecond) // its worker has ended, and a spare has started where one is kept
		begin := time.Now()
		if err := r.Sweep(ctx); err != nil {
			return err
		}
		begun, live, err := r.clock.woken(ctx, begin)
		if err != nil {
			return err
		}
		took = append(took, live.Sub(begin))
		claim = append(claim, begun.Sub(begin))
		guest = append(guest, live.Sub(begun))
	}
	return errors.Join(
		b.report(name, time.Millisecond, took, peer{}, most, false),
		b.report(name+"_host", time.Millisecond, claim, peer{}, 0, false),
		b.report(name+"_guest", time.Millisecond, guest, peer{}, 0, false),
	)
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
