package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
)

// Limits of one call of an endpoint.
const (
	MaxBody = 256 << 10 // bytes of a request's body
	// DefaultKeyHeader carries an idempotency key where nobody says otherwise.
	DefaultKeyHeader = "Idempotency-Key"
)

// Endpoint is one place on the web that the operator opened for changes. It becomes
// an operation of its own, http.<name>, so that its effect, its replay class and its
// price are part of a pinned descriptor and never a guest's choice. The zero value of
// a field is the careful one: an endpoint is a blind send.
type Endpoint struct {
	Name    string
	Summary string
	// Method is POST, PUT, PATCH or DELETE; empty means POST.
	Method string
	// URL covers what may be called. Scheme and host are literal.
	URL abi.Pattern
	// Effect is write, send, delete, share, pay or metered; empty means send.
	Effect abi.Effect
	// Replay is keyed, conditional or blind; empty means blind.
	Replay abi.ReplayClass
	// Window is how long the other side knows a key again; keyed endpoints have one.
	Window time.Duration
	// KeyHeader carries the key; empty means DefaultKeyHeader.
	KeyHeader string
	// Price is what one call costs at most, and what it is booked with.
	Price abi.MicroUSD
	// Timeout bounds an attempt; 0 means 30 s. What is in doubt waits for its end.
	Timeout time.Duration
	// Credential is put in when the bytes leave; nil means that none is needed.
	Credential *connectors.Slot
}

// EndpointArgs are the arguments of an endpoint's operation.
type EndpointArgs struct {
	URL         string `json:"url"`
	Body        string `json:"body,omitempty"`
	ContentType string `json:"content_type,omitempty"` // application/json, unless it is given
	IfMatch     string `json:"if_match,omitempty"`
	IfNoneMatch string `json:"if_none_match,omitempty"`
}

// EndpointReply answers it. Repeated says that the answer to an earlier attempt of
// this very call was lost: a 412 or 409 may then be owed to that attempt's success.
type EndpointReply struct {
	FetchReply
	Repeated bool `json:"repeated,omitempty"`
}

var (
	endpointName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	headerName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)
	literal      = regexp.MustCompile(`^https?://[^/*?]+/`)
)

// check fills in what was left out and says what does not fit together.
func (e *Endpoint) check() error {
	if e.Method == "" {
		e.Method = "POST"
	}
	if e.Effect == "" {
		e.Effect = abi.EffectSend
	}
	if e.Replay == "" {
		e.Replay = abi.ReplayBlind
	}
	if e.KeyHeader == "" {
		e.KeyHeader = DefaultKeyHeader
	}
	if e.Timeout == 0 {
		e.Timeout = timeout
	}
	if e.Summary == "" {
		e.Summary = fmt.Sprintf("%s to %s.", e.Method, e.URL)
	}
	switch {
	case !endpointName.MatchString(e.Name) || OpOf(e.Name) == OpFetch:
		return fmt.Errorf("a name is a lower-case letter, then letters, digits or _, and not fetch")
	case !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, e.Method):
		return fmt.Errorf("the method %q is none of POST, PUT, PATCH and DELETE", e.Method)
	case !literal.MatchString(string(e.URL)):
		return fmt.Errorf("the URL %q does not begin with a scheme, a host and a slash; the host has no wildcard", e.URL)
	case !slices.Contains([]abi.Effect{abi.EffectWrite, abi.EffectSend, abi.EffectDelete, abi.EffectShare, abi.EffectPay, abi.EffectMetered}, e.Effect):
		return fmt.Errorf("the effect %q is none of write, send, delete, share, pay and metered", e.Effect)
	case !slices.Contains([]abi.ReplayClass{abi.ReplayKeyed, abi.ReplayConditional, abi.ReplayBlind}, e.Replay):
		return fmt.Errorf("the replay class %q is none of keyed, conditional and blind", e.Replay)
	case (e.Replay == abi.ReplayKeyed) != (e.Window > 0):
		return fmt.Errorf("a keyed endpoint says for how long its keys are known, and no other does")
	case !headerName.MatchString(e.KeyHeader):
		return fmt.Errorf("the key's header %q is not one", e.KeyHeader)
	case e.Price < 0 || e.Timeout < 0 || e.Timeout > 10*time.Minute:
		return fmt.Errorf("the price is not negative, and the timeout is up to 10 minutes")
	}
	return abi.CheckPattern(e.URL)
}

// OpOf is the operation of an endpoint.
func OpOf(name string) string { return "http." + name }

func (e *Endpoint) operation() connectors.Operation {
	more := ""
	if e.Replay == abi.ReplayConditional {
		more = `"if_match":{"type":"string","description":"the ETag that the thing must have"},` +
			`"if_none_match":{"type":"string","description":"* if the thing must not exist yet"},`
	}
	return connectors.Operation{
		Name: OpOf(e.Name), Version: 1, Effect: e.Effect, Replay: e.Replay, Window: e.Window,
		Renderer: connectors.RenderHTTP, Summary: e.Summary, Price: e.Price,
		Args: json.RawMessage(`{"type":"object","properties":{` + more +
			`"url":{"type":"string","description":"an address that the operator opened"},` +
			`"body":{"type":"string","description":"what is sent"},` +
			`"content_type":{"type":"string","description":"application/json if it is left out"}},` +
			`"required":["url"],"additionalProperties":false}`),
		Allow: []connectors.Request{{Method: e.Method, URL: e.URL}},
	}
}

// plan freezes one call of the endpoint.
//
// The idempotency key is a frozen header and not a slot that is filled at send: it is
// no secret, it belongs to this call alone, and so a person's yes covers it like
// every other byte.
func (e *Endpoint) plan(c connectors.Call, agent string, most int64) (connectors.Plan, *abi.Denial) {
	var a EndpointArgs
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return connectors.Plan{}, d
	}
	t, err := canon.URL(a.URL)
	if err == nil {
		err = abi.CheckResource(t.Resource)
	}
	switch {
	case err != nil:
		return connectors.Plan{}, abi.Deny(abi.Invalid, err.Error(), "correct the URL")
	case !e.URL.Covers(t.Resource):
		return connectors.Plan{}, abi.Deny(abi.Scope, fmt.Sprintf("http.%s does not reach %s", e.Name, t.Resource), "use an address that the operator opened for it")
	case len(a.Body) > MaxBody:
		return connectors.Plan{}, abi.Deny(abi.TooLarge, fmt.Sprintf("the body has %d bytes, at most %d are allowed", len(a.Body), MaxBody), "send less")
	}
	if a.ContentType == "" {
		a.ContentType = "application/json"
	}
	header := []connectors.Header{{Name: "Accept", Value: "*/*"}}
	if a.Body != "" {
		if _, _, err := mime.ParseMediaType(a.ContentType); err != nil {
			return connectors.Plan{}, abi.Deny(abi.Invalid, "content_type is not a media type", "use application/json or text/plain")
		}
		header = append(header, connectors.Header{Name: "Content-Type", Value: a.ContentType})
	}
	conditions := 0
	for _, x := range []connectors.Header{{Name: "If-Match", Value: a.IfMatch}, {Name: "If-None-Match", Value: a.IfNoneMatch}} {
		if x.Value != "" {
			conditions++
			header = append(header, x)
		}
	}
	switch e.Replay {
	case abi.ReplayConditional:
		// "If-Match: *" holds before and after the change, so it would let a second one in.
		if conditions != 1 || a.IfMatch == "*" || strings.HasPrefix(a.IfMatch, "W/") || a.IfNoneMatch != "" && a.IfNoneMatch != "*" {
			return connectors.Plan{}, abi.Deny(abi.Invalid, "a conditional call has one condition: if_match with a strong ETag, or if_none_match with *", "read the thing first and give its ETag")
		}
	default:
		if conditions > 0 {
			return connectors.Plan{}, abi.Deny(abi.Invalid, fmt.Sprintf("http.%s takes no condition", e.Name), "leave if_match and if_none_match out")
		}
	}
	if e.Replay == abi.ReplayKeyed {
		if c.Key == "" {
			return connectors.Plan{}, abi.Deny(abi.Internal, "the call has no key", "")
		}
		header = append(header, connectors.Header{Name: e.KeyHeader, Value: c.Key})
	}
	header = append(header, connectors.Header{Name: "User-Agent", Value: agent})
	if d := checkHeader(header); d != nil {
		return connectors.Plan{}, d
	}
	p := connectors.Plan{
		Resources: []string{t.Resource}, Destination: t.Origin, Audience: []string{"host:" + t.Host}, Ceiling: e.Price,
		Frozen:  connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: e.Method, URL: t.URL, Header: header, Body: []byte(a.Body), Credential: e.Credential}},
		Timeout: e.Timeout, MaxAnswer: most,
	}
	if e.Credential != nil {
		p.Account = e.Credential.Connection
	}
	return p, nil
}

// parse reads the answer. Every status is an answer: the request was understood or
// refused, and either is known. One is more: where the condition does not hold, the other
// side says that it changed nothing, unless an earlier attempt did.
func (e *Endpoint) parse(c connectors.Call, p connectors.Plan, a *connectors.Answer) (connectors.Result, *abi.Denial) {
	r, err := read(p.Frozen.HTTP, a)
	if err != nil {
		// The effect is left to the host: it knows that the bytes were handed over.
		code, reason := abi.Upstream, "the connection broke before the answer was complete"
		if errors.Is(err, context.DeadlineExceeded) {
			code, reason = abi.Timeout, "the answer did not arrive in time"
		}
		return connectors.Result{}, &abi.Denial{Code: code, Reason: reason, Remedy: "look at the other side before this is tried again"}
	}
	if e.Replay == abi.ReplayConditional && r.Status == 412 && !c.Repeated {
		return connectors.Result{}, abi.Deny(abi.Upstream, "the condition does not hold (412): what is there is not what was looked at, and nothing was changed", "read it again, and ask again with what it is now")
	}
	cost := e.Price
	return connectors.Result{
		Reply: EndpointReply{FetchReply: r, Repeated: c.Repeated}, Cost: &cost, ProviderID: clip(first(a.Header, "X-Request-Id")),
		Provenance: connectors.Provenance{Readers: append([]string{"workspace"}, p.Audience...), Origins: p.Resources},
	}, nil
}

func checkHeader(list []connectors.Header) *abi.Denial {
	for _, x := range list {
		if !headerValue(x.Value) {
			return abi.Deny(abi.Invalid, fmt.Sprintf("%s: up to %d printable ASCII characters", x.Name, maxHeader), "shorten it")
		}
	}
	return nil
}

// read takes in an answer's body, as text where it is text. A body that was cut off is
// an error; one that is too large is truncated.
func read(f *connectors.HTTPRequest, a *connectors.Answer) (FetchReply, error) {
	r := FetchReply{URL: f.URL, Status: a.Status, ContentType: clip(first(a.Header, "Content-Type"))}
	if loc := first(a.Header, "Location"); loc != "" && a.Status >= 300 && a.Status < 400 {
		r.Location = absolute(f.URL, loc)
	}
	b, err := io.ReadAll(a.Body)
	if errors.Is(err, connectors.ErrAnswerTooLarge) {
		r.Truncated = true
	} else if err != nil {
		return r, err
	}
	r.fill(b, first(a.Header, "Content-Encoding") == "")
	return r, nil
}
