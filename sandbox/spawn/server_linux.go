package spawn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// MaxLive is how many workers a daemon may have at a time through a Server.
const MaxLive = 256

// ServerConfig is what a privileged monroe up decides, and no daemon.
type ServerConfig struct {
	Program   string // the worker
	WorkerUID uint32 // user and group of workers; neither 0 nor the daemon's
	DaemonUID uint32
	DaemonGID uint32
	// Groups is where workers get their control groups; nil means nowhere, and GroupsWhy
	// says why. It stays the caller's.
	Groups    *cgroup.Tree
	GroupsWhy []string
	Insecure  bool // workers may lack a part of the minimum
	MaxLive   int  // 0 means the constant
}

// A Server forks workers for a daemon that has no privilege, and trusts nothing that
// the daemon says: modes, limits and descriptors are those of a closed list, or nothing
// is started and nothing stays open. What a daemon in an attacker's hands reaches
// through it is a confined worker, at most.
//
// A plugin's program is the daemon's choice: its launcher is the worker program, which
// confines itself first, so that it is no more than a worker either.
type Server struct {
	cfg    ServerConfig
	n      *nursery
	greets []byte

	mu      sync.Mutex
	channel *net.UnixConn
	served  chan struct{} // closed when the daemon of channel has no worker any more
}

// NewServer opens and hashes the worker program and tries the walls.
func NewServer(c ServerConfig) (*Server, error) {
	if c.WorkerUID == 0 || c.WorkerUID == c.DaemonUID {
		return nil, fmt.Errorf("workers need a user of their own, and %d is root's or the daemon's: name another with --worker-uid", c.WorkerUID)
	}
	if c.MaxLive == 0 {
		c.MaxLive = MaxLive
	}
	if err := keepDescriptors(); err != nil {
		return nil, err
	}
	n, err := newNursery(c.Program)
	if err != nil {
		return nil, err
	}
	n.uid, n.lender = c.WorkerUID, owner{int(c.DaemonUID), int(c.DaemonGID)}
	n.groups.tree, n.lacking, n.own = c.Groups, c.GroupsWhy, false
	n.opened.Do(func() {})
	s := &Server{cfg: c, n: n}
	err = n.share()
	if err == nil {
		s.greets, err = json.Marshal(greeting{Walls: n.walls(omitted{}), Digest: n.digest, Insecure: c.Insecure})
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Hand gives a daemon that is about to start its end of a new channel, and serves it
// until End or Close. The caller closes what was added to the command's files after the
// start.
func (s *Server) Hand(cmd *exec.Cmd) error {
	s.End()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "spawner")
	channel, err := packetConn(os.NewFile(uintptr(pair[0]), "spawner"))
	if err == nil {
		_, err = channel.Write(s.greets)
	}
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", variable, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	served := make(chan struct{})
	s.mu.Lock()
	s.channel, s.served = channel, served
	s.mu.Unlock()
	go s.serve(channel, served)
	return nil
}

// End kills the workers of the daemon and waits for them.
func (s *Server) End() {
	s.mu.Lock()
	channel, served := s.channel, s.served
	s.mu.Unlock()
	if channel != nil {
		_ = channel.Close()
		<-served
	}
}

// Close is End, and frees the program.
func (s *Server) Close() error {
	s.End()
	s.n.stop()
	return s.n.close()
}

// wards are the workers of one daemon.
type wards struct {
	mu   sync.Mutex
	live map[child]struct{}
	all  sync.WaitGroup
}

// serve answers requests one after the other.
func (s *Server) serve(channel *net.UnixConn, served chan<- struct{}) {
	defer close(served)
	w := &wards{live: map[child]struct{}{}}
	text, oob := make([]byte, maxRequest+1), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, on, flags, _, err := channel.ReadMsgUnix(text, oob)
		fds := rights(oob[:max(on, 0)])
		if err != nil || n == 0 && on == 0 {
			closeAll(fds)
			break
		}
		whole := flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0 && n <= maxRequest
		s.answer(w, text[:n], fds, whole)
		closeAll(fds)
	}
	_ = channel.Close()
	w.mu.Lock()
	for c := range w.live {
		c.kill()
	}
	w.mu.Unlock()
	w.all.Wait()
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // whatever it was
	}
}

// answer starts the worker of a request, or says why not if there is a control socket
// to say it on. The descriptors stay the caller's.
func (s *Server) answer(w *wards, text []byte, fds []int, whole bool) {
	if len(fds) == 0 || checkSocket(fds[0], unix.SOCK_SEQPACKET) != nil {
		return
	}
	if unix.SetNonblock(fds[0], true) != nil {
		return
	}
	control, err := duplicate(fds[0])
	if err != nil {
		return
	}
	c, err := s.start(w, text, fds, whole)
	if err != nil {
		say(control, outcome{Error: clip(err.Error())})
		_ = control.Close()
		return
	}
	w.mu.Lock()
	w.live[c] = struct{}{}
	w.mu.Unlock()
	say(control, outcome{PID: c.pid()})
	w.all.Go(func() {
		gone := make(chan struct{})
		go func() {
			hear(control)
			c.kill()
			close(gone)
		}()
		e := c.wait()
		w.mu.Lock()
		delete(w.live, c)
		w.mu.Unlock()
		o := outcome{Ended: true, Status: uint32(e.status), CPU: e.cpu, Memory: e.memory}
		if e.err != nil {
			o.Error = clip(e.err.Error())
		}
		say(control, o)
		_ = control.Close()
		<-gone
	})
}

func clip(s string) string { return s[:min(len(s), 1<<10)] }

// start holds a request against what there is, and forks.
func (s *Server) start(w *wards, text []byte, fds []int, whole bool) (child, error) {
	if !whole {
		return nil, errors.New("the request is too long")
	}
	q, err := s.parse(text)
	if err != nil {
		return nil, err
	}
	if err := s.checkDescriptors(q.Mode, fds); err != nil {
		return nil, err
	}
	if int(s.n.live.Load()) >= s.cfg.MaxLive {
		return nil, fmt.Errorf("there are %d workers already", s.cfg.MaxLive)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // the child has its own
		}
	}()
	for _, fd := range fds[1:] {
		f, err := duplicate(fd)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	b := birth{
		mode: q.Mode, cpu: q.CPU, memory: q.Memory, without: q.Without, omitted: omitted{q.NoNamespaces, q.NoGroups}, insecure: q.Insecure,
		socket: files[0], stderr: files[1], dir: files[2],
	}
	if q.Mode == ModePlugin {
		b.plugin = &pluginStart{stdout: files[3], program: files[4], env: q.Env}
	}
	return s.n.fork(b)
}

// parse reads a request; anything that is not in the lists is refused.
func (s *Server) parse(text []byte) (q request, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, fmt.Errorf("the request cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, errors.New("the request has something after it")
	}
	canary := q.Mode == ModeCanary
	switch {
	case !slices.Contains([]Mode{ModeRun, ModeCompile, ModeCanary, ModePlugin}, q.Mode):
		return q, fmt.Errorf("the mode %q is unknown", q.Mode)
	case q.Memory <= 0 || q.Memory > memoryOf(q.Mode):
		return q, fmt.Errorf("memory is 1 to %d bytes for %s", memoryOf(q.Mode), q.Mode)
	case q.CPU < 0 || q.Mode == ModeCompile && (q.CPU == 0 || q.CPU > CompileCPU):
		return q, fmt.Errorf("%v of processor time are not for %s", q.CPU, q.Mode)
	case !canary && (len(q.Without) > 0 || q.NoNamespaces || q.NoGroups):
		return q, fmt.Errorf("only a %s can be without a wall", ModeCanary)
	case q.Insecure && !canary && !s.cfg.Insecure:
		return q, errors.New("monroe up was not started with --insecure-dev")
	case q.Mode != ModePlugin && len(q.Env) > 0:
		return q, fmt.Errorf("only a %s has an environment", ModePlugin)
	}
	for _, wall := range q.Without {
		if !slices.Contains([]string{"landlock", "seccomp", "rlimits"}, wall) {
			return q, fmt.Errorf("the wall %q is unknown", wall)
		}
	}
	for _, e := range q.Env { // the launcher runs with it before it is confined
		if name, value, ok := strings.Cut(e, "="); !ok || !envForm.MatchString(name) || strings.ContainsRune(value, 0) {
			return q, fmt.Errorf("a %s has no %q in its environment", ModePlugin, name)
		}
	}
	return q, nil
}

// envForm are the variables of a plugin's handshake, two that bound its runtime, and one that
// spares it the look for a time zone.
var envForm = regexp.MustCompile(`^((MONROE|PLUGIN)_[A-Z_]{1,40}|GOMAXPROCS|GOMEMLIMIT|TZ)$`)

// checkDescriptors holds number and kinds against what a mode takes.
func (s *Server) checkDescriptors(m Mode, fds []int) error {
	want := 4
	if m == ModePlugin {
		want = 6
	}
	if len(fds) != want {
		return fmt.Errorf("%d descriptors, %s takes %d", len(fds), m, want)
	}
	lent := m == ModeCompile || m == ModePlugin
	err := errors.Join(checkSocket(fds[1], unix.SOCK_STREAM), checkPipe(fds[2]), s.checkDir(fds[3], lent))
	if m == ModePlugin {
		err = errors.Join(err, checkPipe(fds[4]), checkProgram(fds[5]))
	}
	return err
}

func checkSocket(fd, kind int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return errors.New("a descriptor is not a Unix socket")
	}
	is, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || err2 != nil || is != kind || listens != 0 {
		return errors.New("a socket is of another kind")
	}
	return nil
}

// stat is what a descriptor is and how it was opened.
func stat(fd int) (st unix.Stat_t, flags int, err error) {
	if err = unix.Fstat(fd, &st); err == nil {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	}
	return st, flags, err
}

func checkPipe(fd int) error {
	st, flags, err := stat(fd)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || flags&unix.O_ACCMODE != unix.O_WRONLY || flags&unix.O_PATH != 0 {
		return errors.New("a descriptor is not the end of a pipe that is written to")
	}
	return nil
}

func checkProgram(fd int) error {
	st, flags, err := stat(fd)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_PATH != 0 {
		return errors.New("a descriptor is not a file that was opened for reading")
	}
	return nil
}

// checkDir wants a directory of the daemon's, and an empty one if it is to be lent.
func (s *Server) checkDir(fd int, lent bool) error {
	st, flags, err := stat(fd)
	switch {
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || flags&unix.O_PATH != 0:
		return errors.New("a descriptor is not a directory that was opened for reading")
	case st.Uid != s.cfg.DaemonUID:
		return errors.New("the directory is not the daemon's")
	case !lent:
		return nil
	}
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the directory cannot be looked into: %w", err)
	}
	f := os.NewFile(uintptr(again), "directory")
	defer f.Close() //nolint:errcheck // opened for reading
	if list, err := f.Readdirnames(1); len(list) > 0 || !errors.Is(err, io.EOF) {
		return errors.New("the directory is not empty")
	}
	return nil
}

// duplicate is a descriptor high enough that a fork, which moves a worker's own to 3 and
// up, does not close it.
func duplicate(fd int) (*os.File, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(again), strconv.Itoa(again)), nil
}

// The daemon holds the same open socket and may make it block: the two below never
// wait in the kernel.

// say sends an outcome. A daemon that does not listen misses it.
func say(control *os.File, o outcome) {
	text, err := json.Marshal(o)
	raw, err2 := control.SyscallConn()
	if err != nil || err2 != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.Sendmsg(int(fd), text, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
}

// hear returns when the daemon says anything, lets go of the socket, or the socket is
// closed here.
func hear(control *os.File) {
	raw, err := control.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
}
