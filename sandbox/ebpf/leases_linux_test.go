package ebpf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// daemonSays is what a process in the daemon's group found.
type daemonSays map[string]string

// run lets a daemon run in the group, with the tables handed over.
func run(t *testing.T, h house, mode ebpf.Mode, script string, uid int) daemonSays {
	t.Helper()
	return guarded(t, h, mode)(script, uid)
}

// guarded stands the programs, behind which one daemon after the other may run.
func guarded(t *testing.T, h house, mode ebpf.Mode) func(script string, uid int) daemonSays {
	t.Helper()
	workers, err := ebpf.DenyAll(h.workers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { workers.Close() })
	daemon, err := ebpf.RequireLeases(h.daemon, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close() })
	port := strconv.Itoa(peer(t))
	return func(script string, uid int) daemonSays {
		t.Helper()
		cmd := command(t, h.daemon, "daemon", "SCRIPT="+script, "PORT="+port, "GROUP="+h.daemon)
		if uid != 0 {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
		}
		if err := ebpf.Hand(cmd, workers, daemon, mode); err != nil {
			t.Fatal(err)
		}
		text, err := cmd.Output()
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		says := daemonSays{}
		if err := json.Unmarshal(text, &says); err != nil {
			t.Fatal(err)
		}
		return says
	}
}

// errno names what a dial came to.
func errno(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ebpf.ErrTableFull):
		return "full"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// beDaemon follows a script in the daemon's group.
func beDaemon() error {
	b, err := ebpf.Inherited()
	if err != nil {
		return err
	}
	defer b.Close()
	port, _ := strconv.Atoi(os.Getenv("PORT"))
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	says := daemonSays{}
	met := make(chan ebpf.Attempt, 1<<16)
	watched := make(chan error, 1)
	listens := make(chan struct{})
	if os.Getenv("SCRIPT") != "flood" {
		close(listens)
	}
	go func() { watched <- b.Watch(func(ebpf.Attempt) {}, func(a ebpf.Attempt) { <-listens; met <- a }) }()
	reported := func() string {
		select {
		case a := <-met:
			return fmt.Sprintf("%s %s %s denied=%v own=%v", a.Hook, a.Proto, a.To, a.Denied, a.PID == os.Getpid())
		case <-time.After(time.Minute):
			return "nothing"
		}
	}
	var d net.Dialer
	// dial takes a lease for one thing and connects to another.
	dial := func(network string, lease, target netip.AddrPort, leased string) (net.Conn, *ebpf.Lease, error) {
		var l *ebpf.Lease
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			l, err = b.Take(c, leased, lease)
			return err
		}}
		c, err := d.Dial(network, target.String())
		if l != nil {
			l.Connected()
		}
		return c, l, err
	}
	switch script := os.Getenv("SCRIPT"); script {
	case "ends", "families", "fill", "again":
		if err := beBrief(b, script, uint16(port), says); err != nil {
			return err
		}
	case "leases":
		c, l, err := dial("tcp", to, to, "tcp")
		says["leased"] = errno(err)
		if err != nil {
			break
		}
		_, err = d.Dial("tcp", to.String())
		says["bare"], says["bare reported"] = errno(err), reported()
		other := netip.AddrPortFrom(to.Addr(), to.Port()^1)
		_, l2, err := dial("tcp", other, to, "tcp")
		says["other port"], says["other port reported"] = errno(err), reported()
		_, seen := l2.End()
		says["other port seen"] = fmt.Sprint(seen)
		_, _, err = dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), to.Port()), to, "tcp")
		says["other address"], _ = errno(err), reported()
		_, _, err = dial("tcp", to, to, "udp")
		says["other protocol"], _ = errno(err), reported()
		u, _, err := dial("udp", to, to, "udp")
		says["udp"] = errno(err)
		if err == nil {
			_, err = u.Write([]byte("x"))
			says["udp write"] = errno(err)
		}
		_, err = d.Dial("udp", to.String())
		says["udp bare"], _ = errno(err), reported()
		_, err = net.ListenPacket("ip4:icmp", "127.0.0.1")
		says["raw"], _ = errno(err), reported()
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			return err
		}
		strays, err := b.Strays()
		if err != nil {
			return err
		}
		c.Close()
		f, ok := l.End()
		says["flow"] = fmt.Sprint(ok, " ", f.To == to, " ", f.Proto, " ", f.Leased, " ", f.Out > 1000)
		says["strays"] = fmt.Sprint(len(strays))
	case "audit":
		_, err := d.Dial("tcp", to.String())
		says["bare"], says["bare reported"] = errno(err), reported()
		strays, err := b.Strays()
		if err != nil || len(strays) != 1 {
			return fmt.Errorf("strays %v, %w", strays, err)
		}
		says["stray"] = fmt.Sprint(strays[0].To == to, strays[0].Leased)
	case "cut":
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		here := l.Addr().(*net.TCPAddr).AddrPort()
		c, lease, err := dial("tcp4", here, here, "tcp")
		if err != nil {
			return err
		}
		other, err := l.Accept()
		if err != nil {
			return err
		}
		hear := func() string {
			other.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			n, _ := other.Read(make([]byte, 16))
			return strconv.Itoa(n)
		}
		_, err = c.Write([]byte("one"))
		says["before"] = errno(err) + " " + hear()
		if err := lease.Cut(); err != nil {
			return err
		}
		_, err = c.Write([]byte("four"))
		says["after"] = errno(err) + " " + hear()
		n, err := b.Daemon()
		says["counted"] = fmt.Sprint(n.Cut > 0, err)
	case "full":
		for i := range ebpf.MaxLeases {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "socket")
			rc, err := f.SyscallConn()
			if err != nil {
				return err
			}
			if _, err := b.Take(rc, "tcp", to); err != nil {
				return fmt.Errorf("lease %d: %w", i, err)
			}
			f.Close() // the lease outlives it, like one of a dead daemon
		}
		_, _, err := dial("tcp", to, to, "tcp")
		says["one more"] = errno(err)
		says["text"] = fmt.Sprint(strings.Contains(fmt.Sprint(err), "lease table is full"))
	case "flood":
		for range 5_000 {
			_, _ = d.Dial("udp", to.String())
		}
		n, err := b.Daemon()
		says["counted"] = fmt.Sprint(n.Denied, n.Lost > 0, err)
		close(listens)
		for range n.Denied - n.Lost {
			<-met
		}
	case "powerless":
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		_, caps, _ := strings.Cut(string(text), "CapEff:")
		says["caps"], _, _ = strings.Cut(strings.TrimSpace(caps), "\n")
		_, _, err = dial("tcp", to, to, "tcp")
		says["leased"] = errno(err)
		_, err = d.Dial("tcp", to.String())
		says["bare"] = errno(err)
		// PROG_DETACH of whatever is there, on our own group.
		dir, err := os.Open(os.Getenv("GROUP"))
		if err == nil {
			attr := struct{ target, prog, at, flags uint32 }{uint32(dir.Fd()), 0, unix.BPF_CGROUP_INET4_CONNECT, 0}
			_, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_DETACH, uintptr(unsafe.Pointer(&attr)), 16)
			says["detach"] = unix.ErrnoName(e) // it takes a descriptor of the program,
			id := struct{ id, next, flags uint32 }{id: 1}
			_, _, e = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_GET_FD_BY_ID, uintptr(unsafe.Pointer(&id)), 12)
			says["program"] = unix.ErrnoName(e) // and there is none to be had
		}
	}
	if err := b.Close(); err != nil {
		return err
	}
	if err := <-watched; err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(says)
}

func is(t *testing.T, says daemonSays, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if !strings.HasPrefix(says[k], v) {
			t.Errorf("%s: %q, not %q", k, says[k], v)
		}
	}
}

func TestRootLeases(t *testing.T) {
	says := run(t, newHouse(t), ebpf.Enforce, "leases", 0)
	is(t, says, map[string]string{
		"leased": "ok", "bare": "EPERM", "bare reported": "connect4 tcp 127.0.0.1:",
		"other port": "EPERM", "other port reported": "connect4 tcp 127.0.0.1:", "other port seen": "false", "other address": "EPERM", "other protocol": "EPERM",
		"udp": "ok", "udp write": "ok", "udp bare": "EPERM", "raw": "EPERM", "flow": "true true tcp true true", "strays": "0",
	})
	if !strings.HasSuffix(says["bare reported"], "denied=true own=true") {
		t.Errorf("reported %s", says["bare reported"])
	}
}

func TestRootAudit(t *testing.T) {
	says := run(t, newHouse(t), ebpf.Audit, "audit", 0)
	is(t, says, map[string]string{"bare": "ok", "stray": "true false"})
	if !strings.HasSuffix(says["bare reported"], "denied=false own=true") {
		t.Errorf("reported %s", says["bare reported"])
	}
}

func TestRootCut(t *testing.T) {
	is(t, run(t, newHouse(t), ebpf.Enforce, "cut", 0), map[string]string{"before": "ok 3", "after": "ok 0", "counted": "true"})
}

func TestRootFullTable(t *testing.T) {
	h := newHouse(t)
	is(t, run(t, h, ebpf.Enforce, "full", 0), map[string]string{"one more": "full", "text": "true"})
}

func TestRootFlood(t *testing.T) {
	says := run(t, newHouse(t), ebpf.Enforce, "flood", 0)
	is(t, says, map[string]string{"counted": "5000 true <nil>"})
}

func TestRootWithoutCapabilities(t *testing.T) {
	is(t, run(t, newHouse(t), ebpf.Enforce, "powerless", 65534), map[string]string{"caps": "0000000000000000", "leased": "ok", "bare": "EPERM", "detach": "EINVAL", "program": "EPERM"})
}
