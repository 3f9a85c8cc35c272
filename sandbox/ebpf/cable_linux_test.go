package ebpf_test

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// ipv4 is ETH_P_IP as it lies in a frame.
const ipv4 = 0x0008

// pass sends a connected and an unconnected socket that were made outside over a pair of
// Unix sockets, of which it returns the end to receive from. Nobody else holds them.
func pass(t *testing.T, port int) *os.File {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	from, to := os.NewFile(uintptr(pair[0]), "from"), os.NewFile(uintptr(pair[1]), "to")
	t.Cleanup(func() { to.Close() })
	defer from.Close()
	connected, unconnected := outside(t, port)
	defer connected.Close()
	defer unconnected.Close()
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(connected.Fd()), int(unconnected.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	return to
}

// received are the descriptors that lie in a Unix socket.
func received(fd int) ([]int, error) {
	control := make([]byte, unix.CmsgSpace(2*4))
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), control, 0)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("there is no descriptor"))
	}
	return unix.ParseUnixRights(&messages[0])
}

// A cable is a pair of virtual network cards, each in a network namespace of its own.
type cable struct {
	near *os.File // the namespace to send from
	far  int      // a packet socket on the other end
}

func newCable(t *testing.T) cable {
	t.Helper()
	c, far := cable{}, (*os.File)(nil)
	for _, ns := range []**os.File{&c.near, &far} {
		if err := aside(func() (err error) {
			if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			*ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*ns).Close() })
	}
	if err := inside(c.near, func() error { return plugIn(int(far.Fd())) }); err != nil {
		t.Fatal(err)
	}
	if err := inside(far, func() (err error) {
		if c.far, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ipv4); err != nil {
			return err
		}
		card, err := unix.NewIfreq(farName)
		if err != nil {
			return err
		}
		card.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(c.far, unix.SIOCSIFFLAGS, card)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.far) })
	if err := unix.SetsockoptTimeval(c.far, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return c
}

// arrived is the first IPv4 packet that comes out of the far end.
func (c cable) arrived() ([]byte, error) {
	got := make([]byte, 1500)
	n, _, err := unix.Recvfrom(c.far, got, 0)
	return got[:max(n, 0)], err
}

// aside does something to a thread that ends with it.
func aside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets this thread
		done <- f()
	}()
	return <-done
}

func inside(ns *os.File, f func() error) error {
	return aside(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// sendOverCable makes a packet socket where the near end is, and sends to all.
func sendOverCable(ns int, packet []byte) error {
	return aside(func() error {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ipv4)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		card, err := unix.NewIfreq(nearName)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, card); err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: int(card.Uint32()), Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
		return unix.Sendto(fd, packet, 0, to)
	})
}

const (
	nearName     = "near0"
	farName      = "far0"
	vethInfoPeer = 1 // VETH_INFO_PEER
)

// plugIn makes a cable from this thread's namespace to another one. The far end is
// made first and can be up only when the near one is there.
func plugIn(far int) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	down, up := make([]byte, unix.SizeofIfInfomsg), make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(up[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(up[12:], unix.IFF_UP)
	peer := slices.Concat(down, attribute(unix.IFLA_IFNAME, []byte(farName+"\x00")), attribute(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(far))))
	body := slices.Concat(up, attribute(unix.IFLA_IFNAME, []byte(nearName+"\x00")), attribute(unix.IFLA_LINKINFO,
		attribute(unix.IFLA_INFO_KIND, []byte("veth\x00")), attribute(unix.IFLA_INFO_DATA, attribute(vethInfoPeer, peer))))
	head := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(head, uint32(len(head)+len(body)))
	binary.NativeEndian.PutUint16(head[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint16(head[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if err := unix.Sendto(fd, append(head, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel did not acknowledge the cable")
	}
	if no := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); no != 0 {
		return unix.Errno(-no)
	}
	return nil
}

// attribute is one netlink attribute, of parts, padded.
func attribute(kind uint16, parts ...[]byte) []byte {
	value := slices.Concat(parts...)
	a := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), value...)
	return append(a, make([]byte, -len(a)&3)...)
}
