// Package http fetches web pages, and calls the endpoints that the operator opened
// for changes.
//
// Laws, each with a test of the same name:
//
//  1. What is decided is what is sent: the URL has one form, and the resource is
//     that form without its query.
//  2. The host of the URL reads the request: it is the audience.
//  3. A redirect is an answer; following it is a new call with a decision of its own.
//  4. A guest chooses two headers of a page and no other.
//  5. An endpoint is what the operator declared: its method, place, effect, class and
//     price. A guest chooses an address within it, the body and its type, and the
//     condition of a conditional one.
//  6. A keyed endpoint sends the call's key, the same with every attempt.
//
// It knows URLs and what an answer looks like. It must not know addresses, grants
// or credentials: whether a host may be reached at all is host/egress's business.
package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
)

// OpFetch is the operation, reached by the op of the same name.
const OpFetch = "http.fetch"

// Limits of one fetch.
const (
	DefaultMaxBytes = 1 << 20 // bytes of a body that a guest gets; the rest is cut off
	maxHeader       = 256     // bytes of a header value
	timeout         = 30 * time.Second
)

// Config is the operator's. Its zero value is usable.
type Config struct {
	// UserAgent is sent with every request; empty means "monroe".
	UserAgent string
	// MaxBytes bounds a body; 0 means DefaultMaxBytes, and that is also the most.
	MaxBytes int64
	// Endpoints are opened for changes, each as an operation of its own.
	Endpoints []Endpoint
}

// HTTP is the connector. It is safe for concurrent use.
type HTTP struct {
	c         Config
	endpoints map[string]*Endpoint // by operation
}

// New returns the connector.
func New(c Config) (*HTTP, error) {
	if c.UserAgent == "" {
		c.UserAgent = "monroe"
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxBytes < 0 || c.MaxBytes > DefaultMaxBytes {
		return nil, fmt.Errorf("http: MaxBytes is 1 to %d", DefaultMaxBytes)
	}
	if !headerValue(c.UserAgent) {
		return nil, fmt.Errorf("http: UserAgent: up to %d printable ASCII characters", maxHeader)
	}
	h := &HTTP{c: c, endpoints: map[string]*Endpoint{}}
	for _, e := range c.Endpoints {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("http: endpoint %q: %w", e.Name, err)
		}
		if h.endpoints[OpOf(e.Name)] != nil {
			return nil, fmt.Errorf("http: endpoint %q is there twice", e.Name)
		}
		h.endpoints[OpOf(e.Name)] = &e
	}
	return h, nil
}

// FetchArgs are the arguments of http.fetch.
type FetchArgs struct {
	URL            string `json:"url"`
	Method         string `json:"method,omitempty"` // GET, which is also the default, or HEAD
	Accept         string `json:"accept,omitempty"`
	AcceptLanguage string `json:"accept_language,omitempty"`
}

// FetchReply answers http.fetch: Text if the body is UTF-8, else Base64.
type FetchReply struct {
	URL         string  `json:"url"`
	Status      int     `json:"status"`
	ContentType string  `json:"content_type,omitempty"`
	Location    string  `json:"location,omitempty"` // of a redirect, absolute; fetch it with a new call
	Text        *string `json:"text,omitempty"`
	Base64      []byte  `json:"base64,omitempty"`
	Truncated   bool    `json:"truncated,omitempty"`
}

// Operations are the descriptors.
func (h *HTTP) Operations() []connectors.Operation {
	ops := []connectors.Operation{{
		Name: OpFetch, Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Op: abi.OpHTTPFetch,
		Renderer: connectors.RenderHTTP,
		Summary:  "Fetch a web page or file by its URL. Redirects are not followed.",
		Args: json.RawMessage(`{"type":"object","properties":{` +
			`"url":{"type":"string","description":"an http or https URL without a fragment"},` +
			`"method":{"type":"string","enum":["GET","HEAD"]},` +
			`"accept":{"type":"string","description":"the Accept header"},` +
			`"accept_language":{"type":"string","description":"the Accept-Language header"}},` +
			`"required":["url"],"additionalProperties":false}`),
		Allow: []connectors.Request{
			{Method: "GET", URL: "https:**"},
			{Method: "HEAD", URL: "https:**"},
			{Method: "GET", URL: "http:**"},
			{Method: "HEAD", URL: "http:**"},
		},
	}}
	for _, name := range slices.Sorted(maps.Keys(h.endpoints)) {
		ops = append(ops, h.endpoints[name].operation())
	}
	return ops
}

// Plan freezes the request.
func (h *HTTP) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	if e := h.endpoints[c.Operation]; e != nil {
		return e.plan(c, h.c.UserAgent, h.c.MaxBytes)
	}
	if c.Operation != OpFetch {
		return connectors.Plan{}, abi.Deny(abi.Unsupported, fmt.Sprintf("there is no operation %q", c.Operation), "use http.fetch")
	}
	var a FetchArgs
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return connectors.Plan{}, d
	}
	if a.Method == "" {
		a.Method = "GET"
	}
	if a.Method != "GET" && a.Method != "HEAD" {
		return connectors.Plan{}, abi.Deny(abi.Invalid, "the method is GET or HEAD", "anything else needs an operation of a connector")
	}
	t, err := canon.URL(a.URL)
	if err == nil {
		err = abi.CheckResource(t.Resource)
	}
	if err != nil {
		return connectors.Plan{}, abi.Deny(abi.Invalid, err.Error(), "correct the URL")
	}
	if a.Accept == "" {
		a.Accept = "*/*"
	}
	header := []connectors.Header{{Name: "Accept", Value: a.Accept}}
	if a.AcceptLanguage != "" {
		header = append(header, connectors.Header{Name: "Accept-Language", Value: a.AcceptLanguage})
	}
	header = append(header, connectors.Header{Name: "User-Agent", Value: h.c.UserAgent})
	if d := checkHeader(header); d != nil {
		return connectors.Plan{}, d
	}
	return connectors.Plan{
		Resources: []string{t.Resource}, Destination: t.Origin, Audience: []string{"host:" + t.Host},
		Frozen:  connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: a.Method, URL: t.URL, Header: header}},
		Timeout: timeout, MaxAnswer: h.c.MaxBytes,
	}, nil
}

func headerValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= maxHeader && strings.TrimSpace(s) == s && s != ""
}

// Parse reads the answer. Every status is an answer: what it means is for the
// guest to judge.
func (h *HTTP) Parse(_ context.Context, c connectors.Call, p connectors.Plan, a *connectors.Answer) (connectors.Result, *abi.Denial) {
	f := p.Frozen.HTTP
	if f == nil {
		return connectors.Result{}, abi.Deny(abi.Internal, "the answer is not that of a web page", "")
	}
	if e := h.endpoints[c.Operation]; e != nil {
		return e.parse(c, p, a)
	}
	r, err := read(f, a)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return connectors.Result{}, abi.Deny(abi.Timeout, "the page did not arrive in time", "try again, or fetch a smaller page")
	case err != nil:
		return connectors.Result{}, abi.Deny(abi.Upstream, "the connection broke before the page was complete", "try again")
	}
	return connectors.Result{
		Reply: r, Cost: new(abi.MicroUSD),
		Provenance: connectors.Provenance{Readers: []string{connectors.Everyone}, Origins: p.Resources},
	}, nil
}

// fill puts a body into the reply: as text if it is text, plain says that it is not
// compressed.
func (r *FetchReply) fill(b []byte, plain bool) {
	if r.Truncated {
		// A character that was cut in two must not turn a text into base64.
		for i := 0; i < utf8.UTFMax-1 && len(b) > 0 && !utf8.Valid(b); i++ {
			b = b[:len(b)-1]
		}
	}
	if text := string(b); plain && utf8.Valid(b) && !strings.Contains(text, "\x00") && textual(r.ContentType) {
		r.Text = &text
	} else {
		r.Base64 = b
	}
}

// textual is false for what is surely not text; the bytes decide the rest.
func textual(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err != nil || !strings.HasPrefix(t, "image/") && !strings.HasPrefix(t, "audio/") && !strings.HasPrefix(t, "video/") || t == "image/svg+xml"
}

func first(h map[string][]string, name string) string {
	for k, v := range h {
		if strings.EqualFold(k, name) && len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

func clip(s string) string { return s[:min(len(s), maxHeader)] }

// absolute resolves where a redirect points; it is empty for what no URL is.
func absolute(base, loc string) string {
	b, err := url.Parse(base)
	if err != nil || len(loc) > canon.MaxURL {
		return ""
	}
	u, err := b.Parse(loc)
	if err != nil {
		return ""
	}
	return u.String()
}
