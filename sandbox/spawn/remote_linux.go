package spawn

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi"
)

// The daemon and monroe up speak over a pair of SOCK_SEQPACKET sockets: one message,
// one datagram. monroe up says what stands (greeting); after that each datagram of the
// daemon is a request with its descriptors, the first of which is the control socket of
// that worker, again SOCK_SEQPACKET. There monroe up answers with an outcome when the
// process runs or cannot, and with another at its end. Any byte from the daemon there,
// or the end of it, is the process's end.
type (
	greeting struct {
		Walls    Walls      `json:"walls"`
		Digest   abi.Digest `json:"digest"` // of the worker program
		Insecure bool       `json:"insecure"`
	}
	request struct {
		Mode         Mode          `json:"mode"`
		CPU          time.Duration `json:"cpu_ns"`
		Memory       int64         `json:"memory"`
		Without      []string      `json:"without,omitempty"`
		NoNamespaces bool          `json:"no_namespaces,omitempty"`
		NoGroups     bool          `json:"no_groups,omitempty"`
		Insecure     bool          `json:"insecure,omitempty"`
		Env          []string      `json:"env,omitempty"`
	}
	outcome struct {
		PID    int           `json:"pid,omitempty"`
		Error  string        `json:"error,omitempty"`
		Ended  bool          `json:"ended,omitempty"`
		Status uint32        `json:"status,omitempty"`
		CPU    time.Duration `json:"cpu_ns,omitempty"`
		Memory bool          `json:"memory,omitempty"`
	}
)

const (
	// maxRequest is the longest datagram of either side, in bytes.
	maxRequest = 16 << 10
	// variable names the descriptor that a daemon inherits.
	variable = "MONROE_SPAWNER"
)

// A Remote starts workers through monroe up, which has the privilege that this process
// has given up. Its methods are safe for concurrent use.
type Remote struct {
	channel *net.UnixConn
	greeting
}

// Inherited takes over what a privileged monroe up gave this process; nil means that it
// gave nothing. The variable is taken out of the environment.
func Inherited() (*Remote, error) {
	text := os.Getenv(variable)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q is not what monroe up passes", variable, text)
	}
	unix.CloseOnExec(fd)
	return Attach(os.NewFile(uintptr(fd), "spawner"))
}

// Attach speaks to monroe up over f, which it closes.
func Attach(f *os.File) (*Remote, error) {
	channel, err := packetConn(f)
	if err != nil {
		return nil, fmt.Errorf("the spawner of monroe up: %w", err)
	}
	r := &Remote{channel: channel}
	err = channel.SetReadDeadline(time.Now().Add(ReadyWithin))
	var n int
	text := make([]byte, maxRequest)
	if err == nil {
		n, err = channel.Read(text)
	}
	if err == nil {
		err = json.Unmarshal(text[:n], &r.greeting)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the spawner of monroe up does not greet: %w", err), channel.Close())
	}
	return r, nil
}

// packetConn takes a file over as a SOCK_SEQPACKET connection.
func packetConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f)
	err = errors.Join(err, f.Close())
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		return nil, errors.Join(errors.New("it is not a socket for packets"), conn.Close())
	}
	return u, nil
}

// UID is the user that workers run as.
func (r *Remote) UID() uint32 { return r.Walls.UID }

// Close lets go of monroe up, which ends all workers.
func (r *Remote) Close() error { return r.channel.Close() }

// New returns a Spawner whose processes monroe up forks. Its UID is of no effect: the
// daemon does not choose it.
func (r *Remote) New(insecure bool) (*Spawner, error) {
	if err := keepDescriptors(); err != nil {
		return nil, err
	}
	return newSpawner(remoteForker{r}, r.Digest, insecure), nil
}

// remoteForker is a Remote as one Spawner uses it. What is left when that closes are
// processes that it has waited for.
type remoteForker struct{ r *Remote }

func (f remoteForker) stop()        {}
func (f remoteForker) close() error { return nil }

func (f remoteForker) walls(o omitted) Walls { return o.from(f.r.Walls) }

func (f remoteForker) fork(b birth) (child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close() //nolint:errcheck // monroe up has its own
	control, err := packetConn(os.NewFile(uintptr(pair[0]), "control"))
	if err != nil {
		return nil, err
	}
	q := request{
		Mode: b.mode, CPU: b.cpu, Memory: b.memory, Without: b.without, NoNamespaces: b.omitted.namespaces, NoGroups: b.omitted.groups,
		Insecure: b.insecure && (b.mode == ModeCanary || f.r.Insecure),
	}
	files := []*os.File{theirs, b.socket, b.stderr, b.dir}
	if b.plugin != nil {
		q.Env, files = b.plugin.env, append(files, b.plugin.stdout, b.plugin.program)
	}
	text, err := json.Marshal(q)
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	fds := make([]int, len(files))
	for i, x := range files {
		fds[i] = int(x.Fd())
	}
	_, _, err = f.r.channel.WriteMsgUnix(text, unix.UnixRights(fds...), nil)
	_ = theirs.Close() // so that the end of the other side is seen
	var o outcome
	if err == nil {
		err = control.SetReadDeadline(time.Now().Add(ReadyWithin))
	}
	if err == nil {
		o, err = readOutcome(control)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("monroe up does not answer: %w", err)
	case o.Error != "":
		err = fmt.Errorf("monroe up refuses: %s", Escape(o.Error))
	case o.PID <= 0:
		err = errors.New("monroe up names no process")
	}
	if err == nil {
		err = control.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return &remoteChild{control: control, id: o.PID}, nil
}

func readOutcome(control *net.UnixConn) (o outcome, err error) {
	text := make([]byte, maxRequest)
	n, err := control.Read(text)
	if errors.Is(err, unix.ECONNRESET) { // closed with a second kill unread; said once, before what was sent
		n, err = control.Read(text)
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(text[:n], &o)
}

// remoteChild is a process that monroe up forked.
type remoteChild struct {
	control *net.UnixConn
	id      int
}

func (c *remoteChild) pid() int { return c.id }

func (c *remoteChild) kill() { _, _ = c.control.Write([]byte{1}) } // a closed socket is an ended process

func (c *remoteChild) wait() ending {
	o, err := readOutcome(c.control)
	_ = c.control.Close()
	if err != nil || !o.Ended {
		return ending{err: fmt.Errorf("monroe up let go of the worker: %w", errors.Join(err))}
	}
	e := ending{status: syscall.WaitStatus(o.Status), cpu: o.CPU, memory: o.Memory}
	if o.Error != "" {
		e.err = errors.New(Escape(o.Error))
	}
	return e
}
