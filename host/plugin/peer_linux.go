package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// dial connects to the socket of the handshake and makes sure that the process that was
// started is the one that listens there.
func (r *run) dial(ctx context.Context, _ string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", r.socket)
	if err != nil {
		return nil, err
	}
	raw, err := c.(*net.UnixConn).SyscallConn() // a dial of "unix" returns nothing else
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	var peer *unix.Ucred
	var failed error
	if err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err == nil {
		err = failed
	}
	if err == nil && int(peer.Pid) != r.p.PID() {
		r.alarm("another process listens on its socket")
		err = fmt.Errorf("process %d listens there, not the plugin", peer.Pid)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
