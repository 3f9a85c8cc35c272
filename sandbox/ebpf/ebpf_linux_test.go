package ebpf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// TestMain is also the processes that are put into control groups.
func TestMain(m *testing.M) {
	if what := os.Getenv("MONROE_TEST_EBPF"); what != "" {
		if err := within(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func within(what string) error {
	switch what {
	case "attempts":
		return json.NewEncoder(os.Stdout).Encode(attempts())
	case "daemon":
		return beDaemon()
	case "holder": // holds the programs until it is killed
		g, err := ebpf.DenyAll(os.Getenv("GROUP"))
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(os.Stdout, "stands")
		_, err = os.Stdin.Read(make([]byte, 1))
		return errors.Join(err, g.Close())
	}
	return errors.New("what?")
}

type house struct{ daemon, workers string }

func newHouse(t *testing.T) house {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can attach programs to control groups here")
	}
	tree, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	var h house
	var workers string
	if h.daemon, workers, err = tree.House(); err != nil {
		t.Fatal(err)
	}
	// A group of workers holds groups, and no process where their limits are of version 2.
	h.workers = filepath.Join(workers, "worker")
	if err := os.Mkdir(h.workers, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// command is this program, to be started in a group; empty means the test's own.
func command(t *testing.T, group, what string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append([]string{"MONROE_TEST_EBPF=" + what}, env...)
	cmd.Stderr = os.Stderr
	if group != "" {
		dir, err := os.Open(group)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	}
	return cmd
}

// peer listens on loopback for TCP and UDP of both families, on one port.
func peer(t *testing.T) int {
	t.Helper()
	for range 20 {
		var open []interface{ Close() error }
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l6, err1 := net.Listen("tcp6", fmt.Sprintf("[::1]:%d", port))
		u, err2 := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		u6, err3 := net.ListenPacket("udp6", fmt.Sprintf("[::1]:%d", port))
		open = append(open, l)
		for _, tcp := range []net.Listener{l, l6} {
			if tcp != nil {
				go func() {
					for {
						c, err := tcp.Accept()
						if err != nil {
							return
						}
						t.Cleanup(func() { c.Close() })
					}
				}()
			}
		}
		if err := errors.Join(err1, err2, err3); err == nil {
			for _, c := range append(open, l6, u, u6) {
				t.Cleanup(func() { c.Close() })
			}
			return port
		}
		l.Close()
	}
	t.Fatal("no port is free in both families")
	return 0
}

func tables(t *testing.T, workers, daemon *ebpf.Guard, mode ebpf.Mode) *ebpf.Backstop {
	t.Helper()
	b, err := ebpf.Tables(workers, daemon, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestRootHolderDies: what stood when the holder was killed stands on.
func TestRootHolderDies(t *testing.T) {
	h := newHouse(t)
	port := peer(t)
	holder := command(t, "", "holder", "GROUP="+h.workers)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if got := tryAll(t, h.workers, port); got["tcp4"] != "EPERM" || got["udp6 sendto"] != "EPERM" {
		t.Errorf("after the holder's death: %v", got)
	}
	// Whoever starts again finds another group: this one's programs end with it.
	if err := os.Remove(h.workers); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(h.workers, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := tryAll(t, h.workers, port); got["tcp4"] != "ALLOWED" {
		t.Errorf("in a new group: %v", got)
	}
}
