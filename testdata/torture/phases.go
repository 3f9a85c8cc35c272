package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// phases are the moments that a random kill would meet too seldom.
func (t *torture) phases() error {
	list := []func() error{t.lostAnswer}
	if t.h.server != nil { // only there a second daemon can take over from a paused one
		list = append(list, t.fenced, t.tooLate)
	}
	for _, f := range list {
		if err := f(); err != nil {
			return err
		}
	}
	t.o.mu.Lock()
	defer t.o.mu.Unlock()
	t.o.breaks = true
	return nil
}

// job starts a run of one step.
func (t *torture) job(class, operation, base string, silent bool) (*job, error) {
	s := step{id: fmt.Sprintf("r%05ds0", len(t.l.jobs)), class: class, operation: operation}
	s.args = map[string]any{"url": base + "/" + class + "/" + s.id, "body": "{}"}
	j := &job{steps: []step{s}, silent: silent}
	t.l.jobs = append(t.l.jobs, j)
	if !t.l.begin(t.ctx, t.l.now) {
		return nil, errors.New("a run could not be started")
	}
	return j, nil
}

// until lets the load work until something holds.
func (t *torture) until(what string, holds func() bool) error {
	for end := time.Now().Add(5 * time.Minute); !holds(); {
		if time.Now().After(end) {
			return fmt.Errorf("%s did not come", what)
		}
		t.l.work()
		if err := t.pause(2 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func ended(list ...*job) func() bool {
	return func() bool {
		for _, j := range list {
			if j.view == nil {
				return false
			}
		}
		return true
	}
}

// lostAnswer takes the answer to a keyed call away: the second attempt bears the same
// key, so that it is done once.
func (t *torture) lostAnswer() error {
	t.o.mu.Lock()
	t.o.breaks, t.o.loses = false, true
	t.o.mu.Unlock()
	j, err := t.job("keyed", "http.keyed", t.o.base, false)
	if err != nil {
		return err
	}
	return t.until("the end of a keyed call", ended(j))
}

// takeOver pauses the daemon and lets a second one take the workspace over.
func (t *torture) takeOver() (paused *daemon, err error) {
	paused = t.d
	if err := paused.signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	t.l.serve(nil)
	if err := t.up(); err != nil {
		t.d = nil
		paused.kill()
		return nil, err
	}
	return paused, nil
}

// wake lets a paused daemon go on. Its lease is another's by now, so it has to end.
func (t *torture) wake(paused *daemon) error {
	defer paused.kill()
	if err := paused.signal(syscall.SIGCONT); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		t.l.work()
		if !paused.alive(20 * time.Millisecond) {
			return nil
		}
	}
	t.stale++
	t.l.problem("a daemon whose lease was taken goes on")
	return nil
}

// fenced pauses a daemon that is about to write, and wakes it when another one has
// taken over: it writes nothing any more.
func (t *torture) fenced() error {
	var jobs []*job
	for range 4 {
		j, err := t.job("blind", "http.blind", t.o.base, true)
		if err != nil {
			return err
		}
		jobs = append(jobs, j)
	}
	paused, err := t.takeOver()
	if err != nil {
		return err
	}
	defer paused.kill()
	var epoch, before, after int
	rows := `SELECT count(*) FROM journal WHERE epoch < $1`
	if err := t.h.admin.QueryRowContext(t.ctx, `SELECT epoch FROM lease`).Scan(&epoch); err != nil {
		return err
	}
	if err := t.until("a question", func() bool {
		n := 0
		err := t.h.admin.QueryRowContext(t.ctx, `SELECT count(*) FROM approval WHERE state = 'pending'`).Scan(&n)
		return err == nil && n == len(jobs)
	}); err != nil {
		return err
	}
	if err := t.h.admin.QueryRowContext(t.ctx, rows, epoch).Scan(&before); err != nil {
		return err
	}
	if err := t.wake(paused); err != nil {
		return err
	}
	if err := t.h.admin.QueryRowContext(t.ctx, rows, epoch).Scan(&after); err != nil {
		return err
	}
	if after != before {
		t.l.problem("%d records were written under a lease that was over", after-before)
	}
	for _, j := range jobs {
		j.silent = false
	}
	return t.until("the end of the runs that were taken over", ended(jobs...))
}

// tooLate pauses a daemon between an attempt and its first byte, until the attempt's
// time is over and its successor has sent in its stead.
func (t *torture) tooLate() error {
	if err := t.late.fill(); err != nil {
		return err
	}
	j, err := t.job("late", "http.late", t.late.base, false)
	if err != nil {
		return err
	}
	if err := t.until("an attempt", func() bool {
		n := 0
		err := t.h.admin.QueryRowContext(t.ctx, `SELECT count(*) FROM journal WHERE run_id = $1 AND kind = 'ATTEMPT'`, string(j.run)).Scan(&n)
		return err == nil && n > 0
	}); err != nil {
		return err
	}
	paused, err := t.takeOver()
	if err != nil {
		return err
	}
	defer paused.kill()
	t.late.accept()
	if err := t.until("the end of a run that was taken over", ended(j)); err != nil {
		return err
	}
	if err := t.wake(paused); err != nil {
		return err
	}
	return t.pause(100 * time.Millisecond) // what it sent has arrived by then
}

// lateListener is a second door of the oracle that lets nobody in at first: its queue
// is full, so a connection is asked for again and again by the kernel.
type lateListener struct {
	base string
	o    *oracle
	l    net.Listener
	full []net.Conn
	srv  *http.Server
}

func newLateListener(o *oracle) (*lateListener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "late") //nolint:gosec // a descriptor
	defer f.Close()                      //nolint:errcheck // the listener has its own
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &lateListener{base: "http://" + l.Addr().String(), o: o, l: l}, nil
}

// fill takes every place of the queue.
func (l *lateListener) fill() error {
	for {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(l.base, "http://"), time.Second)
		if err != nil {
			if len(l.full) == 0 {
				return err
			}
			return nil
		}
		if l.full = append(l.full, c); len(l.full) > 64 {
			return errors.New("the queue of a listener has no end")
		}
	}
}

// accept lets everybody in.
func (l *lateListener) accept() {
	for _, c := range l.full {
		_ = c.Close()
	}
	l.srv = &http.Server{Handler: l.o, ReadHeaderTimeout: time.Minute}
	l.srv.ErrorLog = nil
	go func() { _ = l.srv.Serve(l.l) }()
}

func (l *lateListener) close() {
	_ = l.l.Close()
	if l.srv != nil {
		_ = l.srv.Close()
	}
}
