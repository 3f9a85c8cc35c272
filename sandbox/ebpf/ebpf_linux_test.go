package ebpf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	kernel "github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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
	if h.daemon, h.workers, err = tree.House(); err != nil {
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

// attempts tries every way that section of the table names. Arguments come by the
// environment; descriptors 3 and 4 are inherited sockets, two more come over descriptor 5,
// and 6 is a network namespace with one end of a cable.
func attempts() map[string]string {
	port, _ := strconv.Atoi(os.Getenv("PORT"))
	v4 := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	v6 := &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}
	mapped := &unix.SockaddrInet6{Port: port, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}}
	out := map[string]string{}
	show := func(name string, err error) {
		var e unix.Errno
		switch {
		case err == nil:
			out[name] = "ALLOWED"
		case errors.As(err, &e):
			out[name] = unix.ErrnoName(e)
		default:
			out[name] = err.Error()
		}
	}
	with := func(name string, domain, typ, proto int, f func(int) error) {
		fd, err := unix.Socket(domain, typ, proto)
		if err == nil {
			defer unix.Close(fd)
			err = f(fd)
		}
		show(name, err)
	}
	connect := func(sa unix.Sockaddr) func(int) error { return func(fd int) error { return unix.Connect(fd, sa) } }
	send := func(sa unix.Sockaddr, flags int) func(int) error {
		return func(fd int) error { return unix.Sendto(fd, []byte("hello"), flags, sa) }
	}
	none := func(int) error { return nil }
	with("tcp4", unix.AF_INET, unix.SOCK_STREAM, 0, connect(v4))
	with("tcp6", unix.AF_INET6, unix.SOCK_STREAM, 0, connect(v6))
	with("tcp6 mapped", unix.AF_INET6, unix.SOCK_STREAM, 0, connect(mapped))
	with("tcp4 fast open", unix.AF_INET, unix.SOCK_STREAM, 0, send(v4, unix.MSG_FASTOPEN))
	with("mptcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, connect(v4))
	with("udp4 sendto", unix.AF_INET, unix.SOCK_DGRAM, 0, send(v4, 0))
	with("udp4 connect", unix.AF_INET, unix.SOCK_DGRAM, 0, connect(v4))
	with("udp6 sendto", unix.AF_INET6, unix.SOCK_DGRAM, 0, send(v6, 0))
	with("udp6 mapped", unix.AF_INET6, unix.SOCK_DGRAM, 0, send(mapped, 0))
	with("udplite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, send(v4, 0))
	with("tcp4 bind", unix.AF_INET, unix.SOCK_STREAM, 0, func(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}) })
	with("raw icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, send(v4, 0))
	with("raw header", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, func(fd int) error { return unix.Sendto(fd, udpPacket(port), 0, v4) })
	with("netlink", unix.AF_NETLINK, unix.SOCK_RAW, 0, none)
	with("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0, none)
	with("packet", unix.AF_PACKET, unix.SOCK_DGRAM, 0x0008, func(fd int) error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		return unix.Sendto(fd, udpPacket(port), 0, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: lo.Index, Halen: 6})
	})
	for how, flags := range map[string]byte{"": 0, " async": iosqeAsync} {
		with("io_uring connect"+how, unix.AF_INET, unix.SOCK_STREAM, 0, func(fd int) error { return uringConnect(fd, port, flags) })
		with("io_uring sendmsg"+how, unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error { return uringSend(fd, port, flags) })
	}
	_, err := unix.Write(3, []byte("inherited"))
	show("inherited connected", err)
	show("inherited unconnected", unix.Connect(4, v4))
	passed, err := received(5)
	if err != nil || len(passed) != 2 {
		out["passed"] = fmt.Sprint(passed, err)
		return out
	}
	_, err = unix.Write(passed[0], []byte("passed"))
	show("passed connected", err)
	show("passed unconnected", unix.Connect(passed[1], v4))
	show("packet over a cable", sendOverCable(6, udpPacket(port)))
	return out
}

// udpPacket is an IPv4/UDP packet from and to 127.0.0.1.
func udpPacket(port int) []byte {
	const payload = "packet"
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(cap(p)))
	copy(p[12:], []byte{127, 0, 0, 1, 127, 0, 0, 1})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], 44444)
	binary.BigEndian.PutUint16(p[22:], uint16(port))
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

// outside makes a connected and an unconnected socket in the test's own group.
func outside(t *testing.T, port int) (connected, unconnected *os.File) {
	t.Helper()
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if connected, err = conn.(*net.TCPConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connected.Close() })
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unconnected = os.NewFile(uintptr(fd), "unconnected")
	t.Cleanup(func() { unconnected.Close() })
	return connected, unconnected
}

// tryAll runs attempts in a group, with sockets that were made outside, and looks what
// came out of the other end of the cable.
func tryAll(t *testing.T, group string, port int) map[string]string {
	t.Helper()
	connected, unconnected := outside(t, port)
	c := newCable(t)
	cmd := command(t, group, "attempts", "PORT="+strconv.Itoa(port))
	cmd.ExtraFiles = []*os.File{connected, unconnected, pass(t, port), c.near}
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]string
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	if out["packet over a cable"] == "ALLOWED" {
		if got, err := c.arrived(); err != nil || !bytes.Equal(got, udpPacket(port)) {
			t.Errorf("%q arrived at the other end, %v", got, err)
		}
	}
	return out
}

// rows is how many attempts there are.
const rows = 25

// passes are the rows of the table that no program of a control group sees: packet,
// netlink and vsock sockets are no business of IP, and a socket counts for the group
// that it was made in, however it came here.
var passes = map[string]bool{
	"netlink": true, "vsock": true, "packet": true, "packet over a cable": true, "inherited connected": true, "inherited unconnected": true,
	"passed connected": true, "passed unconnected": true,
}

// TestRootWorkerTable holds every attempt beside the same one without the programs.
func TestRootWorkerTable(t *testing.T) {
	h := newHouse(t)
	port := peer(t)
	twin := tryAll(t, h.workers, port)
	workers, err := ebpf.DenyAll(h.workers)
	if err != nil {
		t.Fatal(err)
	}
	defer workers.Close()
	daemon, err := ebpf.RequireLeases(h.daemon, ebpf.Enforce)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	b := tables(t, workers, daemon, ebpf.Enforce)
	got := tryAll(t, h.workers, port)
	refused := 0
	for name, before := range twin {
		absent := before == "EPROTONOSUPPORT" || before == "EAFNOSUPPORT" // this kernel lacks the protocol
		if before != "ALLOWED" && !absent {
			t.Errorf("%s came to %s without the programs", name, before)
		}
		want := before
		if !passes[name] && !absent {
			want = "EPERM"
			refused++
		}
		if got[name] != want {
			t.Errorf("%s came to %s, not %s", name, got[name], want)
		}
	}
	if len(twin) != rows || refused < 14 {
		t.Errorf("%d attempts, %d to refuse", len(twin), refused)
	}
	c, err := b.Workers()
	if err != nil || c.Denied < uint64(refused) || c.Lost != 0 {
		t.Errorf("counted %+v, %v", c, err)
	}
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

// daemonSays is what a process in the daemon's group found.
type daemonSays map[string]string

// run lets a daemon run in the group, with the tables handed over.
func run(t *testing.T, h house, mode ebpf.Mode, script string, uid int) daemonSays {
	t.Helper()
	workers, err := ebpf.DenyAll(h.workers)
	if err != nil {
		t.Fatal(err)
	}
	defer workers.Close()
	daemon, err := ebpf.RequireLeases(h.daemon, mode)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	cmd := command(t, h.daemon, "daemon", "SCRIPT="+script, "PORT="+strconv.Itoa(peer(t)), "GROUP="+h.daemon)
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
		case <-time.After(5 * time.Second):
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
	switch os.Getenv("SCRIPT") {
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

// TestRootColumns holds every row of the table against each column by itself, beside
// the twin without programs: what one set of hooks leaves open another has to shut,
// and what all leave open is for the other walls (system call filter, namespaces,
// descriptors).
func TestRootColumns(t *testing.T) {
	deny := func(kept []kernel.AttachType) func(string) (*ebpf.Guard, error) {
		return func(group string) (*ebpf.Guard, error) {
			g, err := ebpf.DenyAll(group)
			if err != nil {
				return nil, err
			}
			return g, g.Keep(kept)
		}
	}
	for _, c := range []struct {
		column string
		stand  func(string) (*ebpf.Guard, error)
		open   []string // besides those that nothing of this sees
	}{
		{"connect and sendmsg", deny(ebpf.ConnectAndSend), []string{"raw icmp", "raw header", "tcp4 bind"}},
		{"connect, sendmsg and packets", deny(ebpf.AndPackets), []string{"tcp4 bind"}},
		{"socket", deny(ebpf.SocketCreate), nil},
		{"all of a worker's", ebpf.DenyAll, nil},
		{"a daemon's, without a lease", func(group string) (*ebpf.Guard, error) { return ebpf.RequireLeases(group, ebpf.Enforce) }, []string{"tcp4 bind"}},
	} {
		t.Run(c.column, func(t *testing.T) {
			h := newHouse(t)
			port := peer(t)
			twin := tryAll(t, h.workers, port)
			g, err := c.stand(h.workers)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			got := tryAll(t, h.workers, port)
			if len(twin) != rows || len(got) != len(twin) {
				t.Errorf("%d attempts, %d without the programs", len(got), len(twin))
			}
			for name, before := range twin {
				want := "EPERM"
				if passes[name] || slices.Contains(c.open, name) {
					want = "ALLOWED"
				}
				if before != "ALLOWED" || got[name] != want {
					t.Errorf("%s came to %s, want %s; without the programs to %s", name, got[name], want, before)
				}
			}
			if err := g.Detach(); err != nil {
				t.Error(err)
			}
		})
	}
}
