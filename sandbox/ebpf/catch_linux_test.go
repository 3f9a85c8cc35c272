package ebpf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"

	kernel "github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/ebpf"
)

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
