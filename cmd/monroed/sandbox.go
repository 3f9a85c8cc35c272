package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/sandbox/doctor"
	"github.com/getmonroe/monroe/sandbox/ebpf"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// confinement says for people what was found at the start. The worker itself checks
// L1 and L2 and refuses to start without them.
func confinement(insecure bool, w spawn.Walls, stop *backstop) string {
	programs := ""
	if stop != nil {
		programs = " + L4 kernel programs + L5 egress leases (" + string(stop.b.Mode) + ")"
	}
	switch {
	case insecure:
		return "insecure-dev: whatever this machine has, perhaps nothing"
	case w.Namespaces:
		return "L0 wasm + L1 process + L2 seccomp and landlock + L3 namespaces" + programs
	}
	return "L0 wasm + L1 process + L2 seccomp and landlock" + programs
}

// examiner tries the walls. A look takes seconds and a few processes, so that one
// serves everybody who asks meanwhile, and for a while after.
type examiner struct {
	subject doctor.Subject
	stop    *backstop

	mu   sync.Mutex
	at   time.Time
	last api.Walls
}

const lookAgain = 10 * time.Second

func (e *examiner) walls(ctx context.Context) (api.Walls, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.at) < lookAgain {
		return e.last, nil
	}
	subject := e.subject
	subject.NoBackstop = os.Getenv(ebpf.WhyNot)
	if e.stop != nil {
		subject.Backstop = e.stop.b
		defer e.stop.ledger.Looking()()
	}
	r, err := doctor.Examine(ctx, subject)
	if err != nil {
		return api.Walls{}, err
	}
	e.last, e.at = api.Walls{
		Level: r.Level, Layers: walls(r.Layers), Parts: walls(r.Parts), Full: api.Wall(r.Full), Findings: r.Findings,
		Host: api.Machine{
			Kernel: r.Host.Kernel, Arch: r.Host.Arch, UID: r.Host.UID, WorkerUID: r.Host.WorkerUID, Spawner: r.Host.Spawner, Capabilities: r.Host.Capabilities,
			Landlock: r.Host.Landlock, Namespaces: r.Host.Namespaces, Groups: r.Host.Groups, GroupsWhy: r.Host.GroupsWhy,
		},
	}, time.Now()
	return e.last, nil
}

func walls(layers []doctor.Layer) (list []api.Wall) {
	for _, l := range layers {
		list = append(list, api.Wall(l))
	}
	return list
}

// compiler lets a confined child compile an upload.
type compiler struct{ s *spawn.Spawner }

func (c compiler) Compile(ctx context.Context, upload []byte, dir string) (module.Compiled, error) {
	out, err := c.s.Compile(ctx, upload, dir)
	if f := new(spawn.FaultError); errors.As(err, &f) {
		return module.Compiled{}, refusal(f)
	}
	if e := new(spawn.EscapeError); errors.As(err, &e) {
		return module.Compiled{}, &module.EscapeError{Tried: e.Error()}
	}
	if u := new(spawn.UnconfinedError); errors.As(err, &u) {
		p := unconfined(u)
		p.Remedy += "; nothing was stored"
		return module.Compiled{}, p
	}
	if err != nil {
		return module.Compiled{}, err
	}
	return module.Compiled{Engine: out.Engine, Manifest: out.Manifest}, nil
}

// unconfined tells whoever wanted a worker that none starts here.
func unconfined(u *spawn.UnconfinedError) *host.Problem {
	return &host.Problem{
		Kind: host.ErrOverload, Code: "UNCONFINED", Detail: "no worker starts, as a wall of the minimum is missing: " + u.Why,
		Remedy: "give this host the kernel that docs/confinement.md asks for, or develop without the wall by --insecure-dev",
	}
}

// refusal tells an author what is wrong with an upload.
func refusal(f *spawn.FaultError) error {
	p := &host.Problem{Kind: host.ErrInvalid, Code: "MODULE", Detail: spawn.Escape(f.Message), Remedy: "correct the module and push it again; nothing was stored"}
	switch f.Code {
	case wire.FaultTooLarge:
		p.Kind, p.Code = host.ErrTooLarge, "MODULE_TOO_LARGE"
	case wire.FaultModule:
	case wire.FaultTrap, wire.FaultMemory, wire.FaultExit, wire.FaultInit, wire.FaultLimit, wire.FaultInternal:
		p.Code = "MODULE_" + string(f.Code)
	}
	return p
}

// workers starts run workers, by whatever forks here.
type workers struct{ s *spawn.Spawner }

func (w workers) Spawn(ctx context.Context, c runner.Code) (runner.Worker, error) {
	dir, err := c.Dir(ctx)
	if err != nil {
		return nil, err
	}
	p, err := w.s.Spawn(ctx, spawn.ModeRun, dir, c.CPU)
	if e := new(spawn.EscapeError); errors.As(err, &e) {
		return nil, &runner.EscapeError{Tried: calls(e.Tried)}
	}
	if u := new(spawn.UnconfinedError); errors.As(err, &u) {
		return nil, unconfined(u)
	}
	if err != nil {
		return nil, err
	}
	return &worker{p}, nil
}

// spareLife is how long a worker waits for the next run of its module.
const spareLife = 10 * time.Minute

type worker struct{ p *spawn.Process }

func (w *worker) Read(b []byte) (int, error)  { return w.p.Conn.Read(b) }
func (w *worker) Write(b []byte) (int, error) { return w.p.Conn.Write(b) }
func (w *worker) Ready() wire.Ready           { return w.p.Ready }
func (w *worker) Done() <-chan struct{}       { return w.p.Done() }

func (w *worker) Violations() []string { return calls(w.p.Violations()) }

func calls(tried []spawn.Violation) (list []string) {
	for _, v := range tried {
		list = append(list, v.String())
	}
	return list
}

// Close ends the process. That it was killed is no news, as this kills it; a CPU
// limit or a crash is.
func (w *worker) Close() error {
	_ = w.p.Close() // closing the socket of a dead process
	err := w.p.Wait()
	if err == nil || errors.Is(err, spawn.ErrKilled) {
		return nil
	}
	if errors.Is(err, spawn.ErrCPULimit) || errors.Is(err, spawn.ErrWallLimit) || errors.Is(err, spawn.ErrMemoryLimit) {
		err = fmt.Errorf("%w: %w", runner.ErrLimit, err)
	}
	if said := w.p.Stderr(); said != "" {
		err = fmt.Errorf("%w; it printed: %s", err, said)
	}
	return err
}
