// Package capture lets a vendor's SDK plan a call and read its answer without
// ever reaching a network.
//
// Laws, each with a test of the same name:
//
//  1. Nothing is dialled or resolved: the transports answer from memory.
//  2. Exactly one request is recorded; a second one ends the plan.
//  3. The random placeholder that the SDK was given as its credential is found in
//     the declared slot, exactly once, and is removed there. Found anywhere else,
//     also encoded, the plan is refused (law 4 of the door).
//  4. Only headers of the allow-list are kept, in a fixed order, so that equal
//     calls give equal bytes.
//  5. A replay answers the frozen request and no other.
//
// It knows one HTTP request, its slot and one answer. It must not know
// credentials, which operation is planned, or what the SDK is.
package capture

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/getmonroe/monroe/connectors"
)

// MaxBody is the largest request body that is recorded, in bytes.
const MaxBody = 8 << 20

// ErrCaptured is what an SDK gets from the capturing transport in place of an
// answer. It never means a failure.
var ErrCaptured = errors.New("the request was recorded and not sent")

// ErrRefused is wrapped by every error of Record and Replay that concerns the
// request itself.
var ErrRefused = errors.New("the request cannot be frozen")

// Options are what may be in the frozen request.
type Options struct {
	// Slot is where the credential goes; nil means that the request has none, and
	// then the placeholder may be nowhere.
	Slot *connectors.Slot
	// Headers are the names that are kept. The slot's header need not be among them.
	Headers []string
}

// Use runs the SDK with an HTTP client and a placeholder as its credential. The
// client is good for one call and has neither redirects nor cookies.
type Use func(client *http.Client, placeholder string) error

// Record runs use once and returns the one request that it made. What use returns
// is ignored when a request was recorded, since an SDK wraps ErrCaptured in its
// own way.
func Record(o Options, use Use) (*connectors.HTTPRequest, error) {
	r := &recorder{o: o, placeholder: placeholder()}
	err := use(client(r), r.placeholder)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, r.err
	case r.got == nil && err != nil:
		return nil, fmt.Errorf("%w: nothing was sent: %w", ErrRefused, err)
	case r.got == nil:
		return nil, fmt.Errorf("%w: nothing was sent", ErrRefused)
	}
	return r.got, nil
}

// Replay runs use again and answers the request that equals frozen with the given
// answer, whose body is streamed. Any other request gets an error. It returns what
// use returned, or why a request was refused.
func Replay(o Options, frozen *connectors.HTTPRequest, a *connectors.Answer, use Use) error {
	r := &replayer{recorder: recorder{o: o, placeholder: placeholder()}, frozen: frozen, answer: a}
	err := use(client(r), r.placeholder)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	return err
}

func client(t http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// placeholder is random, so that no guest can plant it and no host can hold it.
func placeholder() string { return "monroe" + rand.Text() + rand.Text() }

type recorder struct {
	o           Options
	placeholder string
	mu          sync.Mutex
	got         *connectors.HTTPRequest
	err         error
}

// RoundTrip records the request and answers with ErrCaptured.
func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	f, err := r.freeze(req)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
	case err != nil:
		r.err = err
	case r.got != nil:
		r.err = fmt.Errorf("%w: it makes more than one request", ErrRefused)
	default:
		r.got = f
		return nil, ErrCaptured
	}
	return nil, r.err
}

type replayer struct {
	recorder
	frozen *connectors.HTTPRequest
	answer *connectors.Answer
}

// RoundTrip answers the frozen request once.
func (r *replayer) RoundTrip(req *http.Request) (*http.Response, error) {
	f, err := r.freeze(req)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
	case err != nil:
		r.err = err
	case r.got != nil:
		r.err = fmt.Errorf("%w: the answer was read already", ErrRefused)
	case !equal(f, r.frozen):
		r.err = fmt.Errorf("%w: it differs from the request that was answered", ErrRefused)
	default:
		r.got = f
		return response(req, r.answer), nil
	}
	return nil, r.err
}

func response(req *http.Request, a *connectors.Answer) *http.Response {
	h := http.Header{}
	for name, values := range a.Header {
		h[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	// The body is what the host read, so these describe other bytes.
	h.Del("Content-Length")
	h.Del("Transfer-Encoding")
	body := a.Body
	if body == nil {
		body = http.NoBody
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.Status, http.StatusText(a.Status)), StatusCode: a.Status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: io.NopCloser(body),
		ContentLength: -1, Request: req,
	}
}

// freeze takes the request apart. It closes the body, as a transport must.
func (r *recorder) freeze(req *http.Request) (*connectors.HTTPRequest, error) {
	refuse := func(format string, args ...any) (*connectors.HTTPRequest, error) {
		return nil, fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
	}
	var body []byte
	if req.Body != nil {
		b, err := io.ReadAll(io.LimitReader(req.Body, MaxBody+1))
		if cerr := req.Body.Close(); err == nil {
			err = cerr
		}
		switch {
		case err != nil:
			return refuse("its body cannot be read")
		case len(b) > MaxBody:
			return refuse("its body has more than %d bytes", MaxBody)
		}
		body = b
	}
	u := *req.URL
	switch {
	case u.Scheme == "" || u.Host == "" || u.Opaque != "":
		return refuse("its URL is not absolute")
	case u.User != nil:
		return refuse("its URL holds a user name or password")
	case req.Host != "" && req.Host != u.Host:
		return refuse("its Host header differs from its URL")
	case req.Header.Get("Content-Encoding") != "":
		return refuse("its body is compressed, so nobody could read what leaves")
	}
	u.Fragment, u.RawFragment = "", ""
	header := req.Header.Clone()
	slot := r.o.Slot
	if slot != nil {
		if v := header.Values(slot.Header); len(v) != 1 || v[0] != slot.Prefix+r.placeholder {
			return refuse("its credential is not in the header %s, where it belongs", slot.Header)
		}
		header.Del(slot.Header)
	}
	// Every header is searched, also those that are dropped below: an SDK that
	// copies its credential about is not to be trusted with the rest.
	for name, values := range header {
		for _, v := range append(values, name) {
			if leaks(v, r.placeholder) {
				return refuse("its credential is also in the header %s", name)
			}
		}
	}
	if leaks(u.String(), r.placeholder) || leaks(req.Method, r.placeholder) {
		return refuse("its credential is in the URL")
	}
	if leaks(string(body), r.placeholder) {
		return refuse("its credential is in the body")
	}
	f := &connectors.HTTPRequest{Method: req.Method, URL: u.String(), Header: r.kept(header), Body: body}
	if slot != nil {
		c := *slot
		f.Credential = &c
	}
	return f, nil
}

func (r *recorder) kept(h http.Header) []connectors.Header {
	var out []connectors.Header
	for _, name := range r.o.Headers {
		name = http.CanonicalHeaderKey(name)
		if r.o.Slot != nil && name == http.CanonicalHeaderKey(r.o.Slot.Header) {
			continue
		}
		for _, v := range h[name] {
			out = append(out, connectors.Header{Name: name, Value: v})
		}
	}
	slices.SortStableFunc(out, func(a, b connectors.Header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func equal(a, b *connectors.HTTPRequest) bool {
	if b == nil || a.Method != b.Method || !sameURL(a.URL, b.URL) || !bytes.Equal(a.Body, b.Body) || !slices.Equal(a.Header, b.Header) {
		return false
	}
	if a.Credential == nil || b.Credential == nil {
		return a.Credential == b.Credential
	}
	return *a.Credential == *b.Credential
}

func sameURL(a, b string) bool {
	if a == b {
		return true
	}
	x, err := url.Parse(a)
	if err != nil {
		return false
	}
	y, err := url.Parse(b)
	return err == nil && x.String() == y.String()
}
