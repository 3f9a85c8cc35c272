package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

type upCmd struct {
	Daemon      string `help:"The monroed program; empty: beside this one." type:"path"`
	Listen      string `help:"Loopback address for the API besides the socket."`
	InsecureDev bool   `help:"Run guests although the confinement is incomplete. Never with modules of others."`
	Egress      string `help:"Kernel programs behind the sandbox: enforce denies what has no lease, audit reports it, off leaves them out; auto enforces where this machine and user can." enum:"auto,enforce,audit,off" default:"auto"`
	User        string `help:"As root: the daemon's user, name or number; empty: the owner of --home."`
	WorkerUID   uint32 `help:"As root: number of the user and group of the workers; give them one that owns nothing." name:"worker-uid" default:"65534"`
}

// Run keeps one daemon alive. It carries no data: it starts a process and starts it
// again when that ends. Where it may, it stands kernel programs around the daemon and
// the workers, and forks the workers for a daemon that it leaves no capability.
func (u upCmd) Run(e *env) (err error) {
	g, err := u.guard(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		d, err := u.start(e, g)
		if err != nil {
			return err
		}
		began := time.Now()
		err = d.Wait()
		g.Ended()
		if e.ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		fmt.Fprintf(e.err, "monroe: the daemon ended (%v); starting it again in %v\n", err, pause)
		select {
		case <-time.After(pause):
		case <-e.ctx.Done():
			return nil
		}
	}
}

// program is the daemon's.
func (u upCmd) program() (string, error) {
	if u.Daemon != "" {
		return u.Daemon, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(self), "monroed"), nil
}

// start starts the daemon. It ends with this process's context, by a signal that
// lets it put everything down.
func (u upCmd) start(e *env, g *guard) (*exec.Cmd, error) {
	path, err := u.program()
	if err != nil {
		return nil, err
	}
	args := []string{"--home", e.home, "--workspace", filepath.Base(e.dir)}
	if u.Listen != "" {
		args = append(args, "--listen", u.Listen)
	}
	if u.InsecureDev {
		args = append(args, "--insecure-dev")
	}
	cmd := exec.CommandContext(e.ctx, path, args...)
	cmd.Stderr = e.err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := g.Start(cmd); err != nil {
		return nil, fmt.Errorf("the daemon did not start: %w", err)
	}
	return cmd, nil
}

// ready waits until the daemon answers.
func (e *env) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := e.client()
		if err == nil {
			if _, err = c.Workspace(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(errors.New("the daemon does not answer"), err)
		}
	}
}
