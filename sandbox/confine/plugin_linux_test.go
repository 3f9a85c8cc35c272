package confine_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// TestLinuxPluginDies: a plugin has nothing of its daemon's environment, and it goes with whoever started it, also if its launcher did
// not execute it on its first thread.
func TestLinuxPluginDies(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "MONROE_TEST_DAEMON="+t.TempDir(), "MONROE_TEST_PROGRAM="+attempts)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || gone(pid) {
		t.Fatalf("no plugin: %q, %v", line, err)
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || len(env) > 0 {
		t.Errorf("it was given no environment and has %q, %v", env, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for until := time.Now().Add(10 * time.Second); !gone(pid); runtime.Gosched() {
		if time.Now().After(until) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the plugin %d outlived its daemon", pid)
		}
	}
}

// gone is true for a zombie too, whose new parent may not have noticed yet.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z")
}

// daemon has a plugin, says which, and waits to be killed.
func daemon(path, dir string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s, err := spawn.New(path, false)
	if err != nil {
		return err
	}
	program, err := spawn.OpenProgram(path, abi.Digest(sha256.Sum256(b)))
	if err != nil {
		return err
	}
	p, err := s.SpawnPlugin(context.Background(), program, dir, nil)
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	return p.Wait()
}
