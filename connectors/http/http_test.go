package http_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	web "github.com/getmonroe/monroe/connectors/http"
)

func open(t *testing.T) *web.HTTP {
	t.Helper()
	h, err := web.New(web.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func fetch(args string) connectors.Call {
	return connectors.Call{Operation: web.OpFetch, Args: json.RawMessage(args)}
}

// Laws 1 and 2.
func TestWhatIsDecidedIsWhatIsSent(t *testing.T) {
	p, d := open(t).Plan(fetch(`{"url":"HTTPS://Example.com:443/Docs/%61?q=*#"}`))
	if d == nil {
		t.Fatal("a fragment was accepted")
	}
	p, d = open(t).Plan(fetch(`{"url":"HTTPS://Example.com:443/Docs/%61?q=*"}`))
	if d != nil {
		t.Fatal(d)
	}
	if p.Frozen.HTTP.URL != "https://example.com/Docs/a?q=*" || p.Resources[0] != "https://example.com/Docs/a" || p.Audience[0] != "host:example.com" {
		t.Errorf("%+v", p)
	}
	if !abi.Pattern("https://example.com/Docs/**").Covers(p.Resources[0]) || abi.Pattern("https://example.com/docs/**").Covers(p.Resources[0]) {
		t.Error("the resource does not fit the grants")
	}
	p, _ = open(t).Plan(fetch(`{"url":"http://example.com:8080/"}`))
	if p.Audience[0] != "host:example.com:8080" {
		t.Errorf("audience %v", p.Audience)
	}
}

// Law 4.
func TestGuestChoosesTwoHeaders(t *testing.T) {
	for _, args := range []string{
		`{"url":"https://example.com/","headers":{"Cookie":"a"}}`,
		`{"url":"https://example.com/","accept":"a\r\nCookie: b"}`,
		`{"url":"https://example.com/","accept_language":"` + strings.Repeat("x", 300) + `"}`,
		`{"url":"https://example.com/","accept":" x"}`,
		`{"url":"https://example.com/","method":"POST"}`,
		`{"url":"https://example.com/","method":"get"}`,
		`{"url":"https://example.com/","body":"x"}`,
		`{"url":"https://example.com/","URL":"https://evil.example/"}`,
	} {
		if _, d := open(t).Plan(fetch(args)); d == nil || d.Code != abi.Invalid {
			t.Errorf("%s: %v", args, d)
		}
	}
	p, d := open(t).Plan(fetch(`{"url":"https://example.com/","accept":"text/html","accept_language":"de"}`))
	if d != nil || fmt.Sprint(p.Frozen.HTTP.Header) != "[{Accept text/html} {Accept-Language de} {User-Agent monroe}]" {
		t.Errorf("%v %v", p.Frozen.HTTP, d)
	}
}

func parse(t *testing.T, a *connectors.Answer) (web.FetchReply, *abi.Denial) {
	t.Helper()
	h, c := open(t), fetch(`{"url":"https://example.com/a/b"}`)
	p, d := h.Plan(c)
	if d != nil {
		t.Fatal(d)
	}
	r, d := h.Parse(context.Background(), c, p, a)
	if d != nil {
		return web.FetchReply{}, d
	}
	if r.Provenance.Internal || r.Provenance.Readers[0] != connectors.Everyone || r.Cost == nil || *r.Cost != 0 {
		t.Errorf("%+v", r)
	}
	return r.Reply.(web.FetchReply), nil
}

// Law 3.
func TestRedirectIsAnAnswer(t *testing.T) {
	for loc, want := range map[string]string{
		"../c?d=1": "https://example.com/c?d=1", "//169.254.169.254/latest": "https://169.254.169.254/latest", "http://other.example/": "http://other.example/",
		strings.Repeat("x", 3000): "",
	} {
		r, d := parse(t, &connectors.Answer{Status: 302, Header: map[string][]string{"Location": {loc}}, Body: strings.NewReader("")})
		if d != nil || r.Status != 302 || r.Location != want {
			t.Errorf("%.40s: %+v %v", loc, r, d)
		}
	}
}

func TestBodies(t *testing.T) {
	answer := func(kind string, r io.Reader) *connectors.Answer {
		return &connectors.Answer{Status: 200, Header: map[string][]string{"Content-Type": {kind}}, Body: r}
	}
	if r, d := parse(t, answer("text/html; charset=utf-8", strings.NewReader("hé"))); d != nil || r.Text == nil || *r.Text != "hé" {
		t.Errorf("%+v %v", r, d)
	}
	if r, _ := parse(t, answer("image/png", strings.NewReader("abc"))); r.Text != nil || string(r.Base64) != "abc" {
		t.Errorf("%+v", r)
	}
	if r, _ := parse(t, answer("text/plain", strings.NewReader("\xff"))); r.Text != nil {
		t.Errorf("%+v", r)
	}
	cut := io.MultiReader(strings.NewReader("h\xc3"), failing{connectors.ErrAnswerTooLarge})
	if r, d := parse(t, answer("text/plain", cut)); d != nil || !r.Truncated || r.Text == nil || *r.Text != "h" {
		t.Errorf("%+v %v", r, d)
	}
	if _, d := parse(t, answer("text/plain", failing{context.DeadlineExceeded})); d == nil || d.Code != abi.Timeout {
		t.Error(d)
	}
	if _, d := parse(t, answer("text/plain", failing{errors.New("reset")})); d == nil || d.Code != abi.Upstream {
		t.Error(d)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
