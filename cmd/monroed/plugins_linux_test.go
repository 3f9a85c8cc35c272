package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	sdk "github.com/getmonroe/monroe/connectors/plugin"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// A rig is a spawner with the real launcher.
type rig struct {
	t   *testing.T
	dir string
	s   *spawn.Spawner
	log *safeBuffer
}

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "monroe-plug-") //nolint:usetesting // the parent of t.TempDir is closed to another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := spawn.New(filepath.Join(Bin, "monroe-worker"), false)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		s.UID = 65534
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, dir: dir, s: s, log: &safeBuffer{}}
}

func (r *rig) build(name, flags string) (string, string) {
	r.t.Helper()
	path, digest, err := BuildPlugin(r.t.Context(), name, flags)
	if err != nil {
		r.t.Fatal(err)
	}
	return path, digest
}

func (r *rig) openPlugins(list ...config.Plugin) *plugins {
	r.t.Helper()
	x, err := openPlugins(r.s, list, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(x.Close)
	return x
}

func ticketsPin(base, path, digest, token string) config.Plugin {
	return config.Plugin{
		Name: "tickets", Kind: "connector", Path: path, SHA256: digest, Private: []string{strings.TrimPrefix(base, "http://")},
		Operations: []config.PluginOperation{{
			Name: "tickets.read", Version: 1, Summary: "Reads a ticket.", Effect: abi.EffectRead, Replay: abi.ReplayPure,
			Args:    `{"type":"object","properties":{"id":{"type":"string"}},"required":["id"],"additionalProperties":false}`,
			Allow:   []config.PluginRequest{{Method: "GET", URL: abi.Pattern(base + "/tickets/*")}},
			Headers: []string{"Accept"}, TokenFile: token,
		}, {
			Name: "tickets.comment", Version: 1, Summary: "Comments on a ticket.", Effect: abi.EffectSend, Replay: abi.ReplayKeyed, Window: 1e12, KeyHeader: "Idempotency-Key",
			Args:    `{"type":"object","properties":{"id":{"type":"string"},"text":{"type":"string"}},"required":["id","text"],"additionalProperties":false}`,
			Allow:   []config.PluginRequest{{Method: "POST", URL: abi.Pattern(base + "/tickets/*/comments")}},
			Headers: []string{"Content-Type"}, TokenFile: token,
		}},
	}
}

type permit abi.Digest

func (p permit) Covers(d abi.Digest) bool { return abi.Digest(p) == d }

// TestLinuxConnectorPlugin lets the example plan, the host send, and the example read.
func TestLinuxConnectorPlugin(t *testing.T) {
	var seen []*http.Request
	desk := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r)
		if r.URL.Path == "/tickets/none" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, `{"title":"It does not print","open":true,"more":1}`)
	}))
	defer desk.Close()
	r := newRig(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a-token-of-the-operator"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A healthy plugin is never reported: the daemon ends one that is.
	r.s.OnViolation = func(_ *spawn.Process, v spawn.Violation) { t.Errorf("reported: %s", v) }
	path, digest := r.build("connector", "-X main.base="+desk.URL)
	x := r.openPlugins(ticketsPin(desk.URL, path, digest, token))
	creds, err := vault.NewStatic(x.credentials...)
	if err != nil {
		t.Fatal(err)
	}
	e, err := egress.New(egress.Config{Connectors: x.connectors, Credentials: creds, Open: x.open})
	if err != nil {
		t.Fatal(err)
	}
	do := func(operation, args string) (connectors.Plan, egress.Outcome) {
		t.Helper()
		c := connectors.Call{Operation: operation, Args: json.RawMessage(args), Key: strings.Repeat("0a", 16)}
		_, p, d := e.Plan(t.Context(), c, noLookup)
		if d != nil {
			return p, egress.Outcome{Denial: d}
		}
		want, err := p.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return p, e.Perform(t.Context(), permit(want), c, p, nil)
	}
	p, o := do("tickets.read", `{"id":"7"}`)
	if o.Denial != nil {
		t.Fatalf("%+v\n%s", o.Denial, r.log)
	}
	if got := fmt.Sprintf("%s", o.Result.Reply); got != `{"open":true,"title":"It does not print"}` {
		t.Errorf("reply %s", got)
	}
	if l := o.Result.Provenance; l.Internal || len(l.Origins) != 1 || p.Resources[0] != desk.URL+"/tickets/7" {
		t.Errorf("its reply is not external: %+v, %v", l, p.Resources)
	}
	if seen[0].Header.Get("Authorization") != "Bearer a-token-of-the-operator" {
		t.Error("the host did not put the credential in")
	}
	if raw, _ := json.Marshal(p); bytes.Contains(raw, []byte("a-token-of")) {
		t.Error("the credential is in frozen bytes")
	}
	if _, o = do("tickets.comment", `{"id":"7","text":"on it"}`); o.Denial != nil || seen[1].Header.Get("Idempotency-Key") != strings.Repeat("0a", 16) {
		t.Errorf("%+v, %v", o.Denial, seen[1].Header)
	}
	if _, o = do("tickets.read", `{"id":"none"}`); o.Denial == nil || o.Denial.Code != abi.NotFound {
		t.Errorf("%+v", o.Denial)
	}
	if _, o = do("tickets.read", `{}`); o.Denial == nil || o.Denial.Code != abi.Invalid {
		t.Errorf("%+v", o.Denial)
	}
}

func (r *rig) hostile(mode string) (connectors.Connector, *plugins) {
	r.t.Helper()
	path, digest := r.build("hostile", "-X main.mode="+mode)
	x := r.openPlugins(config.Plugin{
		Name: "hostile", Kind: "connector", Path: path, SHA256: digest,
		Operations: []config.PluginOperation{{
			Name: "hostile.do", Version: 1, Summary: "Does what it may not.", Effect: abi.EffectSend, Replay: abi.ReplayBlind,
			Args: `{"type":"object"}`, Allow: []config.PluginRequest{{Method: "POST", URL: "http://127.0.0.1:1/**"}}, Headers: []string{"Accept"},
		}},
	})
	return x.connectors[0], x
}

func plan(c connectors.Connector, args any) (connectors.Plan, *abi.Denial) {
	raw, _ := json.Marshal(args)
	return c.Plan(connectors.Call{Operation: "hostile.do", Args: raw})
}

// TestLinuxPluginAttempts: law 12. What a plugin tries fails, whoever it runs as.
func TestLinuxPluginAttempts(t *testing.T) {
	r := newRig(t)
	home := t.TempDir()
	for _, name := range []string{"owner.token", "keyset.json"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the API was reached") }))
	socket := filepath.Join(r.dir, "api.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	api.Listener = l
	api.Start()
	defer api.Close()
	if err := os.Chmod(socket, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []uint32{0, 65534} {
		if os.Geteuid() != 0 && uid != 0 {
			continue
		}
		r := newRig(t)
		r.s.UID = uid
		c, _ := r.hostile("")
		for try, want := range map[string]string{
			"tcp 127.0.0.1:80": "EPERM", "udp 127.0.0.1:53": "EPERM", "raw-ip": "EPERM", "abstract x": "EPERM", "packet": "EPERM", "netlink": "EPERM", "vsock": "EPERM", "socketpair": "EPERM",
			"connect-unix " + socket: "EPERM", "datagram": "EPERM", "datagram-pair": "EPERM",
			"read-host " + filepath.Join(home, "owner.token"): "EPERM", "read-host " + filepath.Join(home, "keyset.json"): "EPERM",
			"read-host /proc/self/environ": "EPERM", "read-system": "EPERM", "write-temp /tmp/monroe-must-not-exist": "EPERM", "symlink": "EPERM", "write": "EPERM",
			"exec": "EPERM", "process": "EPERM", "ptrace 1": "EPERM", "bpf": "EPERM", "namespaces": "EPERM", "memory-file": "EPERM",
			"write-exec": "EPERM", "signal 1": "EPERM", "io_uring": "ENOSYS", "mount /tmp": "EPERM", "setuid": "EPERM",
		} {
			p, d := plan(c, map[string]string{"try": try})
			if d != nil {
				t.Fatalf("%s: %+v\n%s", try, d, r.log)
			}
			if got := string(p.Frozen.HTTP.Body); got != want {
				t.Errorf("as %d: %s: %s, want %s", uid, try, got, want)
			}
		}
		p, d := plan(c, map[string]string{"try": "environ"})
		if d != nil || strings.Contains(string(p.Frozen.HTTP.Body), "PATH=") {
			t.Errorf("environment %s, %+v", p.Frozen.HTTP.Body, d)
		}
		if p, _ := plan(c, map[string]string{"try": "early"}); string(p.Frozen.HTTP.Body) != "EACCES EACCES EACCES EACCES ALLOWED" {
			t.Errorf("as %d: files at its start: %s", uid, p.Frozen.HTTP.Body)
		}
		named := `a plugin looks for a file while it starts" plugin=hostile call="openat(`
		if os.Geteuid() == 0 { // who may look into any process
			named += `\"../..\")`
		}
		if !strings.Contains(r.log.String(), named) {
			t.Errorf("as %d: the log does not tell of %s:\n%s", uid, named, r.log)
		}
		if p, _ := plan(c, map[string]string{"try": "inherited"}); string(p.Frozen.HTTP.Body) != "none" {
			t.Errorf("sockets that were open at its start: %s", p.Frozen.HTTP.Body)
		}
		if p, _ := plan(c, map[string]string{"try": "stdin"}); string(p.Frozen.HTTP.Body) != "0 EOF" {
			t.Errorf("standard input: %s", p.Frozen.HTTP.Body)
		}
	}
}

// TestLinuxPluginsThatDoNotComeUp: each is refused in a word of the host's, the daemon
// goes on, and the log says why without the plugin's control characters.
func TestLinuxPluginsThatDoNotComeUp(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		mode string
		code abi.Code
		log  string
	}{
		{"differs", abi.ConnectorRevoked, "its effect differs"},
		{"tcp", abi.Upstream, "names something else than a socket in its directory"},
		{"outside", abi.Upstream, "names something else than a socket in its directory"},
		{"parent", abi.Upstream, "names something else than a socket in its directory"},
		{"netrpc", abi.Upstream, "unsupported plugin protocol"},
		{"garbage", abi.Upstream, "it does not come up"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			r := &rig{t: t, dir: r.dir, s: r.s, log: &safeBuffer{}}
			x, _ := r.hostile(c.mode)
			_, d := plan(x, map[string]string{"try": "stdin"})
			if d == nil || d.Code != c.code {
				t.Errorf("%+v", d)
			}
			if text := r.log.String(); !strings.Contains(text, c.log) || strings.Contains(text, "\x1b") || len(text) > 16<<10 {
				t.Errorf("the log says %.2000q", text)
			}
		})
	}
	t.Run("another digest", func(t *testing.T) {
		r := &rig{t: t, dir: r.dir, s: r.s, log: &safeBuffer{}}
		path, digest := r.build("hostile", "-X main.mode=")
		wrong := strings.Repeat("0", len(digest))
		x := r.openPlugins(config.Plugin{Name: "hostile", Kind: "connector", Path: path, SHA256: wrong, Operations: []config.PluginOperation{{
			Name: "hostile.do", Version: 1, Summary: "x", Effect: abi.EffectRead, Replay: abi.ReplayPure, Args: "{}",
			Allow: []config.PluginRequest{{Method: "GET", URL: "http://127.0.0.1:1/**"}},
		}}})
		if _, d := plan(x.connectors[0], nil); d == nil || d.Code != abi.ConnectorRevoked || !strings.Contains(r.log.String(), digest) {
			t.Errorf("%+v\n%s", d, r.log)
		}
	})
}

// TestLinuxPluginsThatMisbehave in a call are refused in time.
func TestLinuxPluginsThatMisbehave(t *testing.T) {
	r := newRig(t)
	x, _ := r.hostile("flood")
	for _, c := range []struct {
		args any
		want string
	}{
		{map[string]string{"try": "giant"}, "too large"},
		{map[string]string{"try": "larger"}, "the plugin hostile failed"},
		{map[string]any{"request": sdk.Request{Method: "POST", URL: "http://127.0.0.1:1/x", Header: []sdk.Header{{Name: "Authorization", Value: "Bearer stolen"}}}}, "a header that is not pinned"},
		{map[string]any{"request": sdk.Request{Method: "POST", URL: "http://127.0.0.1:1/x", Header: []sdk.Header{{Name: "Accept", Value: "a\r\nAuthorization: x"}}}}, "printable"},
		{map[string]any{"request": sdk.Request{Method: "POST", URL: "http://a:b@127.0.0.1:1/x"}}, "not a plain one"},
		{map[string]any{"request": sdk.Request{Method: "POST", URL: "http://127.0.0.1:2/x"}}, "not among those that are pinned"},
		{map[string]any{"request": sdk.Request{Method: "GET", URL: "http://127.0.0.1:1/x"}}, "not among those that are pinned"},
		{map[string]any{"request": sdk.Request{}}, "not a plain one"},
		{"no object", "the plugin hostile failed"},
		{map[string]string{"try": "hang"}, "did not answer in time"},
	} {
		_, d := plan(x, c.args)
		if d == nil || !strings.Contains(d.Reason, c.want) || d.Code != abi.Upstream {
			t.Errorf("%v: %+v", c.args, d)
		}
	}
	if text := r.log.String(); strings.Contains(text, "\x1b") || len(text) > 32<<10 || !strings.Contains(text, `"a plugin is down" plugin=hostile error="a call of it failed: DeadlineExceeded" pause=1s`) {
		t.Errorf("%d bytes of log: %.300q", len(text), text)
	}
}

// TestLinuxScannerPlugin holds a card number back, and everything while it is down.
func TestLinuxScannerPlugin(t *testing.T) {
	r := newRig(t)
	path, digest := r.build("scanner", "")
	pin := config.Plugin{Name: "cards", Kind: "scanner", Path: path, SHA256: digest, Findings: []config.PluginFinding{{ID: "card_number", Reason: "a payment card's number"}}}
	out := func(s broker.Scanner, text string) *abi.Denial {
		_, d := s.Out(t.Context(), connectors.Plan{Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://a.example/", Body: []byte(text)}}})
		return d
	}
	good := r.openPlugins(pin)
	s := good.scanner()
	if d := out(s, "nothing of that kind: 4111 1111 1111 1112"); d != nil {
		t.Errorf("%+v\n%s", d, r.log)
	}
	if d := out(s, "my card is 4111 1111 1111 1111, thanks"); d == nil || d.Code != abi.Scan || d.Reason != "cards: a payment card's number" {
		t.Errorf("%+v", d)
	}
	if d := out(s, strings.Repeat("a", 9<<20)); d == nil || d.Code != abi.Scan {
		t.Errorf("what is too large to be seen passes: %+v", d)
	}
	if l := s.In(t.Context(), []byte("4111111111111111")); l.Integrity != label.External || l.Readers.IsEveryone() {
		t.Errorf("label %+v", l)
	}
	good.Close()
	pin.SHA256 = strings.Repeat("0", 64)
	for name, s := range map[string]broker.Scanner{"closed": s, "another digest": r.openPlugins(pin).scanner()} {
		if d := out(s, "nothing"); d == nil || d.Code != abi.Scan {
			t.Errorf("%s: a scanner that is down lets it pass: %+v", name, d)
		}
		if l := s.In(t.Context(), []byte("nothing")); l.Readers.IsEveryone() {
			t.Errorf("%s: label %+v", name, l)
		}
	}
}
