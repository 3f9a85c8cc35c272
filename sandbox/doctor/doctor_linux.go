package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/canary"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

const (
	canaryMemory = 320 << 20 // bytes that a canary may make writable; the Go runtime maps a third of that
	bomb         = 384       // MiB that it then tries to touch
	patience     = 20 * time.Second
)

// Examine looks at every layer. It takes a few seconds, a few processes and, for a
// moment, 400 MiB.
func Examine(ctx context.Context, x Subject) (*Report, error) {
	t, err := aim(ctx, x.Program)
	if err != nil {
		return nil, err
	}
	r, err := examine(ctx, x, t)
	return r, errors.Join(err, t.Close())
}

func examine(ctx context.Context, subject Subject, t *targets) (*Report, error) {
	uid, b := subject.user(), subject.Backstop
	r := &Report{Findings: []string{}}
	runs := map[stage]*examined{}
	stages := []stage{bare, process, kernel, files, isolated, everything}
	if b != nil {
		stages = append(stages, fenced)
	}
	for _, s := range stages {
		e, err := look(ctx, s, subject, t)
		if err != nil {
			return nil, fmt.Errorf("the stage %s: %w", s, err)
		}
		runs[s] = e
	}
	privileged := uid != 0
	r.Host = host(subject, runs[everything].walls)
	var futile []canary.Attempt
	for _, x := range runs[bare].results {
		if x.denied {
			futile = append(futile, x.Attempt)
		}
	}
	wasm, err := admission(ctx, subject)
	if err != nil {
		return nil, err
	}
	own := layer("L1", "process", runs[process].results)
	own.Enforced, own.Why = true, ownWhy(r.Host)
	filter := layer("L2", "seccomp and landlock", runs[kernel].results)
	filter.Enforced, filter.Why = runs[kernel].why == "", runs[kernel].why
	spaces := layer("L3", "namespaces", runs[isolated].results)
	spaces.Enforced, spaces.Why = runs[isolated].walls.Namespaces, runs[isolated].walls.NamespacesWhy
	landlock := layer("L2.landlock", "landlock alone", runs[files].results)
	landlock.Enforced, landlock.Why = r.Host.Landlock > 0, fmt.Sprintf("version %d of its interface", r.Host.Landlock)
	if filter.Enforced {
		filter.Why = strings.Join(runs[kernel].enforced, ", ")
	}
	if spaces.Enforced {
		spaces.Why = "user, network, process, IPC, host name, mount"
	}
	alone := subject.NoBackstop
	if alone == "" {
		alone = "the daemon was not started by monroe up with CAP_BPF and CAP_NET_ADMIN on a machine with control groups of version 2"
	}
	fence, leased := Layer{ID: "L4", Name: "kernel programs, workers", Open: []string{}, Why: alone}, Layer{ID: "L5", Name: "kernel programs, egress leases", Open: []string{}, Why: alone}
	if b != nil {
		fence = layer("L4", fence.Name, runs[fenced].results)
		fence.Enforced, fence.Why = runs[fenced].walls.Unified != "", "no socket of IP, no connection, no packet in the workers' control group"
		if !fence.Enforced {
			fence.Why = "no control group of version 2: " + strings.Join(runs[fenced].walls.GroupsWhy, "; ")
		}
		if leased, err = leases(ctx, b, leased); err != nil {
			return nil, err
		}
	}
	for s, l := range map[stage]*Layer{process: &own, kernel: &filter, files: &landlock, isolated: &spaces, fenced: &fence} {
		if !l.Enforced {
			continue
		}
		f := judge(s, privileged, r.Host.Groups, futile, runs[s].results)
		if len(f) > 0 {
			l.Enforced, l.Why = false, strings.Join(f, "; ")
			r.Findings = append(r.Findings, f...)
		}
	}
	remains(&fence, level([]Layer{wasm, own, filter, spaces})+" around each worker")
	remains(&leased, "every connection of the daemon is made by one dialer, which checks the address; nothing checks the dialer")
	r.Layers, r.Parts = []Layer{wasm, own, filter, spaces, fence, leased}, []Layer{landlock}
	r.Full = layer("full", "all layers together", runs[everything].results)
	r.Full.Enforced = r.Full.Denied == r.Full.Attempts
	r.Findings = append(r.Findings, judge(everything, privileged, r.Host.Groups, futile, runs[everything].results)...)
	slices.Sort(r.Findings)
	r.Level = level(r.Layers)
	return r, nil
}

// remains says for a layer that does not stand what still does its work.
func remains(l *Layer, what string) {
	if !l.Enforced {
		l.Why += "; what remains: " + what
	}
}

func ownWhy(h Host) string {
	parts := []string{"own process, clean descriptors, limits, ends with its parent"}
	if h.WorkerUID != h.UID {
		parts = append(parts, fmt.Sprintf("user %d", h.WorkerUID))
	} else {
		parts = append(parts, "the daemon's user: only root can give it another")
	}
	if len(h.Groups) > 0 {
		parts = append(parts, "control group for "+strings.Join(h.Groups, ", "))
	} else {
		parts = append(parts, "no control group: memory is watched every 100 ms")
	}
	return strings.Join(parts, "; ")
}

// targets are what the canaries are sent after: all of the host's own.
type targets struct {
	dir               string
	tcp               net.Listener
	udp               net.PacketConn
	abstract, path    net.Listener
	secret, directory string
	spawner           *spawn.Spawner
	decoy             *spawn.Process // a process of this user that may be looked into, and of this process's own
	touched           chan struct{}  // one for each connection that came
}

func aim(ctx context.Context, program string) (t *targets, err error) {
	t = &targets{touched: make(chan struct{}, 64)}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if t.dir, err = os.MkdirTemp("", "monroe-doctor-"); err != nil {
		return nil, err
	}
	t.secret, t.directory = filepath.Join(t.dir, "secret"), filepath.Join(t.dir, "module")
	if err := errors.Join(os.WriteFile(t.secret, []byte("secret"), 0o600), os.Mkdir(t.directory, 0o755), os.Chmod(t.directory, 0o755)); err != nil { // whatever the mask: canaries of another user enter it
		return nil, err
	}
	lc := net.ListenConfig{}
	if t.tcp, err = lc.Listen(ctx, "tcp4", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if t.udp, err = lc.ListenPacket(ctx, "udp4", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if t.abstract, err = lc.Listen(ctx, "unix", "@monroe-doctor-"+strconv.Itoa(os.Getpid())+"-"+filepath.Base(t.dir)); err != nil {
		return nil, err
	}
	if t.path, err = lc.Listen(ctx, "unix", filepath.Join(t.dir, "socket")); err != nil {
		return nil, err
	}
	for _, l := range []net.Listener{t.tcp, t.abstract, t.path} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.touched <- struct{}{}
				_ = c.Close()
			}
		}()
	}
	go func() {
		buf := make([]byte, 16)
		for {
			if _, _, err := t.udp.ReadFrom(buf); err != nil {
				return
			}
			t.touched <- struct{}{}
		}
	}()
	if t.spawner, err = spawn.New(program, true); err != nil {
		return nil, err
	}
	t.spawner.WithoutNamespaces, t.spawner.WithoutGroups = true, true
	t.spawner.Without = []string{"landlock", "seccomp", "rlimits"}
	t.decoy, err = t.spawner.Spawn(ctx, spawn.ModeCanary, t.directory, 0)
	return t, err
}

// Close ends the targets.
func (t *targets) Close() error {
	var errs []error
	for _, l := range []net.Listener{t.tcp, t.abstract, t.path} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if t.udp != nil {
		errs = append(errs, t.udp.Close())
	}
	if t.spawner != nil {
		errs = append(errs, t.spawner.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(t.dir))...)
}

// argument is what an attempt is aimed at.
func (t *targets) argument(a canary.Attempt) string {
	switch a { //nolint:exhaustive // the others need none
	case canary.TCP, canary.MPTCP:
		return t.tcp.Addr().String()
	case canary.UDP:
		return t.udp.LocalAddr().String()
	case canary.Abstract:
		return strings.TrimPrefix(t.abstract.Addr().String(), "@")
	case canary.UnixPath:
		return t.path.Addr().String()
	case canary.Ptrace, canary.Signal:
		return strconv.Itoa(t.decoy.PID())
	case canary.Mount:
		return t.directory
	case canary.ReadHost:
		return t.secret
	case canary.WriteTemp:
		return filepath.Join(os.TempDir(), "monroe-canary-"+filepath.Base(t.dir))
	case canary.Threads:
		return strconv.Itoa(spawn.MaxThreads + 72)
	case canary.Memory:
		return strconv.Itoa(bomb)
	}
	return ""
}

// arrived compares what a canary says with what came.
func (t *targets) arrived(r row, denied bool) error {
	if !slices.Contains([]canary.Attempt{canary.TCP, canary.UDP, canary.MPTCP, canary.Abstract, canary.UnixPath}, r.Attempt) {
		return nil
	}
	if denied {
		select {
		case <-t.touched:
			return fmt.Errorf("%s was refused and arrived all the same", r.Attempt)
		default:
			return nil
		}
	}
	select {
	case <-t.touched:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s succeeded and nothing came", r.Attempt)
	}
}

// examined is what one stage came to.
type examined struct {
	results  []result
	walls    spawn.Walls
	enforced []string // by the worker itself
	why      string   // the worker did not start, or lacks a part
}

// spawner of a stage.
func (s stage) spawner(x Subject) (*spawn.Spawner, error) {
	p, err := x.spawner()
	if err != nil {
		return nil, err
	}
	p.WithoutNamespaces, p.WithoutGroups = true, true
	p.Without = []string{"landlock", "seccomp", "rlimits"}
	switch s {
	case bare:
	case process:
		p.UID, p.WithoutGroups, p.Memory = x.UID, false, canaryMemory
		p.Without = []string{"landlock", "seccomp"}
	case kernel:
		p.Without = []string{"rlimits"}
	case files:
		p.Without = []string{"seccomp", "rlimits"}
	case isolated:
		p.WithoutNamespaces = false
	case fenced:
		p.WithoutGroups = false
	case everything:
		p.UID, p.WithoutGroups, p.WithoutNamespaces, p.Without, p.Memory = x.UID, false, false, nil, canaryMemory
	}
	return p, nil
}

// look sends a canary after every target.
func look(ctx context.Context, s stage, x Subject, t *targets) (e *examined, err error) {
	p, err := s.spawner(x)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	e = &examined{walls: p.Walls()}
	c := &crew{ctx: ctx, spawner: p, dir: t.directory}
	if s == fenced {
		c.refused = func() (uint64, error) {
			n, err := x.Backstop.Workers()
			return n.Denied, err
		}
	}
	for _, row := range table {
		if row.fatal && s != bare && s != process && s != everything {
			continue // it would succeed, and take the memory
		}
		r := result{row: row}
		r.answer, r.reported, err = c.attempt(row, t.argument(row.Attempt))
		if err != nil {
			return nil, err
		}
		r.denied = r.answer != canary.Allowed
		if err := t.arrived(row, r.denied); err != nil {
			return nil, err
		}
		e.results = append(e.results, r)
	}
	e.enforced = c.enforced
	for _, want := range []string{"landlock", "no_new_privs", "seccomp"} {
		if (s == kernel || s == everything) && !slices.ContainsFunc(e.enforced, func(have string) bool { return strings.HasPrefix(have, want) }) {
			e.why = "this kernel has no " + want
		}
	}
	return e, nil
}

// crew replaces a canary that died.
type crew struct {
	ctx      context.Context
	spawner  *spawn.Spawner
	dir      string
	now      *spawn.Process
	enforced []string
	refused  func() (uint64, error) // by others than the canary's own filter; may be nil
}

// attempt returns the answer, or how the canary ended.
func (c *crew) attempt(row row, argument string) (answer string, reported bool, err error) {
	if c.now == nil {
		if c.now, err = c.spawner.Spawn(c.ctx, spawn.ModeCanary, c.dir, 0); err != nil {
			return "", false, err
		}
		c.enforced = c.now.Ready.Enforced
	}
	if err := c.now.Conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", false, err
	}
	refused := c.refused
	if refused == nil {
		now := c.now
		refused = func() (uint64, error) { return uint64(now.Refused()), nil }
	}
	before, err := refused()
	if err != nil {
		return "", false, err
	}
	text := strings.TrimSpace(string(row.Attempt) + " " + argument)
	err = wire.WriteFrame(c.now.Conn, wire.KindInput, []byte(text))
	var frame []byte
	if err == nil {
		_, frame, err = wire.ReadFrame(c.now.Conn, wire.KindLog)
	}
	if err == nil {
		after, err := refused()
		return string(frame), after > before, err
	}
	_ = c.now.Close() // how it ended is what is asked
	ended := c.now.Wait()
	c.now = nil
	if !row.fatal {
		return "", false, fmt.Errorf("the canary ended at %s: %w", row.Attempt, errors.Join(err, ended))
	}
	return fmt.Sprintf("the end of the process (%v)", ended), false, nil
}

// host looks at the machine.
func host(x Subject, w spawn.Walls) Host {
	h := Host{Arch: runtime.GOARCH, UID: os.Getuid(), WorkerUID: int(x.user()), Namespaces: "yes", Groups: w.Groups, GroupsWhy: w.GroupsWhy, Spawner: "direct"}
	if h.WorkerUID == 0 {
		h.WorkerUID = h.UID
	}
	switch {
	case !w.Namespaces:
		h.Namespaces = w.NamespacesWhy
	case w.NamespacesWhy != "":
		h.Namespaces += ", but " + w.NamespacesWhy
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); e == 0 {
		h.Landlock = int(v)
	}
	all := "with capabilities"
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		_, rest, _ := strings.Cut(string(status), "CapEff:")
		h.Capabilities, _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
		if none(string(status)) {
			all = "without capabilities"
		}
	}
	if x.Up != nil {
		h.Spawner = fmt.Sprintf("monroe up (privileged), workers as uid %d, daemon as uid %d %s", h.WorkerUID, h.UID, all)
	}
	return h
}

// none says that all five sets of capabilities in a status file are empty.
func none(status string) bool {
	sets := 0
	for line := range strings.Lines(status) {
		if name, set, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && strings.HasPrefix(name, "Cap") {
			if strings.Trim(strings.TrimSpace(set), "0") != "" {
				return false
			}
			sets++
		}
	}
	return sets == 5
}
