package capture_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/capture"
)

func options() capture.Options {
	return capture.Options{
		Slot:    &connectors.Slot{Connection: "con_1", Header: "Authorization", Prefix: "Bearer "},
		Headers: []string{"Content-Type", "Accept"},
	}
}

type edit func(req *http.Request, secret string)

func send(t *testing.T, edits ...edit) capture.Use {
	t.Helper()
	return func(c *http.Client, secret string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.invalid/v1/x?q=1", strings.NewReader(`{"a":1}`))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set("X-Stainless-Os", "Linux")
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "text/event-stream")
		for _, e := range edits {
			e(req, secret)
		}
		resp, err := c.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
}

func setBody(s string) edit {
	return func(r *http.Request, secret string) {
		b := strings.ReplaceAll(s, "SECRET", secret)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(b)), int64(len(b))
		r.GetBody = nil
	}
}

// Law 1. A host that does not exist would fail if it were looked up or dialled.
func TestNothingIsDialled(t *testing.T) {
	f, err := capture.Record(options(), func(c *http.Client, secret string) error {
		if _, real := c.Transport.(*http.Transport); real || c.Transport == nil {
			t.Error("the client could reach a network")
		}
		return send(t)(c, secret)
	})
	if err != nil {
		t.Fatal(err)
	}
	if f.URL != "https://api.invalid/v1/x?q=1" || f.Method != "POST" || string(f.Body) != `{"a":1}` {
		t.Errorf("frozen %+v", f)
	}
}

// Law 2.
func TestExactlyOneRequest(t *testing.T) {
	_, err := capture.Record(options(), func(c *http.Client, secret string) error {
		_ = send(t)(c, secret)
		return send(t)(c, secret)
	})
	if !errors.Is(err, capture.ErrRefused) {
		t.Errorf("two requests: %v", err)
	}
	_, err = capture.Record(options(), func(*http.Client, string) error { return nil })
	if !errors.Is(err, capture.ErrRefused) {
		t.Errorf("no request: %v", err)
	}
}

// Law 3.
func TestPlaceholderOnlyInItsSlot(t *testing.T) {
	b64 := func(pre string) func(string) string {
		return func(s string) string { return base64.StdEncoding.EncodeToString([]byte(pre + s + "tail")) }
	}
	percent := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			b.WriteString("%" + hex.EncodeToString([]byte{s[i]}))
		}
		return b.String()
	}
	forms := map[string]func(string) string{
		"plain": func(s string) string { return "x" + s + "y" }, "lower": strings.ToLower,
		"base64": b64(""), "base64 shifted by 1": b64("a"), "base64 shifted by 2": b64("ab"),
		"base64url": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"hex":       func(s string) string { return hex.EncodeToString([]byte(s)) },
		"percent":   percent, "percent twice": func(s string) string { return strings.ReplaceAll(percent(s), "%", "%25") },
		"json escapes": func(s string) string { return `\u006d` + s[1:] },
	}
	places := map[string]func(string) edit{
		"body":        func(s string) edit { return setBody(s) },
		"header":      func(s string) edit { return func(r *http.Request, _ string) { r.Header.Set("X-Stainless-Trace", s) } },
		"kept header": func(s string) edit { return func(r *http.Request, _ string) { r.Header.Set("Accept", s) } },
		"query": func(s string) edit {
			return func(r *http.Request, _ string) { r.URL.RawQuery = "k=" + url.QueryEscape(s) }
		},
		"path":         func(s string) edit { return func(r *http.Request, _ string) { r.URL.Path = "/" + s } },
		"slot's twice": func(s string) edit { return func(r *http.Request, _ string) { r.Header.Add("Authorization", s) } },
	}
	for form, f := range forms {
		for place, p := range places {
			_, err := capture.Record(options(), func(c *http.Client, secret string) error {
				return send(t, func(r *http.Request, secret string) { p(f(secret))(r, secret) })(c, secret)
			})
			if !errors.Is(err, capture.ErrRefused) {
				t.Errorf("%s in %s: %v", form, place, err)
			}
		}
	}
	for name, e := range map[string]edit{
		"missing":      func(r *http.Request, _ string) { r.Header.Del("Authorization") },
		"other prefix": func(r *http.Request, s string) { r.Header.Set("Authorization", "Basic "+s) },
		"user info":    func(r *http.Request, _ string) { r.URL.User = url.UserPassword("a", "b") },
		"compressed":   func(r *http.Request, _ string) { r.Header.Set("Content-Encoding", "gzip") },
		"other host":   func(r *http.Request, _ string) { r.Host = "evil.example" },
	} {
		if _, err := capture.Record(options(), send(t, e)); !errors.Is(err, capture.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Law 4.
func TestHeadersAreAllowedAndOrdered(t *testing.T) {
	first, err := capture.Record(options(), send(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []connectors.Header{{Name: "Accept", Value: "text/event-stream"}, {Name: "Content-Type", Value: "application/json"}}
	if len(first.Header) != 2 || first.Header[0] != want[0] || first.Header[1] != want[1] {
		t.Errorf("headers %v", first.Header)
	}
	a, _ := connectors.Plan{Frozen: connectors.Frozen{HTTP: first}}.Digest()
	for range 20 {
		again, err := capture.Record(options(), send(t))
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := (connectors.Plan{Frozen: connectors.Frozen{HTTP: again}}).Digest(); a != b {
			t.Fatal("equal calls gave other bytes")
		}
	}
}

// Law 5.
func TestReplayAnswersTheFrozenRequestOnly(t *testing.T) {
	frozen, err := capture.Record(options(), send(t))
	if err != nil {
		t.Fatal(err)
	}
	answer := func() *connectors.Answer {
		return &connectors.Answer{Status: 200, Header: map[string][]string{"Content-Type": {"text/plain"}, "Content-Length": {"9"}}, Body: strings.NewReader("hello")}
	}
	var got bytes.Buffer
	read := func(edits ...edit) capture.Use {
		return func(c *http.Client, secret string) error {
			req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, frozen.URL, bytes.NewReader(frozen.Body))
			req.Header.Set("Authorization", "Bearer "+secret)
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "text/event-stream")
			for _, e := range edits {
				e(req, secret)
			}
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			_, err = io.Copy(&got, resp.Body)
			return errors.Join(err, resp.Body.Close())
		}
	}
	if err := capture.Replay(options(), frozen, answer(), read()); err != nil || got.String() != "hello" {
		t.Fatalf("replay: %v %q", err, got.String())
	}
	for name, e := range map[string]edit{
		"body":   setBody(`{"a":2}`),
		"path":   func(r *http.Request, _ string) { r.URL.Path = "/v1/y" },
		"query":  func(r *http.Request, _ string) { r.URL.RawQuery = "q=2" },
		"method": func(r *http.Request, _ string) { r.Method = http.MethodPut },
		"header": func(r *http.Request, _ string) { r.Header.Set("Accept", "text/html") },
	} {
		if err := capture.Replay(options(), frozen, answer(), read(e)); !errors.Is(err, capture.ErrRefused) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	twice := func(c *http.Client, secret string) error {
		return errors.Join(read()(c, secret), read()(c, secret))
	}
	if err := capture.Replay(options(), frozen, answer(), twice); !errors.Is(err, capture.ErrRefused) {
		t.Errorf("read twice: %v", err)
	}
}
