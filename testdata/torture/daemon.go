package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", for what a test does behind the daemon's back

	"github.com/getmonroe/monroe/host/api/client"
	"github.com/getmonroe/monroe/host/store/storetest"
)

const workspace = "team"

// house is where daemons of one workspace live.
type house struct {
	bin  string // programs
	home string
	env  []string
	log  io.Writer // what the daemons say

	server *storetest.Server // of PostgreSQL, nil for SQLite
	admin  *sql.DB
}

func (h *house) dir() string { return filepath.Join(h.home, workspace) }

// openHouse makes a home, and a database where the store is PostgreSQL.
func openHouse(ctx context.Context, bin, store, operator string, log io.Writer) (_ *house, err error) {
	h := &house{bin: bin, log: log}
	if h.home, err = os.MkdirTemp("", "mnr-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	h.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.home}
	if err := os.WriteFile(filepath.Join(h.home, "operator.yaml"), []byte(operator), 0o600); err != nil {
		return nil, err
	}
	switch store {
	case "sqlite":
		return h, nil
	case "postgres":
	default:
		return nil, fmt.Errorf("store %q: sqlite or postgres", store)
	}
	if h.server, err = storetest.Start(ctx); err != nil {
		return nil, err
	}
	boss := h.server.URL("boss", "postgres").Reveal()
	provision := exec.CommandContext(ctx, filepath.Join(bin, "monroed"), "--workspace", workspace, "--provision", "monroe_team")
	provision.Env = []string{"MONROE_STORE_ADMIN=" + boss}
	if out, err := provision.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("provision: %w: %s", err, out)
	}
	h.env = append(h.env, "MONROE_STORE="+h.server.URL("monroe_team", "postgres").Reveal())
	h.admin, err = sql.Open("pgx", boss+"&search_path=monroe")
	return h, err
}

func (h *house) close() error {
	var errs []error
	if h.admin != nil {
		errs = append(errs, h.admin.Close())
	}
	if h.server != nil {
		errs = append(errs, h.server.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(h.home))...)
}

// expire lets the dead or paused daemon's lease be over, as if its term had passed.
func (h *house) expire(ctx context.Context) error {
	if h.admin == nil {
		return nil // the kernel dropped the lock with the process
	}
	_, err := h.admin.ExecContext(ctx, `UPDATE lease SET expires_at = 0`)
	return err
}

// daemon is one process.
type daemon struct {
	h     *house
	cmd   *exec.Cmd
	ended chan struct{}
	*client.Client
}

// start starts a daemon and waits until it serves. It dies with this program.
func (h *house) start(ctx context.Context) (*daemon, error) {
	if err := h.expire(ctx); err != nil {
		return nil, err
	}
	d := &daemon{h: h, ended: make(chan struct{})}
	d.cmd = exec.Command(filepath.Join(h.bin, "monroed"), "--home", h.home, "--workspace", workspace)
	d.cmd.Env = h.env
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	serves, started := make(chan struct{}), make(chan error, 1)
	var tail bytes.Buffer
	var mu sync.Mutex
	go func() {
		runtime.LockOSThread() // the process dies with this thread, which stays as long as it runs
		err := d.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		once := sync.Once{}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			mu.Lock()
			tail.WriteString(lines.Text() + "\n")
			mu.Unlock()
			fmt.Fprintln(h.log, lines.Text())
			if strings.Contains(lines.Text(), "msg=serving") {
				once.Do(func() { close(serves) })
			}
		}
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	select {
	case <-serves:
	case <-d.ended:
		mu.Lock()
		defer mu.Unlock()
		return nil, fmt.Errorf("the daemon ended: %s", tail.String())
	case <-time.After(5 * time.Minute):
		d.kill()
		return nil, errors.New("the daemon does not serve")
	case <-ctx.Done():
		d.kill()
		return nil, ctx.Err()
	}
	d.Client, err = client.Dial(h.dir(), "")
	return d, err
}

// kill ends the daemon as a power cut would, and waits until it is gone.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

func (d *daemon) signal(s syscall.Signal) error { return d.cmd.Process.Signal(s) }

// alive reports whether the process has not ended within a time.
func (d *daemon) alive(within time.Duration) bool {
	select {
	case <-d.ended:
		return false
	case <-time.After(within):
		return true
	}
}

// workers are the processes that the daemon started.
func (d *daemon) workers() (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killWorker kills one of the daemon's workers. The process is named by a descriptor,
// so that no other one can have taken its number.
func (d *daemon) killWorker(pick func(int) int) bool {
	pids := d.workers()
	if len(pids) == 0 {
		return false
	}
	pid := pids[pick(len(pids))]
	p, err := os.FindProcess(pid) // holds a pidfd
	if err != nil {
		return false
	}
	defer func() { _ = p.Release() }()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // state ppid …
	f := strings.Fields(rest)
	if len(f) < 2 || f[1] != strconv.Itoa(d.cmd.Process.Pid) {
		return false
	}
	return p.Kill() == nil
}

// monroe runs the command line.
func (h *house) monroe(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(h.bin, "monroe"), append([]string{"--home", h.home, "-w", workspace}, args...)...)
	cmd.Env = h.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}
