package http_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	web "github.com/getmonroe/monroe/connectors/http"
)

func endpoints(t *testing.T) *web.HTTP {
	t.Helper()
	h, err := web.New(web.Config{Endpoints: []web.Endpoint{
		{Name: "blind", URL: "https://api.example.com/v1/*"},
		{Name: "keyed", URL: "https://api.example.com/v1/**", Effect: abi.EffectWrite, Replay: abi.ReplayKeyed, Window: time.Hour, Price: 7, Credential: &connectors.Slot{Connection: "c", Header: "Authorization", Prefix: "Bearer "}},
		{Name: "put", Method: "PUT", URL: "https://api.example.com/v1/**", Effect: abi.EffectWrite, Replay: abi.ReplayConditional},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func call(op, key, args string) connectors.Call {
	return connectors.Call{Operation: op, Key: key, Args: json.RawMessage(args)}
}

// Law 5: the careful choice is the one that nobody has to make.
func TestAnEndpointIsWhatTheOperatorDeclared(t *testing.T) {
	h := endpoints(t)
	ops := map[string]connectors.Operation{}
	for _, op := range h.Operations() {
		ops[op.Name] = op
	}
	if b := ops["http.blind"]; b.Effect != abi.EffectSend || b.Replay != abi.ReplayBlind || b.Allow[0].Method != "POST" || b.Window != 0 {
		t.Errorf("%+v", b)
	}
	p, d := h.Plan(call("http.blind", "k", `{"url":"https://API.example.com/v1/a","body":"{}"}`))
	if d != nil || p.Frozen.HTTP.Method != "POST" || p.Resources[0] != "https://api.example.com/v1/a" || p.Audience[0] != "host:api.example.com" {
		t.Errorf("%+v %v", p, d)
	}
	if s := fmt.Sprint(p.Frozen.HTTP.Header); strings.Contains(s, "Idempotency") || s != "[{Accept */*} {Content-Type application/json} {User-Agent monroe}]" {
		t.Error(s)
	}
	for _, c := range []connectors.Call{
		call("http.blind", "", `{"url":"https://api.example.com/v1/a/b"}`),
		call("http.blind", "", `{"url":"https://other.example.com/v1/a"}`),
		call("http.blind", "", `{"url":"https://api.example.com/v1/a","method":"DELETE"}`),
		call("http.blind", "", `{"url":"https://api.example.com/v1/a","if_match":"\"1\""}`),
		call("http.blind", "", `{"url":"https://api.example.com/v1/a","body":"x","content_type":"a\r\nb"}`),
		call("http.blind", "", `{"url":"https://api.example.com/v1/a","body":"`+strings.Repeat("x", web.MaxBody+1)+`"}`),
		call("http.keyed", "", `{"url":"https://api.example.com/v1/a"}`),
		call("http.put", "k", `{"url":"https://api.example.com/v1/a"}`),
		call("http.put", "k", `{"url":"https://api.example.com/v1/a","if_match":"*"}`),
		call("http.put", "k", `{"url":"https://api.example.com/v1/a","if_match":"W/\"1\""}`),
		call("http.put", "k", `{"url":"https://api.example.com/v1/a","if_none_match":"\"1\""}`),
		call("http.put", "k", `{"url":"https://api.example.com/v1/a","if_match":"\"1\"","if_none_match":"*"}`),
		call("http.gone", "k", `{"url":"https://api.example.com/v1/a"}`),
	} {
		if p, d := h.Plan(c); d == nil {
			t.Errorf("%s %.80s: %+v", c.Operation, c.Args, p)
		}
	}
	for _, e := range []web.Endpoint{
		{Name: "fetch", URL: "https://a.example/"},
		{Name: "A", URL: "https://a.example/"},
		{Name: "a", URL: "https://*/x"},
		{Name: "a", URL: "https:**"},
		{Name: "a", URL: "ftp://a.example/"},
		{Name: "a", URL: "https://a.example/", Method: "GET"},
		{Name: "a", URL: "https://a.example/", Effect: abi.EffectRead},
		{Name: "a", URL: "https://a.example/", Effect: abi.EffectAdmin},
		{Name: "a", URL: "https://a.example/", Replay: abi.ReplayPure},
		{Name: "a", URL: "https://a.example/", Replay: abi.ReplayKeyed},
		{Name: "a", URL: "https://a.example/", Window: time.Hour},
		{Name: "a", URL: "https://a.example/", Price: -1},
		{Name: "a", URL: "https://a.example/", KeyHeader: "a b"},
	} {
		if _, err := web.New(web.Config{Endpoints: []web.Endpoint{e}}); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
}

// Law 6.
func TestAKeyedEndpointSendsTheCallsKey(t *testing.T) {
	h := endpoints(t)
	args := `{"url":"https://api.example.com/v1/a","body":"x","content_type":"text/plain"}`
	one, d := h.Plan(call("http.keyed", "00112233445566778899aabbccddeeff", args))
	if d != nil {
		t.Fatal(d)
	}
	want := connectors.Header{Name: "Idempotency-Key", Value: "00112233445566778899aabbccddeeff"}
	if !slices.Contains(one.Frozen.HTTP.Header, want) || one.Ceiling != 7 || one.Account != "c" || one.Frozen.HTTP.Credential == nil {
		t.Errorf("%+v", one.Frozen.HTTP)
	}
	two, _ := h.Plan(call("http.keyed", "ff112233445566778899aabbccddeeff", args))
	a, errA := one.Digest()
	b, errB := two.Digest()
	if errA != nil || errB != nil || a == b {
		t.Error("a yes to one key is a yes to another")
	}
}

func TestAnAnswerThatARepeatedAttemptGotSaysSo(t *testing.T) {
	h := endpoints(t)
	c := call("http.put", "k", `{"url":"https://api.example.com/v1/a","if_none_match":"*"}`)
	p, d := h.Plan(c)
	if d != nil {
		t.Fatal(d)
	}
	if _, d := h.Parse(context.Background(), c, p, &connectors.Answer{Status: 412, Body: strings.NewReader("")}); d == nil || d.Code != abi.Upstream || d.Effect != abi.OutcomeNone || d.Remedy == "" {
		t.Errorf("the first attempt changed something: %+v", d)
	}
	for status, again := range map[int]bool{200: false, 409: false, 412: true} {
		c.Repeated = again
		r, d := h.Parse(context.Background(), c, p, &connectors.Answer{Status: status, Body: strings.NewReader("")})
		if d != nil {
			t.Fatal(d)
		}
		if got := r.Reply.(web.EndpointReply); got.Repeated != again || got.Status != status || slices.Contains(r.Provenance.Readers, connectors.Everyone) {
			t.Errorf("%+v %+v", got, r.Provenance)
		}
	}
	_, d = h.Parse(context.Background(), c, p, &connectors.Answer{Status: 200, Body: failing{context.DeadlineExceeded}})
	if d == nil || d.Effect != "" { // the host knows that the bytes were handed over
		t.Errorf("%+v", d)
	}
}
