package plugin_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/plugin/pluginpb"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/plugin"
)

// liar is a plugin in this process that answers as a test says, whatever the protocol
// allows.
type liar struct {
	pid    int
	end    chan struct{}
	once   sync.Once
	stdout io.ReadCloser
	server *grpc.Server
}

func (l *liar) PID() int              { return l.pid }
func (l *liar) Stdout() io.ReadCloser { return l.stdout }
func (l *liar) Stderr() string        { return "" }
func (l *liar) NoFiles()              {}
func (l *liar) Kill()                 { l.once.Do(func() { l.server.Stop(); close(l.end) }) }
func (l *liar) Wait() error           { <-l.end; return nil }
func (l *liar) Done() <-chan struct{} { return l.end }

type world struct {
	connector *plugin.Connector
	scanner   *plugin.Scanner
	mu        sync.Mutex
	alarms    []string
	asked     []string // methods, as the plugin saw them
}

func (w *world) told() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.alarms, "; ")
}

// lying starts a plugin that says it is process pid and answers Plan by a function. A
// call may take as long as given; 0 means what it may outside tests.
func lying(t *testing.T, pid int, within time.Duration, plan func(grpc.ServerStream) error) *world {
	t.Helper()
	return serving(t, pid, within, func(s grpc.ServerStream) error {
		if err := s.RecvMsg(&pluginpb.DescribeRequest{}); err != nil {
			return err
		}
		return s.SendMsg(&pluginpb.Description{Operations: []*pluginpb.Operation{{
			Name: "x.read", Version: 1, Effect: "read", Replay: "pure", Summary: "Reads.", Args: []byte("{}"), Allow: []*pluginpb.Pattern{{Method: "GET", Url: "https://x.example/**"}},
		}}})
	}, plan)
}

// serving starts a connector that answers Describe and all else by functions.
func serving(t *testing.T, pid int, within time.Duration, describe, plan func(grpc.ServerStream) error) *world {
	t.Helper()
	w := &world{}
	c, err := plugin.NewConnector(w.config(t, pid, within, describe, plan), pinned())
	w.started(t, c, err)
	w.connector = c
	return w
}

// scanning starts a scanner of which one finding is pinned, and that says of itself and
// of what it is shown what a test says.
func scanning(t *testing.T, has []string, finds string) *world {
	t.Helper()
	w := &world{}
	say := func(m proto.Message) func(grpc.ServerStream) error {
		return func(s grpc.ServerStream) error { // the question is not looked at
			if err := s.RecvMsg(&pluginpb.DescribeRequest{}); err != nil {
				return err
			}
			return s.SendMsg(m)
		}
	}
	x, err := plugin.NewScanner(w.config(t, os.Getpid(), 0, say(&pluginpb.Description{Findings: has}), say(&pluginpb.ScanReply{Finding: finds})),
		[]plugin.Finding{{ID: "card_number", Reason: "a payment card's number"}})
	w.started(t, x, err)
	w.scanner = x
	return w
}

// started ends it with the test.
func (w *world) started(t *testing.T, c io.Closer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// config is that of a plugin in this process.
func (w *world) config(t *testing.T, pid int, within time.Duration, describe, other func(grpc.ServerStream) error) plugin.Config {
	t.Helper()
	handle := func(_ any, s grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(s)
		w.mu.Lock()
		w.asked = append(w.asked, method)
		w.mu.Unlock()
		if !strings.HasSuffix(method, "/Describe") {
			return other(s)
		}
		return describe(s)
	}
	return plugin.Config{
		Name: "x", Dir: filepath.Join(t.TempDir(), "x"), Log: slog.New(slog.DiscardHandler), CallWithin: within,
		Now: func() time.Time { return time.Unix(0, 0) }, // no pause is ever over
		Alarm: func(what string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.alarms = append(w.alarms, what)
		},
		Start: func(ctx context.Context, dir string, _ []string) (plugin.Process, error) {
			l, err := (&net.ListenConfig{}).Listen(ctx, "unix", filepath.Join(dir, "s"))
			if err != nil {
				return nil, err
			}
			p := &liar{pid: pid, end: make(chan struct{}), stdout: io.NopCloser(strings.NewReader("1|1|unix|./s|grpc|\n")), server: grpc.NewServer(grpc.UnknownServiceHandler(handle))}
			go func() { _ = p.server.Serve(l) }() // ends with Stop
			return p, nil
		},
	}
}

// answer receives the question and sends messages.
func answer(list ...proto.Message) func(grpc.ServerStream) error {
	return func(s grpc.ServerStream) error {
		if err := s.RecvMsg(&pluginpb.PlanRequest{}); err != nil {
			return err
		}
		for _, m := range list {
			if err := s.SendMsg(m); err != nil {
				return err
			}
		}
		return nil
	}
}

const (
	breaks = "its answer breaks the protocol"
	late   = "it did not answer in time"
)

// fails receives the question and ends the call with an error.
func fails(err error) func(grpc.ServerStream) error {
	return func(s grpc.ServerStream) error {
		if e := answer()(s); e != nil {
			return e
		}
		return err
	}
}

// TestAPluginThatLiesInTheProtocol: each is refused, and the host goes on. Its twin that
// answers once, in time, to what was asked, plans.
func TestAPluginThatLiesInTheProtocol(t *testing.T) {
	good := &pluginpb.PlanReply{Request: &pluginpb.Request{Method: "GET", Url: "https://x.example/a"}}
	for name, c := range map[string]struct {
		plan   func(grpc.ServerStream) error
		reason string // empty: it plans
		alarm  string
	}{
		"the twin":                      {answer(good), "", ""},
		"twice":                         {answer(good, good), "the plugin x failed", breaks},
		"nothing":                       {answer(), "the plugin x failed", breaks},
		"bytes that are no message":     {answer(&pluginpb.ParseReply{Reply: []byte{0xff}}), "the plugin x failed", breaks},
		"no such call":                  {fails(status.Error(codes.Unimplemented, "unknown method Plan")), "the plugin x failed", "it does not serve a call of the protocol"},
		"an honest failure":             {fails(errors.New("no luck")), "the plugin x failed", ""},
		"an answer to Parse":            {answer(&pluginpb.ParseReply{Reply: []byte(`{"a":1}`)}), "the plugin x failed", breaks},
		"an answer to Describe":         {answer(&pluginpb.Description{Findings: []string{"a"}}), "the plugin x planned what it may not", "it planned what it may not: the URL is not a plain one"},
		"more than the protocol allows": {answer(&pluginpb.PlanReply{Request: &pluginpb.Request{Method: "GET", Url: "https://x.example/a", Body: make([]byte, 9<<20)}}), "the plugin x failed", "its answer is larger than the protocol allows"},
		"after its time": {func(s grpc.ServerStream) error {
			<-s.Context().Done()
			return answer(good)(s)
		}, "the plugin x did not answer in time", late},
	} {
		t.Run(name, func(t *testing.T) {
			within := time.Duration(0)
			if c.alarm == late {
				within = 200 * time.Millisecond // the others have all the time, however busy the machine
			}
			w := lying(t, os.Getpid(), within, c.plan)
			p, d := w.connector.Plan(connectors.Call{Operation: "x.read", Args: []byte("{}")})
			switch {
			case c.reason == "" && (d != nil || p.Frozen.HTTP == nil || p.Frozen.HTTP.URL != "https://x.example/a"):
				t.Errorf("%+v, %+v", d, p)
			case c.reason != "" && (d == nil || d.Code != abi.Upstream || !strings.Contains(d.Reason, c.reason)):
				t.Errorf("%+v, %+v", d, p)
			}
			if got := w.told(); got != c.alarm {
				t.Errorf("alarms %q, want %q", got, c.alarm)
			}
			if c.alarm == late { // it was ended
				if _, d := w.connector.Plan(connectors.Call{Operation: "x.read"}); d == nil || d.Code != abi.Upstream || !strings.Contains(d.Reason, "is down") {
					t.Errorf("after that: %+v", d)
				}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, m := range w.asked { // law 7: go-plugin would open streams of its own
				if !strings.HasSuffix(m, "/Describe") && !strings.HasSuffix(m, "/Plan") {
					t.Errorf("the plugin was asked for %s", m)
				}
			}
		})
	}
}

// TestAnotherProcessOnItsSocket: who listens has to be the process that was started.
func TestAnotherProcessOnItsSocket(t *testing.T) {
	w := lying(t, os.Getppid(), 0, answer(&pluginpb.PlanReply{}))
	if _, d := w.connector.Plan(connectors.Call{Operation: "x.read"}); d == nil || d.Code != abi.Upstream || !strings.Contains(d.Reason, "is down") {
		t.Errorf("%+v", d)
	}
	if got := w.told(); !strings.Contains(got, "another process listens on its socket") {
		t.Errorf("alarms %q", got)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asked) > 0 {
		t.Errorf("it was asked for %v", w.asked)
	}
}

// TestAPluginThatDoesNotDescribeItself: it serves no such call, and is down and named.
func TestAPluginThatDoesNotDescribeItself(t *testing.T) {
	w := serving(t, os.Getpid(), 0, func(grpc.ServerStream) error { return status.Error(codes.Unimplemented, "unknown method Describe") }, answer())
	if _, d := w.connector.Plan(connectors.Call{Operation: "x.read"}); d == nil || d.Code != abi.Upstream || !strings.Contains(d.Reason, "is down") {
		t.Errorf("%+v", d)
	}
	if got := w.told(); got != "it does not serve a call of the protocol" {
		t.Errorf("alarms %q", got)
	}
}

// TestAScannerThatLies: one that finds what nobody pinned, or offers other findings than
// those that are pinned, is named; what it was shown does not leave, and what came in
// has the strictest label. Its twins let it pass, or hold it back for the pinned reason.
func TestAScannerThatLies(t *testing.T) {
	pinned := []string{"card_number"}
	for name, c := range map[string]struct {
		has           []string
		finds         string
		reason, alarm string // of what leaves; empty: it passes, no alarm
	}{
		"finds nothing":             {pinned, "", "", ""},
		"finds what is pinned":      {pinned, "card_number", "x: a payment card's number", ""},
		"finds what is not":         {pinned, "joy", "found something that has no name", "it answered with a finding that is not pinned"},
		"offers another finding":    {[]string{"joy"}, "", "could not look", "it is not what the operator pinned: its findings differ"},
		"offers one more":           {[]string{"card_number", "joy"}, "", "could not look", "it is not what the operator pinned: its findings differ"},
		"offers none":               {nil, "", "could not look", "it is not what the operator pinned: its findings differ"},
		"offers the same one twice": {[]string{"card_number", "card_number"}, "", "could not look", "it is not what the operator pinned: its findings differ"},
	} {
		t.Run(name, func(t *testing.T) {
			w := scanning(t, c.has, c.finds)
			l := plugin.Scanners{w.scanner}
			_, d := l.Out(t.Context(), connectors.Plan{})
			if c.reason == "" && d != nil || c.reason != "" && (d == nil || d.Code != abi.Scan || !strings.Contains(d.Reason, c.reason)) {
				t.Errorf("%+v", d)
			}
			if got := w.told(); got != c.alarm { // told before the answer is
				t.Errorf("alarms %q, want %q", got, c.alarm)
			}
			if clean := reflect.DeepEqual(l.In(t.Context(), nil), label.Clean()); clean != (c.reason == "") {
				t.Errorf("what came in counts as clean: %v", clean)
			}
		})
	}
}
