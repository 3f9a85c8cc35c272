package egress_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/vault"
)

// attacks are hosts, and what our resolver says of them, that must not be reached.
func attacks() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for i, a := range []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.170.2",
		"100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
		"255.255.255.255", "168.63.129.16", "192.88.99.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254",
		"ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:1::1", "2001:db8::1", "100::1", "3fff::1", "5f00::1", "8.8.4.4",
	} {
		out[fmt.Sprintf("a%d.example.com", i)] = addrs(a)
	}
	out["both.example.com"] = addrs("8.8.8.8", "10.0.0.1")
	out["many.example.com"] = append(addrs("8.8.8.8", "1.1.1.1", "2606:4700::1111"), addrs("::ffff:10.0.0.1")...)
	return out
}

// Law 4.
func TestAddressesThatAreNotPublicAreRefused(t *testing.T) {
	own := func() []netip.Addr { return addrs("8.8.4.4") }
	n := &names{answers: map[string][][]netip.Addr{}}
	var urls []string
	for host, a := range attacks() {
		n.answers[host] = [][]netip.Addr{a}
		urls = append(urls, "http://"+host+"/")
		if len(a) == 1 {
			urls = append(urls, "http://"+netip.AddrPortFrom(a[0], 8080).String()+"/")
		}
	}
	for _, u := range urls {
		p := httpPlan("GET", u)
		e := open(t, egress.Config{Resolver: n, OwnAddresses: own}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
		o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
		if o.Denial == nil || o.Denial.Code != abi.Scope || o.Denial.Effect != abi.OutcomeNone {
			t.Errorf("%s: %+v", u, o.Denial)
		}
		if c := e.Counters(); c.Dials != 0 {
			t.Errorf("%s: %d dials", u, c.Dials)
		}
	}
}

// Law 4: a name that is public when it is looked at and private afterwards. There
// is one look-up, and the socket connects to what it gave.
func TestRebindingIsRefused(t *testing.T) {
	n := &names{answers: map[string][][]netip.Addr{"rebind.example.com": {addrs("127.0.0.1"), addrs("8.8.8.8")}}}
	p := httpPlan("GET", "http://rebind.example.com/")
	e := open(t, egress.Config{Resolver: n}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
	if o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil); o.Denial == nil || o.Denial.Code != abi.Scope {
		t.Errorf("%+v", o.Denial)
	}
	// Public first: a lease sees the address that is really connected to.
	n = &names{answers: map[string][][]netip.Addr{"rebind.example.com": {addrs("8.8.8.8"), addrs("127.0.0.1")}}}
	seen := &refusing{}
	e = open(t, egress.Config{Resolver: n, Leaser: seen}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
	o := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
	if o.Denial == nil || o.Denial.Code != abi.Rate || n.asked != 1 || len(seen.to) != 1 || seen.to[0] != netip.MustParseAddrPort("8.8.8.8:80") {
		t.Errorf("%+v, %d look-ups, %v", o.Denial, n.asked, seen.to)
	}
}

type refusing struct{ to []netip.AddrPort }

func (r *refusing) Lease(_ context.Context, _ syscall.RawConn, _ string, to netip.AddrPort) (egress.Lease, error) {
	r.to = append(r.to, to)
	return nil, errors.New("no")
}

type leases struct{ taken, released, cut, closed atomic.Int64 }

func (l *leases) Lease(context.Context, syscall.RawConn, string, netip.AddrPort) (egress.Lease, error) {
	l.taken.Add(1)
	return l, nil
}

func (l *leases) Connected() { l.released.Add(1) }
func (l *leases) Cut() error { l.cut.Add(1); return nil }
func (l *leases) Closed()    { l.closed.Add(1) }

// TestCalledOffIsCut: an attempt that is called off sends nothing more, and no
// connection stays open or unaccounted for.
func TestCalledOffIsCut(t *testing.T) {
	arrived, over := make(chan struct{}), make(chan struct{})
	s, o := server(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done() // the other side's end of the connection
		close(over)
	})
	l := &leases{}
	p := httpPlan("GET", s.URL+"/")
	e := open(t, egress.Config{Open: o, Leaser: l}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if got := e.Perform(ctx, permitFor(t, p), doIt, p, nil); got.Denial == nil {
		t.Error("it came to an end")
	}
	<-over
	if l.taken.Load() != 1 || l.released.Load() != 1 || l.cut.Load() != 1 || l.closed.Load() != 1 {
		t.Errorf("%d taken, %d released, %d cut, %d closed", l.taken.Load(), l.released.Load(), l.cut.Load(), l.closed.Load())
	}
}

// server is a real one on loopback and the opening that its operation needs.
func server(t *testing.T, h http.HandlerFunc) (*httptest.Server, []egress.Opening) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s, []egress.Opening{{Operation: "test.do", Address: strings.TrimPrefix(s.URL, "http://")}}
}

func TestAnOpeningIsExact(t *testing.T) {
	s, o := server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") })
	_, port, _ := net.SplitHostPort(o[0].Address)
	n := &names{answers: map[string][][]netip.Addr{"local.example.com": {addrs("127.0.0.1")}}}
	l := &leases{}
	for url, ok := range map[string]bool{s.URL + "/": true, "http://local.example.com:" + port + "/": false, "http://[::ffff:127.0.0.1]:" + port + "/": false} {
		p := httpPlan("GET", url)
		e := open(t, egress.Config{Open: o, Resolver: n, Leaser: l}, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)})
		got := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
		if (got.Denial == nil) != ok {
			t.Errorf("%s: %+v", url, got.Denial)
		}
		if ok && (got.Result.Reply != "hi" || got.BytesIn == 0 || got.BytesOut == 0 || got.Duration == 0) {
			t.Errorf("%+v", got)
		}
	}
	if l.taken.Load() != 1 || l.released.Load() != 1 || l.closed.Load() != 1 || l.cut.Load() != 0 {
		t.Errorf("%d leases taken, %d released, %d closed, %d cut", l.taken.Load(), l.released.Load(), l.closed.Load(), l.cut.Load())
	}
	other := operation(abi.EffectRead, anyURL...)
	other.Name = "test.other"
	p := httpPlan("GET", s.URL+"/")
	c := doIt
	c.Operation = "test.other"
	e := open(t, egress.Config{Open: o, Connectors: []connectors.Connector{&scripted{op: other, plan: planned(p)}}}, &scripted{op: operation(abi.EffectRead)})
	if got := e.Perform(t.Context(), permitFor(t, p), c, p, nil); got.Denial == nil || got.Denial.Code != abi.Scope {
		t.Errorf("another operation used the opening: %+v", got.Denial)
	}
}

// Law 2.
func TestOnlyTheFrozenBytesAreSent(t *testing.T) {
	var hits atomic.Int64
	var got *http.Request
	var body []byte
	s, o := server(t, func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		got, body = r, nil
		body, _ = io.ReadAll(r.Body)
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "x"})
		w.Header().Set("Location", "http://169.254.169.254/latest/meta-data/")
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	p := httpPlan("POST", s.URL+"/a%20b?c=d")
	p.Frozen.HTTP.Header = []connectors.Header{{Name: "X-One", Value: "1"}, {Name: "X-One", Value: "2"}}
	p.Frozen.HTTP.Body = []byte("payload")
	var answer *connectors.Answer
	op := operation(abi.EffectWrite, anyURL...)
	e := open(t, egress.Config{Open: o}, &scripted{op: op, plan: planned(p), parse: func(a *connectors.Answer) (connectors.Result, *abi.Denial) {
		answer = a
		return connectors.Result{}, nil
	}})
	for range 2 {
		if out := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil); out.Denial != nil {
			t.Fatal(out.Denial)
		}
	}
	if hits.Load() != 2 || e.Counters().Dials != 2 {
		t.Errorf("%d requests, %+v: a connection was kept or a redirect followed", hits.Load(), e.Counters())
	}
	if answer.Status != 307 || len(answer.Header["Location"]) != 1 || answer.Header["Set-Cookie"] != nil {
		t.Errorf("%d %v", answer.Status, answer.Header)
	}
	if got.RequestURI != "/a%20b?c=d" || string(body) != "payload" || got.Header.Get("Cookie") != "" {
		t.Errorf("%s %q %v", got.RequestURI, body, got.Header)
	}
	for name := range got.Header {
		if name != "X-One" && name != "Content-Length" && name != "Connection" {
			t.Errorf("the header %s was added", name)
		}
	}
}

// Law 3.
func TestCredentialGoesToItsOriginAndIsScrubbed(t *testing.T) {
	const secret = "sk-0123456789/abc+d" //nolint:gosec // not a real one
	var auth string
	s, o := server(t, func(w http.ResponseWriter, r *http.Request) {
		auth = r.Header.Get("Authorization")
		w.Header().Set("X-Echo", "is "+secret)
		_, _ = io.WriteString(w, "you sent "+secret[:7])
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, secret[7:]+" and sk-01 and sk-0123456789%2Fabc%2Bd.")
	})
	p := httpPlan("GET", s.URL+"/")
	p.Account, p.Frozen.HTTP.Credential = "con_1", &connectors.Slot{Connection: "con_1", Header: "Authorization", Prefix: "Bearer "}
	held := func(origin string) egress.Credentials {
		c, err := vault.NewStatic(vault.Credential{Connection: "con_1", Subject: "us", Origins: []string{origin}, Secret: vault.NewSecret(secret)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var answer *connectors.Answer
	sc := &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p), parse: func(a *connectors.Answer) (connectors.Result, *abi.Denial) {
		answer = a
		b, err := io.ReadAll(a.Body)
		return connectors.Result{Reply: string(b)}, denial(err)
	}}
	out := open(t, egress.Config{Open: o, Credentials: held(s.URL)}, sc).Perform(t.Context(), permitFor(t, p), doIt, p, nil)
	if out.Denial != nil || auth != "Bearer "+secret {
		t.Fatalf("%+v %q", out.Denial, auth)
	}
	if out.Result.Reply != "you sent [redacted] and sk-01 and [redacted]." || answer.Header["X-Echo"][0] != "is [redacted]" {
		t.Errorf("%q %v", out.Result.Reply, answer.Header)
	}
	for name, c := range map[string]egress.Credentials{"none": nil, "another origin": held("https://api.example.com"), "no port": held("http://127.0.0.1")} {
		e := open(t, egress.Config{Open: o, Credentials: c}, sc)
		out := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
		if out.Denial == nil || out.Denial.Code != abi.ConnectorRevoked || out.Denial.Effect != abi.OutcomeNone || e.Counters().Dials != 0 {
			t.Errorf("%s: %+v", name, out.Denial)
		}
	}
}

func denial(err error) *abi.Denial {
	if err == nil {
		return nil
	}
	return &abi.Denial{Code: abi.Upstream, Reason: err.Error()}
}

// Law 5: the same failures, for a read and for a write.
func TestFailureSaysWhatHappened(t *testing.T) {
	closed := httptest.NewServer(nil)
	closedURL := closed.URL
	closed.Close()
	s, o := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-r.Context().Done()
		case "/reset":
			panic(http.ErrAbortHandler)
		case "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "x")
		case "/large":
			_, _ = io.WriteString(w, strings.Repeat("x", 2000))
		}
	})
	tlsServer := httptest.NewUnstartedServer(http.NotFoundHandler())
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsServer.StartTLS()
	t.Cleanup(tlsServer.Close)
	all := append([]connectors.Request{{Method: "POST", URL: "https:**"}}, anyURL...)
	for _, x := range []struct {
		name, url   string
		read, write abi.Code
		effect      abi.Outcome // of the write
	}{
		{"refused", closedURL + "/", abi.Upstream, abi.Upstream, abi.OutcomeNone},
		{"no name", "http://nowhere.example.com/", abi.Upstream, abi.Upstream, abi.OutcomeNone},
		{"untrusted", tlsServer.URL + "/", abi.Upstream, abi.Upstream, abi.OutcomeNone},
		{"no answer", s.URL + "/hang", abi.Timeout, abi.OutcomeUnknown, abi.OutcomeMay},
		{"reset", s.URL + "/reset", abi.Upstream, abi.OutcomeUnknown, abi.OutcomeMay},
		{"cut off", s.URL + "/cut", abi.Upstream, abi.Upstream, abi.OutcomeMay},
		{"too large", s.URL + "/large", abi.Upstream, abi.Upstream, abi.OutcomeMay},
	} {
		for _, effect := range []abi.Effect{abi.EffectRead, abi.EffectWrite} {
			method, code, outcome := "GET", x.read, abi.OutcomeNone
			if effect == abi.EffectWrite {
				method, code, outcome = "POST", x.write, x.effect
			}
			p := httpPlan(method, x.url)
			p.MaxAnswer, p.Timeout = 1000, time.Minute
			if x.name == "no answer" {
				p.Timeout = time.Second // in which the request has to arrive, too
			}
			open1 := append([]egress.Opening{{Operation: "test.do", Address: strings.TrimPrefix(closedURL, "http://")}, {Operation: "test.do", Address: strings.TrimPrefix(tlsServer.URL, "https://")}}, o...)
			op := operation(effect, append(all, connectors.Request{Method: "GET", URL: "https:**"})...)
			e := open(t, egress.Config{Open: open1, Resolver: &names{}}, &scripted{op: op, plan: planned(p)})
			out := e.Perform(t.Context(), permitFor(t, p), doIt, p, nil)
			if out.Denial == nil || out.Denial.Code != code || out.Denial.Effect != outcome {
				t.Errorf("%s, %s: %+v", x.name, effect, out.Denial)
			}
			if x.name == "too large" && out.Denial != nil && out.Denial.Reason != connectors.ErrAnswerTooLarge.Error() {
				t.Errorf("%q", out.Denial.Reason)
			}
		}
	}
}

func TestTLSIsVerified(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") }))
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	p := httpPlan("GET", s.URL+"/")
	c := egress.Config{RootCAs: pool, Open: []egress.Opening{{Operation: "test.do", Address: strings.TrimPrefix(s.URL, "https://")}}}
	out := open(t, c, &scripted{op: operation(abi.EffectRead, anyURL...), plan: planned(p)}).Perform(t.Context(), permitFor(t, p), doIt, p, nil)
	if out.Denial != nil || out.Result.Reply != "hi" {
		t.Errorf("%+v", out)
	}
}
