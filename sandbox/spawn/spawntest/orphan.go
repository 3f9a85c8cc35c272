package spawntest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// DiesWithParent starts this test's program once more with env, to be a daemon that prints the
// number of a process that it started and then waits. It kills the daemon; an error says that
// the process lived on for a minute, and it is killed then. look, if there is one, sees the
// process before.
func DiesWithParent(ctx context.Context, look func(pid int), env ...string) error {
	daemon := exec.CommandContext(ctx, os.Args[0])
	daemon.Env, daemon.Stderr = append(os.Environ(), env...), os.Stderr
	out, err := daemon.StdoutPipe()
	if err != nil {
		return err
	}
	if err := daemon.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, bad := strconv.Atoi(strings.TrimSpace(line))
	if err := errors.Join(err, bad); err != nil || gone(pid) {
		return errors.Join(fmt.Errorf("the daemon started nothing: %q", line), err, daemon.Process.Kill(), daemon.Wait())
	}
	if look != nil {
		look(pid)
	}
	if err := daemon.Process.Kill(); err != nil {
		return err
	}
	_ = daemon.Wait() // it was killed
	for until := time.Now().Add(time.Minute); !gone(pid); runtime.Gosched() {
		if time.Now().After(until) {
			p, _ := os.FindProcess(pid)
			return errors.Join(fmt.Errorf("the process %d outlived its daemon", pid), p.Kill())
		}
	}
	return nil
}

// gone is true for a zombie too, whose new parent may not have noticed yet.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}
