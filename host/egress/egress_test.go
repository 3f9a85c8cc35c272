package egress_test

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/grant"
)

var _ egress.Permit = grant.Permit{}

// permit stands for grant.Permit, which only a decision can make.
type permit abi.Digest

func (p permit) Covers(d abi.Digest) bool { return abi.Digest(p) == d }

func permitFor(t *testing.T, p connectors.Plan) permit {
	t.Helper()
	d, err := p.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return permit(d)
}

// scripted is a connector that does as a test says.
type scripted struct {
	op    connectors.Operation
	plan  func(connectors.Call) (connectors.Plan, *abi.Denial)
	parse func(*connectors.Answer) (connectors.Result, *abi.Denial)
}

func (s *scripted) Operations() []connectors.Operation { return []connectors.Operation{s.op} }

func (s *scripted) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) { return s.plan(c) }

func (s *scripted) Parse(_ context.Context, _ connectors.Call, _ connectors.Plan, a *connectors.Answer) (connectors.Result, *abi.Denial) {
	if s.parse != nil {
		return s.parse(a)
	}
	b, err := io.ReadAll(a.Body)
	if err != nil {
		return connectors.Result{}, &abi.Denial{Code: abi.Upstream, Reason: err.Error()}
	}
	return connectors.Result{Reply: string(b)}, nil
}

func operation(effect abi.Effect, allow ...connectors.Request) connectors.Operation {
	replay := abi.ReplayPure
	if effect.Asks() {
		replay = abi.ReplayBlind
	}
	return connectors.Operation{
		Name: "test.do", Version: 1, Effect: effect, Replay: replay, Summary: "Do it.", Args: json.RawMessage(`{"type":"object"}`),
		Renderer: connectors.RenderHTTP, Allow: allow,
	}
}

func httpPlan(method, url string) connectors.Plan {
	return connectors.Plan{
		Resources: []string{"test:x"}, Destination: "test", Audience: []string{"host:test"},
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: method, URL: url}},
	}
}

func planned(p connectors.Plan) func(connectors.Call) (connectors.Plan, *abi.Denial) {
	return func(connectors.Call) (connectors.Plan, *abi.Denial) { return p, nil }
}

var anyURL = []connectors.Request{{Method: "GET", URL: "http:**"}, {Method: "GET", URL: "https:**"}, {Method: "POST", URL: "http:**"}}

func open(t *testing.T, c egress.Config, s *scripted) *egress.Egress {
	t.Helper()
	if s != nil {
		c.Connectors = append(c.Connectors, s)
	}
	e, err := egress.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var doIt = connectors.Call{Operation: "test.do", Args: json.RawMessage("{}"), Key: strings.Repeat("0", 32)}

// names is a resolver of our own: each look-up of a name takes its next answer.
type names struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr
	asked   int
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	a := n.answers[host]
	if len(a) == 0 {
		return nil, &notFound{host}
	}
	if len(a) > 1 {
		n.answers[host] = a[1:]
	}
	return a[0], nil
}

type notFound struct{ host string }

func (e *notFound) Error() string { return "no such host " + e.host }

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// Law 1.
func TestNothingHappensWithoutAPermit(t *testing.T) {
	n := &names{answers: map[string][][]netip.Addr{"example.com": {addrs("127.0.0.1")}}}
	p := httpPlan("GET", "http://example.com/")
	e := open(t, egress.Config{Resolver: n}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
	_, got, d := e.Plan(t.Context(), doIt, nil)
	if d != nil {
		t.Fatal(d)
	}
	other := httpPlan("GET", "http://example.com/other")
	for name, x := range map[string]egress.Permit{"none": nil, "zero": grant.Permit{}, "another": permitFor(t, other)} {
		o := e.Perform(t.Context(), x, doIt, got, nil)
		if o.Denial == nil || o.Denial.Code != abi.Denied || o.Denial.Effect != abi.OutcomeNone {
			t.Errorf("%s: %+v", name, o.Denial)
		}
	}
	if c := e.Counters(); c != (egress.Counters{}) || n.asked != 0 {
		t.Errorf("counters %+v, %d look-ups", c, n.asked)
	}
}

// Law 1: each byte and field of the envelope that a permit is for.
func TestFlippedBytesAreRefused(t *testing.T) {
	mail := func() connectors.Plan {
		return connectors.Plan{
			Resources: []string{"mail:a@example.com"}, Destination: "smtp:main", Account: "con", Audience: []string{"mail:a@example.com"},
			Frozen: connectors.Frozen{SMTP: &connectors.SMTPMessage{Server: "main", From: "f@example.com", To: []string{"a@example.com", "b@example.com"}, Data: []byte("S: x\r\n\r\nbody\r\n")}},
		}
	}
	p := mail()
	ok := permitFor(t, p)
	e := open(t, egress.Config{}, &scripted{op: operation(abi.EffectSend), plan: planned(p)})
	refused := func(name string, change func(*connectors.Plan)) {
		t.Helper()
		q := mail()
		change(&q)
		if o := e.Perform(t.Context(), ok, doIt, q, nil); o.Denial == nil || o.Denial.Code != abi.Denied {
			t.Errorf("%s: %+v", name, o.Denial)
		}
	}
	for i := range p.Frozen.SMTP.Data {
		refused("data", func(q *connectors.Plan) { q.Frozen.SMTP.Data[i] ^= 1 })
	}
	refused("from", func(q *connectors.Plan) { q.Frozen.SMTP.From = "g@example.com" })
	refused("order", func(q *connectors.Plan) { q.Frozen.SMTP.To = []string{"b@example.com", "a@example.com"} })
	refused("recipients", func(q *connectors.Plan) { q.Frozen.SMTP.To = append(q.Frozen.SMTP.To, "c@example.com") })
	refused("server", func(q *connectors.Plan) { q.Frozen.SMTP.Server = "other" })
	refused("account", func(q *connectors.Plan) { q.Account = "con2" })
	refused("destination", func(q *connectors.Plan) { q.Destination = "smtp:other" })
	refused("two kinds", func(q *connectors.Plan) { q.Frozen.FileRead = &connectors.FileRead{} })
	refused("bare line feed", func(q *connectors.Plan) { q.Frozen.SMTP.Data = []byte("S: x\n\n") })
}

// Law 6.
func TestPanicIsADenial(t *testing.T) {
	boom := &scripted{op: operation(abi.EffectRead, anyURL...), plan: func(connectors.Call) (connectors.Plan, *abi.Denial) { panic("boom") }}
	if _, _, d := open(t, egress.Config{}, boom).Plan(t.Context(), doIt, nil); d == nil || d.Code != abi.Internal || strings.Contains(d.Reason, "boom") {
		t.Errorf("%+v", d)
	}
	dir := t.TempDir()
	p := connectors.Plan{
		Resources: []string{"mail:a@example.com"}, Destination: "maildir:out", Audience: []string{"mail:a@example.com"},
		Frozen: connectors.Frozen{Maildir: &connectors.Maildir{Folder: "out", Unique: "1.a", From: "f@example.com", To: []string{"a@example.com"}, Data: []byte("S: x\r\n\r\n")}},
	}
	late := &scripted{op: operation(abi.EffectSend), plan: planned(p), parse: func(*connectors.Answer) (connectors.Result, *abi.Denial) { panic("boom") }}
	o := open(t, egress.Config{Maildirs: map[string]string{"out": dir}}, late).Perform(t.Context(), permitFor(t, p), doIt, p, nil)
	if o.Denial == nil || o.Denial.Code != abi.Internal || o.Denial.Effect != abi.OutcomeMay {
		t.Errorf("%+v", o.Denial)
	}
}

func TestPlansAreHeldAgainstTheirDescriptor(t *testing.T) {
	good := func() connectors.Plan { return httpPlan("GET", "https://api.example.com/v1/x?q=1") }
	op := operation(abi.EffectRead, connectors.Request{Method: "GET", URL: "https://api.example.com/v1/**"})
	for name, change := range map[string]func(*connectors.Plan){
		"no resource":     func(p *connectors.Plan) { p.Resources = nil },
		"bad resource":    func(p *connectors.Plan) { p.Resources = []string{"files:a/../b"} },
		"wildcard":        func(p *connectors.Plan) { p.Resources = []string{"files:**"} },
		"no audience":     func(p *connectors.Plan) { p.Audience = nil },
		"empty audience":  func(p *connectors.Plan) { p.Audience = []string{""} },
		"no destination":  func(p *connectors.Plan) { p.Destination = "" },
		"ceiling":         func(p *connectors.Plan) { p.Ceiling = -1 },
		"nothing frozen":  func(p *connectors.Plan) { p.Frozen = connectors.Frozen{} },
		"method":          func(p *connectors.Plan) { p.Frozen.HTTP.Method = "DELETE" },
		"host":            func(p *connectors.Plan) { p.Frozen.HTTP.URL = "https://api.example.com.evil.example/v1/x" },
		"path":            func(p *connectors.Plan) { p.Frozen.HTTP.URL = "https://api.example.com/v2/x" },
		"climbing path":   func(p *connectors.Plan) { p.Frozen.HTTP.URL = "https://api.example.com/v1/%2e%2e/v2" },
		"scheme":          func(p *connectors.Plan) { p.Frozen.HTTP.URL = "http://api.example.com/v1/x" },
		"user info":       func(p *connectors.Plan) { p.Frozen.HTTP.URL = "https://a@api.example.com/v1/x" },
		"upper-case host": func(p *connectors.Plan) { p.Frozen.HTTP.URL = "https://API.example.com/v1/x" },
		"header break":    func(p *connectors.Plan) { p.Frozen.HTTP.Header = []connectors.Header{{Name: "A", Value: "b\r\nC: d"}} },
		"host header":     func(p *connectors.Plan) { p.Frozen.HTTP.Header = []connectors.Header{{Name: "host", Value: "x"}} },
		"cookie":          func(p *connectors.Plan) { p.Frozen.HTTP.Header = []connectors.Header{{Name: "Cookie", Value: "x"}} },
		"slot is filled": func(p *connectors.Plan) {
			p.Account, p.Frozen.HTTP.Credential = "c", &connectors.Slot{Connection: "c", Header: "Authorization"}
			p.Frozen.HTTP.Header = []connectors.Header{{Name: "authorization", Value: "x"}}
		},
		"slot of another": func(p *connectors.Plan) {
			p.Account, p.Frozen.HTTP.Credential = "c", &connectors.Slot{Connection: "d", Header: "Authorization"}
		},
		"account without slot": func(p *connectors.Plan) { p.Account = "c" },
		"mail by a read": func(p *connectors.Plan) {
			p.Frozen = connectors.Frozen{Maildir: &connectors.Maildir{To: []string{"a@example.com"}, From: "b@example.com"}}
		},
	} {
		p := good()
		change(&p)
		if _, _, d := open(t, egress.Config{}, &scripted{op: op, plan: planned(p)}).Plan(t.Context(), doIt, nil); d == nil || d.Code != abi.Internal {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if _, _, d := open(t, egress.Config{}, &scripted{op: op, plan: planned(good())}).Plan(t.Context(), doIt, nil); d != nil {
		t.Error(d)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*connectors.Operation){
		"name": func(o *connectors.Operation) { o.Name = "do" }, "effect": func(o *connectors.Operation) { o.Effect = "look" },
		"none": func(o *connectors.Operation) { o.Effect = abi.EffectNone }, "schema": func(o *connectors.Operation) { o.Args = nil },
		"renderer": func(o *connectors.Operation) { o.Renderer = "" }, "replay": func(o *connectors.Operation) { o.Replay = "" },
		"pure send": func(o *connectors.Operation) { o.Effect = abi.EffectSend }, "version": func(o *connectors.Operation) { o.Version = 0 },
		"pattern": func(o *connectors.Operation) { o.Allow = []connectors.Request{{Method: "GET", URL: "x"}} },
		"summary": func(o *connectors.Operation) { o.Summary = "" },
	} {
		op := operation(abi.EffectRead)
		change(&op)
		if _, err := egress.New(egress.Config{Connectors: []connectors.Connector{&scripted{op: op}}}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	twice := &scripted{op: operation(abi.EffectRead)}
	for name, c := range map[string]egress.Config{
		"twice":   {Connectors: []connectors.Connector{twice, twice}},
		"folder":  {Folders: map[string]string{"docs": "relative"}},
		"smtp":    {SMTP: map[string]egress.SMTPServer{"main": {Address: "mail"}}},
		"opening": {Open: []egress.Opening{{Operation: "no.such", Address: "127.0.0.1:1"}}},
	} {
		if _, err := egress.New(c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestDescriptorDigestIsStable(t *testing.T) {
	e := open(t, egress.Config{}, &scripted{op: operation(abi.EffectRead, anyURL...)})
	d, ok := e.Descriptor("test.do")
	op, _ := e.Operation("test.do")
	if again, err := egress.DescriptorDigest(op); !ok || err != nil || again != d {
		t.Errorf("%s %s %v", d, again, err)
	}
	op.Allow[0].Method = "DELETE" // a copy: the registry keeps its own
	if again, _ := egress.DescriptorDigest(e.Operations()[0]); again != d {
		t.Error("the registry was changed from outside")
	}
	if again, _ := egress.DescriptorDigest(op); again == d {
		t.Error("another descriptor has the same digest")
	}
	if _, _, d := e.Plan(t.Context(), connectors.Call{Operation: "no.such"}, nil); d == nil || d.Code != abi.Unsupported {
		t.Error(d)
	}
}
