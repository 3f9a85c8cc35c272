// Package plugin lets programs of the operator's be connectors and scanners.
//
// Laws, each with a test:
//
//  1. What the operator pinned counts. A plugin that describes itself otherwise is
//     refused (TestLinuxPluginsThatDoNotComeUp).
//  2. A plugin names one socket in its own directory, and who listens there is the
//     process that was started (TestLinuxPluginsThatDoNotComeUp,
//     TestAnotherProcessOnItsSocket).
//  3. It says what would be sent and never what it costs, who may do it, with whose
//     credential, or under which key (TestLinuxPluginsThatMisbehave).
//  4. Whatever it answers, or fails to answer in time, is a refusal; the process is
//     ended and started again after a while that doubles (TestPauses).
//  5. Its replies are external (TestLinuxConnectorPlugin). Its refusals and findings are
//     ids, so that no words of it appear as the host's.
//  6. A scanner that is down holds everything back (TestLinuxScannerPlugin).
//  7. The host opens no stream to it, so that it cannot push
//     (TestAPluginThatLiesInTheProtocol).
//  8. What it claims or does and may not is told to whoever listens, in the host's
//     words (TestLinuxALyingPluginIsNamed).
//
// The tests named TestLinux are in cmd/monroed, where the walls are.
//
// It knows go-plugin, the protocol and backing off. It must not know how a process is
// confined (cmd/monroed hands that in), grants or the store.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	hclog "github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors/plugin"
)

// Limits of a plugin.
const (
	// StartWithin is how long it may take until it listens, and again until it has
	// described itself.
	StartWithin = 10 * time.Second
	// CallWithin is how long one call may take.
	CallWithin = 5 * time.Second
	// FirstPause is how long a plugin that failed is left alone; it doubles up to
	// LastPause with each failure in a row.
	FirstPause = time.Second
	LastPause  = time.Minute
	// MaxLine is how many bytes of standard output are looked at for the handshake.
	MaxLine = 4 << 10
	// MaxReply is how many bytes the reply of one call may have.
	MaxReply = abi.MaxReply
)

// ErrPinned is wrapped when a plugin is not what the operator pinned. Trying again does
// not help.
var ErrPinned = errors.New("it is not what the operator pinned")

// A Process is a started plugin.
type Process interface {
	PID() int
	// Stdout is read and closed by whoever started it.
	Stdout() io.ReadCloser
	// Stderr is what it printed, bounded and escaped.
	Stderr() string
	// NoFiles says that it has come up: from now on it has no reason to look for files.
	NoFiles()
	Kill()
	Wait() error
	Done() <-chan struct{}
}

// Config is one plugin.
type Config struct {
	Name string
	// Dir is where its socket's directory is made; it holds nothing else.
	Dir string
	// Start starts its program on a private directory with this environment, confined.
	// An error that wraps ErrPinned is final.
	Start func(ctx context.Context, dir string, env []string) (Process, error)
	// Alarm is told what the plugin claimed or did and may not, in the host's words. It
	// must not block. nil means that nobody listens.
	Alarm func(what string)
	Now   func() time.Time
	Log   *slog.Logger
	// CallWithin is for tests; 0 means the constant.
	CallWithin time.Duration
}

// A supervisor keeps one plugin going.
type supervisor struct {
	Config
	kind string
	// describe says whether a started plugin is what was pinned.
	describe func(context.Context, *grpc.ClientConn) error

	mu     sync.Mutex
	now    *running
	pause  time.Duration
	until  time.Time // before which it is not started again
	failed error     // why
	closed bool
}

// running is one process and the connection to it.
type running struct {
	conn   *grpc.ClientConn
	client *goplugin.Client
	run    *run
}

func (r *running) dead() bool {
	select {
	case <-r.run.p.Done():
		return true
	default:
		return false
	}
}

// end kills the process and frees what belonged to it.
func (r *running) end() {
	r.run.p.Kill()
	<-r.run.p.Done()
	r.client.Kill() // finds it dead, and removes its directory
	_ = r.conn.Close()
	r.run.close()
}

func newSupervisor(c Config, kind string, describe func(context.Context, *grpc.ClientConn) error) (*supervisor, error) {
	if err := os.RemoveAll(c.Dir); err != nil { // what a daemon before this one left
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CallWithin == 0 {
		c.CallWithin = CallWithin
	}
	if c.Alarm == nil {
		c.Alarm = func(string) {}
	}
	return &supervisor{Config: c, kind: kind, describe: describe}, nil
}

// call makes one call, and ends a plugin that does not answer it in time. What comes
// back says nothing of the plugin's own.
func (s *supervisor) call(ctx context.Context, f func(context.Context, *grpc.ClientConn) error) *abi.Denial {
	r, denial := s.get()
	if denial != nil {
		return denial
	}
	ctx, cancel := context.WithTimeout(ctx, s.CallWithin)
	defer cancel()
	err := f(ctx, r.conn)
	if err == nil {
		return nil
	}
	code := status.Code(err)
	late := code == codes.DeadlineExceeded // its end of the connection may see it first
	if late || code == codes.Unavailable || r.dead() {
		s.drop(r, fmt.Errorf("a call of it failed: %s", code))
	}
	reason := "the plugin " + s.Name + " failed"
	switch {
	case late:
		reason = "the plugin " + s.Name + " did not answer in time"
		s.Alarm("it did not answer in time")
	case broken[code] != "":
		s.Alarm(broken[code])
	}
	return &abi.Denial{Code: abi.Upstream, Reason: reason, Remedy: "try again later, or tell the operator"}
}

// broken are the codes that no plugin fails honestly with.
var broken = map[codes.Code]string{
	codes.ResourceExhausted: "its answer is larger than the protocol allows",
	codes.Internal:          "its answer breaks the protocol", // also what gRPC makes of two answers, of none, and of bytes that are no message
	codes.Unimplemented:     "it does not serve a call of the protocol",
}

// get returns the running plugin and starts it if it is its time.
func (s *supervisor) get() (*running, *abi.Denial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil && s.now.dead() {
		r := s.now
		s.fail(fmt.Errorf("it ended; it printed: %s", r.run.p.Stderr()))
		r.end()
	}
	if s.now != nil {
		return s.now, nil
	}
	if s.closed || s.Now().Before(s.until) {
		return nil, s.down()
	}
	r, err := s.start()
	if err != nil {
		s.fail(err)
		return nil, s.down()
	}
	s.now, s.failed, s.pause = r, nil, s.pause/2
	return r, nil
}

func (s *supervisor) down() *abi.Denial {
	if errors.Is(s.failed, ErrPinned) {
		return abi.Deny(abi.ConnectorRevoked, "the plugin "+s.Name+" is not what the operator pinned", "ask the operator")
	}
	return abi.Deny(abi.Upstream, "the plugin "+s.Name+" is down", "try again later, or tell the operator")
}

// fail notes why the plugin is down, and for how long it is left alone.
func (s *supervisor) fail(err error) {
	s.now, s.failed = nil, err
	s.pause = min(max(2*s.pause, FirstPause), LastPause)
	s.until = s.Now().Add(s.pause)
	s.Log.Error("a plugin is down", slog.String("plugin", s.Name), slog.String("error", err.Error()), slog.Duration("pause", s.pause))
}

// drop ends a plugin that failed, unless somebody else did meanwhile.
func (s *supervisor) drop(r *running, err error) {
	s.mu.Lock()
	mine := s.now == r
	if mine {
		s.fail(err)
	}
	s.mu.Unlock()
	if mine {
		r.end()
	}
}

// Close ends the plugin.
func (s *supervisor) Close() error {
	s.mu.Lock()
	r := s.now
	s.now, s.closed = nil, true
	s.mu.Unlock()
	if r != nil {
		r.end()
	}
	return os.RemoveAll(s.Dir)
}

// start starts the program, connects and asks what it is.
func (s *supervisor) start() (_ *running, err error) {
	proc := &run{name: s.Name, start: s.Start, alarm: s.Alarm}
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  plugin.Handshake,
		Plugins:          goplugin.PluginSet{s.kind: dispensed{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		SkipHostEnv:      true,
		StartTimeout:     StartWithin,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: s.Dir},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return proc, proc.prepare(cmd.Env, dir)
		},
		Logger: hclog.NewNullLogger(), // it would repeat the plugin's words
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithContextDialer(proc.dial),
			grpc.WithStreamInterceptor(noStreams),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(plugin.MaxMessage), grpc.MaxCallSendMsgSize(plugin.MaxMessage)),
			grpc.WithMaxHeaderListSize(16 << 10),
			grpc.WithDisableServiceConfig(),
		},
	})
	defer func() {
		if err != nil {
			printed := ""
			if proc.p != nil {
				proc.p.Kill()
				<-proc.p.Done()
				printed = proc.p.Stderr()
			}
			client.Kill()
			proc.close()
			if printed != "" {
				err = fmt.Errorf("%w; it printed: %s", err, printed)
			}
		}
	}()
	protocol, err := client.Client()
	if err != nil {
		return nil, fmt.Errorf("it does not come up: %w", quoted(err))
	}
	conn, err := protocol.Dispense(s.kind)
	if err != nil {
		return nil, fmt.Errorf("it does not come up: %w", quoted(err))
	}
	proc.p.NoFiles()
	r := &running{conn: conn.(*grpc.ClientConn), client: client, run: proc} // dispensed returns nothing else
	ctx, cancel := context.WithTimeout(context.Background(), StartWithin)
	defer cancel()
	if err := s.describe(ctx, r.conn); err != nil {
		switch code := status.Code(err); {
		case errors.Is(err, ErrPinned):
			s.Alarm(err.Error())
		case broken[code] != "":
			s.Alarm(broken[code])
		}
		return nil, err
	}
	return r, nil
}

// quoted keeps an error's chain, and makes its text, which may hold what the plugin
// printed, safe for a log.
func quoted(err error) error { return quotedError{err} }

type quotedError struct{ err error }

func (q quotedError) Error() string { return fmt.Sprintf("%.1000q", q.err.Error()) }
func (q quotedError) Unwrap() error { return q.err }

// noStreams refuses what go-plugin opens beside the calls: over its streams a plugin
// could push without being asked, and the library would keep it.
func noStreams(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "this host opens no streams to plugins")
}

// dispensed hands the bare connection out.
type dispensed struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (dispensed) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the host serves no plugin")
}

func (dispensed) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// run is go-plugin's runner over a confined process.
type run struct {
	name  string
	start func(context.Context, string, []string) (Process, error)
	alarm func(string)

	env  []string
	dir  string
	open *os.File // the directory, so that its path can be of any length
	p    Process
	line io.ReadCloser
	// socket is where it listens; set by PluginToHost, which comes before every dial.
	socket string
}

// prepare makes the environment: what go-plugin sets, and nothing of this process's.
// The directory is the plugin's working directory, and so needs no path.
func (r *run) prepare(env []string, dir string) (err error) {
	for _, e := range env {
		if !strings.HasPrefix(e, goplugin.EnvUnixSocketDir+"=") {
			r.env = append(r.env, e)
		}
	}
	r.env = append(r.env, goplugin.EnvUnixSocketDir+"=.", "GOMAXPROCS=2", "GOMEMLIMIT=384MiB", "TZ=UTC")
	r.dir = dir
	r.open, err = os.Open(dir)
	return err
}

func (r *run) close() {
	if r.open != nil {
		_ = r.open.Close()
	}
}

func (r *run) Start(ctx context.Context) (err error) {
	if r.p, err = r.start(ctx, r.dir, r.env); err != nil {
		if errors.Is(err, ErrPinned) {
			r.alarm(err.Error())
		}
		return err
	}
	from, to := io.Pipe()
	r.line = from
	go func() {
		defer r.p.Stdout().Close() //nolint:errcheck // a pipe that was read
		_ = to.CloseWithError(firstLine(to, r.p.Stdout()))
		_, _ = io.Copy(io.Discard, r.p.Stdout()) // so that it never blocks on a full pipe
	}()
	return nil
}

// firstLine copies the handshake, of which it takes MaxLine bytes at most.
func firstLine(to io.Writer, from io.Reader) error {
	one := make([]byte, 1)
	for range MaxLine {
		n, err := from.Read(one)
		if n == 1 {
			if _, err := to.Write(one); err != nil || one[0] == '\n' {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return errors.New("its first line is too long")
}

func (r *run) Diagnose(context.Context) string { return "" }
func (r *run) Stdout() io.ReadCloser           { return r.line }

// Stderr is empty for the library: the process keeps a bounded part itself.
func (r *run) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }
func (r *run) Name() string          { return r.name }

func (r *run) Wait(context.Context) error {
	<-r.p.Done()
	return r.p.Wait()
}

func (r *run) Kill(context.Context) error {
	r.p.Kill()
	return nil
}

// ID is empty while there is no process, so that nothing is waited for.
func (r *run) ID() string {
	if r.p == nil {
		return ""
	}
	return fmt.Sprint(r.p.PID())
}

// PluginToHost accepts one thing: a Unix socket right in the plugin's own directory.
func (r *run) PluginToHost(network, address string) (string, string, error) {
	name := strings.TrimPrefix(address, "./")
	if network != "unix" || name == "" || name == "." || name == ".." || len(name) > 64 || strings.ContainsAny(name, "/\x00@") {
		err := errors.New("it names something else than a socket in its directory")
		r.alarm(err.Error())
		return "", "", err
	}
	r.socket = filepath.Join(fmt.Sprintf("/proc/self/fd/%d", r.open.Fd()), name)
	return "unix", r.socket, nil
}

func (r *run) HostToPlugin(string, string) (string, string, error) {
	return "", "", errors.New("nothing of the host is for a plugin")
}
