package spawn

import (
	"encoding/json"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEndOfAKilledWorkerIsHeard: monroe up says how a worker ended and closes while the
// daemon's kill is still unread. The kernel answers the next read with a reset, and keeps
// what was said for the one after.
func TestEndOfAKilledWorkerIsHeard(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	control, err := packetConn(os.NewFile(uintptr(pair[0]), "control"))
	if err != nil {
		t.Fatal(err)
	}
	c := &remoteChild{control: control, id: 1}
	c.kill()
	text, err := json.Marshal(outcome{Ended: true, Status: uint32(unix.SIGXCPU)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pair[1], text); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	if e := c.wait(); e.err != nil || e.status.Signal() != unix.SIGXCPU {
		t.Errorf("it ended with %v, %v", e.status, e.err)
	}
}
