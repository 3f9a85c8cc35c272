package spawn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// A Program is the executable of a plugin, opened once. It is safe for concurrent use.
type Program struct {
	f      *os.File
	pinned abi.Digest
}

// OpenProgram opens a plugin's program, which has to have the pinned digest and must be
// writable by its owner alone: root, or the user of this process.
func OpenProgram(path string, pinned abi.Digest) (*Program, error) {
	f, digest, err := openProgram(path)
	if err != nil {
		return nil, err
	}
	p := &Program{f: f, pinned: pinned}
	if err := p.check(digest); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// check holds the program against its pin. A digest says nothing of what somebody may
// write a moment later, the owner and the mode do.
func (p *Program) check(digest abi.Digest) error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case digest != p.pinned:
		return fmt.Errorf("%w: it is %s, pinned is %s", ErrDigest, digest, p.pinned)
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: others may write it; chmod 755 it", ErrDigest)
	case !ok || owner.Uid != 0 && int(owner.Uid) != os.Geteuid():
		return fmt.Errorf("%w: its owner is neither root nor the user of this daemon", ErrDigest)
	}
	return nil
}

// again hashes what the opened file holds now.
func (p *Program) again() error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p.f, 0, 1<<62)); err != nil {
		return err
	}
	return p.check(abi.Digest(h.Sum(nil)))
}

// Close forgets the program. What runs of it goes on.
func (p *Program) Close() error { return p.f.Close() }

// pluginStart is what a plugin gets that a worker does not.
type pluginStart struct {
	program, stdout *os.File
	env             []string
	look            func(Violation)
}

// SpawnPlugin starts a plugin on a private, empty directory (absolute), which is its
// working directory and the only place where it can create anything. env is its whole
// environment. It returns once the program runs, confined; ctx covers the start only.
// The caller reads and closes Stdout and closes the Process.
//
// look is told of the first MaxViolations calls for files that it makes before NoFiles, as
// each waits for its answer; most are its runtime's. It must not block.
//
// The worker program is the launcher: it confines itself, says so, and becomes the
// plugin. So no instruction of a plugin runs outside, whatever is in its program.
func (s *Spawner) SpawnPlugin(ctx context.Context, program *Program, dir string, env []string, look func(Violation)) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: the directory %q is not absolute", ErrNotReady, dir)
	}
	if err := program.again(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	stdout, printed, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	p, err := s.start(ModePlugin, dir, 0, &pluginStart{program: program.f, stdout: printed, env: env, look: look})
	_ = printed.Close() // the child has its own
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotReady, err), stdout.Close())
	}
	if err := s.await(ctx, p, func() error { return p.becomes(s) }); err != nil {
		return nil, errors.Join(err, stdout.Close())
	}
	p.Stdout = stdout
	return p, nil
}

// becomes waits until the launcher is the plugin: its socket closes by execve.
func (p *Process) becomes(s *Spawner) error {
	if err := p.greet(s); err != nil {
		return err
	}
	if err := p.Conn.SetDeadline(time.Now().Add(s.readyWithin())); err != nil {
		return err
	}
	_, payload, err := wire.ReadFrame(p.Conn, wire.KindFault)
	switch {
	case err == nil:
		return faultError(payload)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("its program did not start: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.launches > 0 && p.listener != nil {
		return errors.New("its launcher ended before its program started")
	}
	return nil
}

// NoFiles says that a plugin has come up: from now on a call for a file is a violation like
// any other. Before, Landlock refuses what is not in its directory.
func (p *Process) NoFiles() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting = false
}
