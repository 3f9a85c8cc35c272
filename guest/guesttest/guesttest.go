// Package guesttest runs a guest natively, in a plain unit test, against a host
// that lives in memory:
//
//	h := guesttest.New(t, manifest)
//	h.Folder("docs", os.DirFS("testdata"))
//	out := h.Run(run, map[string]any{"folder": "docs"})
//
// The host is as strict as a real one where an author can get it wrong: each
// request is read by abi.DecodeRequest, each op's arguments exactly, and what the
// manifest does not list is refused with SCOPE, so that a manifest is tested, too.
// Replay checks that a run can be continued after a wait.
//
// It knows the ABI and what the built-in operations answer. It must not know
// policy: it grants all that the manifest asks for, unless a test says Deny.
package guesttest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// Call is one request that the guest made and what it was answered.
type Call struct {
	Op        abi.Op
	Operation string // for tool.call and send
	Args      json.RawMessage
	Reply     abi.Reply
}

// Host is the fake. Set its fields before Run; the zero value of each is usable.
type Host struct {
	Owner string    // the owner's address that host.describe tells
	Clock time.Time // what time.now tells; time.sleep moves it
	// KV is the skill's memory; it outlives a run, as a real one does.
	KV map[string]json.RawMessage

	t        testing.TB
	manifest *abi.Manifest
	folders  map[string]fs.FS
	pages    map[string]guest.Page
	script   []guest.ChatReply
	denials  map[string]*abi.Denial
	answers  map[string]func(json.RawMessage) abi.Reply

	calls    []Call
	journal  []exchange
	outbox   []guest.Mail
	progress []string
	input    []byte
	result   []byte
	random   byte
	native   bool // the guest is executed by Run, which can begin it anew
	segments int
}

// New returns a host for a guest with this manifest, which must be valid.
func New(t testing.TB, manifest []byte) *Host {
	t.Helper()
	m, err := abi.ParseManifest(manifest)
	if err != nil {
		t.Fatalf("guesttest: %v", err)
	}
	return &Host{
		Owner: "owner@example.com", Clock: time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC),
		KV: map[string]json.RawMessage{}, t: t, manifest: m,
		folders: map[string]fs.FS{}, pages: map[string]guest.Page{},
		denials: map[string]*abi.Denial{}, answers: map[string]func(json.RawMessage) abi.Reply{},
	}
}

// Folder shares a folder under a name; fstest.MapFS and os.DirFS both serve.
func (h *Host) Folder(name string, f fs.FS) { h.folders[name] = f }

// Page makes a URL answer http.fetch.
func (h *Host) Page(url string, p guest.Page) { h.pages[url] = p }

// Model scripts the model: one reply for each llm.chat, in order. A call beyond
// the script fails the test.
func (h *Host) Model(replies ...guest.ChatReply) { h.script = append(h.script, replies...) }

// Deny refuses every call of an op or operation.
func (h *Host) Deny(name string, d *abi.Denial) { h.denials[name] = d }

// Allow takes a Deny back.
func (h *Host) Allow(name string) { delete(h.denials, name) }

// Answer answers an operation that this package does not know, or another way.
func (h *Host) Answer(name string, f func(args json.RawMessage) abi.Reply) { h.answers[name] = f }

// Calls are the requests of the last run, in order.
func (h *Host) Calls() []Call { return slices.Clone(h.calls) }

// CallsOf are the calls of one op or operation in the last run.
func (h *Host) CallsOf(name string) []Call {
	return slices.DeleteFunc(h.Calls(), func(c Call) bool { return c.Operation != name && string(c.Op) != name })
}

// Outbox is all mail that was sent, over all runs.
func (h *Host) Outbox() []guest.Mail { return slices.Clone(h.outbox) }

// Outcome is how a run ended.
type Outcome struct {
	Status   int32
	Result   json.RawMessage
	Progress []string
}

// Decode reads the result into v.
func (o Outcome) Decode(t testing.TB, v any) {
	t.Helper()
	if o.Status != guest.StatusOK {
		t.Fatalf("the run ended with status %d: %s", o.Status, o.Result)
	}
	if err := json.Unmarshal(o.Result, v); err != nil {
		t.Fatalf("the result %q: %v", o.Result, err)
	}
}

// Failure reads the result of a run that failed.
func (o Outcome) Failure(t testing.TB) guest.Failure {
	t.Helper()
	var f guest.Failure
	if o.Status != guest.StatusFailed || json.Unmarshal(o.Result, &f) != nil {
		t.Fatalf("the run ended with status %d and %s, not with an error", o.Status, o.Result)
	}
	return f
}

// Run executes a guest once. An input that is not []byte is encoded as JSON.
func (h *Host) Run(run func(*guest.Run) error, input any) Outcome {
	h.t.Helper()
	h.native, h.segments = true, 1
	defer func() { h.native = false }()
	imports := h.Begin(input)
	status, again := h.segment(imports, run)
	for again { // run.continue: a fresh instance, which sees the state and nothing of before
		h.journal = nil
		h.segments++
		status, again = h.segment(imports, run)
	}
	if len(h.result) > abi.MaxResult {
		h.t.Fatalf("the result has %d bytes, a host stops the run at %d", len(h.result), abi.MaxResult)
	}
	return h.End(status)
}

// continued unwinds a guest whose segment has ended.
type continued struct{}

func (h *Host) segment(i guest.Host, run func(*guest.Run) error) (status int32, again bool) {
	defer func() {
		if p := recover(); p == (continued{}) {
			again = true
		} else if p != nil {
			panic(p) // the guest's own, passed on
		}
	}()
	return guest.Execute(i, run), false
}

// Segments is how many segments the last run had.
func (h *Host) Segments() int { return h.segments }

// Begin starts a run whose guest is executed by somebody else, such as a Wasm
// engine with the built module. The result counts once End is called.
func (h *Host) Begin(input any) guest.Host {
	h.t.Helper()
	b, raw := input.([]byte)
	if !raw && input != nil {
		var err error
		if b, err = json.Marshal(input); err != nil {
			h.t.Fatalf("guesttest: the input: %v", err)
		}
	}
	h.calls, h.journal, h.progress, h.result, h.input = nil, nil, nil, nil, b
	return imports{h}
}

// End ends a run that Begin started.
func (h *Host) End(status int32) Outcome { return Outcome{status, h.result, h.progress} }

// imports hides the guest's side of the host from tests.
type imports struct{ h *Host }

func (i imports) Input() []byte        { return slices.Clone(i.h.input) }
func (i imports) SetResult(b []byte)   { i.h.result = slices.Clone(b) }
func (i imports) Call(b []byte) []byte { return i.h.record(b) }

func (h *Host) answer(b []byte) abi.Reply {
	req, d := abi.DecodeRequest(b)
	if d != nil {
		h.t.Errorf("the guest made a request that a host refuses: %v\n%s", d, clip(b))
		return abi.Refuse(d)
	}
	c := Call{Op: req.Op, Args: req.Args}
	c.Reply = h.do(req, &c)
	if len(h.calls) == int(abi.DefaultLimits().Calls) {
		h.t.Fatalf("the guest made more than %d calls; a host stops it", len(h.calls))
	}
	h.calls = append(h.calls, c)
	return c.Reply
}

func clip(b []byte) string {
	if len(b) > 400 {
		return fmt.Sprintf("%s… (%d bytes)", b[:400], len(b))
	}
	return string(b)
}
