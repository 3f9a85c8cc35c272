package files_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/files"
)

func open(t *testing.T) *files.Files {
	t.Helper()
	f, err := files.New(map[string]files.Folder{"docs": {Internal: true, Readers: []string{"workspace"}}, "drop": {}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func call(op, args string) connectors.Call {
	return connectors.Call{Operation: op, Args: json.RawMessage(args)}
}

// Law 1.
func TestPathIsCheckedNotRepaired(t *testing.T) {
	f := open(t)
	for args, code := range map[string]abi.Code{
		`{"folder":"docs","path":"../x"}`:                               abi.Invalid,
		`{"folder":"docs","path":"/etc/passwd"}`:                        abi.Invalid,
		`{"folder":"docs","path":"a\\b"}`:                               abi.Invalid,
		`{"folder":"docs","path":"a\u0000b"}`:                           abi.Invalid,
		`{"folder":"docs","path":"a\u202eb"}`:                           abi.Invalid,
		`{"folder":"docs","path":""}`:                                   abi.Invalid,
		`{"folder":"docs","path":"."}`:                                  abi.Invalid,
		`{"folder":"../docs","path":"x"}`:                               abi.NotFound,
		`{"folder":"docs/../drop","path":"x"}`:                          abi.NotFound,
		`{"folder":"other","path":"x"}`:                                 abi.NotFound,
		`{"folder":"docs","path":"x","max_bytes":5000000}`:              abi.Invalid,
		`{"folder":"docs","path":"x","max_bytes":-1}`:                   abi.Invalid,
		`{"folder":"docs","path":"x","follow_links":true}`:              abi.Invalid,
		`{"folder":"docs","path":"x","Path":"y"}`:                       abi.Invalid,
		`{"folder":"docs","path":["x"]}`:                                abi.Invalid,
		`{"folder":"docs","path":"` + strings.Repeat("a/", 600) + `a"}`: abi.Invalid,
	} {
		if _, d := f.Plan(call(files.OpRead, args)); d == nil || d.Code != code {
			t.Errorf("%s: %v, want %s", args, d, code)
		}
	}
	p, d := f.Plan(call(files.OpRead, `{"folder":"docs","path":"a/plan one.md"}`))
	if d != nil || p.Resources[0] != "files:docs/a/plan one.md" || p.Frozen.FileRead.Path != "a/plan one.md" || p.Audience[0] != "workspace" {
		t.Errorf("%+v %v", p, d)
	}
	if !abi.Pattern("files:docs/**").Covers(p.Resources[0]) || abi.Pattern("files:docs/b/**").Covers(p.Resources[0]) {
		t.Error("the resource does not fit the grants")
	}
}

// Law 2: the connector has no path to look at; equal calls give equal plans.
func TestPlanTouchesNoFile(t *testing.T) {
	f := open(t)
	a, d := f.Plan(call(files.OpList, `{"folder":"docs"}`))
	if d != nil || a.Resources[0] != "files:docs" || a.Frozen.FileList.Path != "." {
		t.Fatalf("%+v %v", a, d)
	}
	b, _ := f.Plan(call(files.OpList, `{"folder":"docs","path":"."}`))
	x, _ := a.Digest()
	if y, _ := b.Digest(); x != y {
		t.Error("equal calls differ")
	}
}

// Law 3.
func TestReplyIsLabelledAsItsFolder(t *testing.T) {
	f := open(t)
	when := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	for folder, want := range map[string]connectors.Provenance{
		"docs": {Internal: true, Readers: []string{"workspace"}}, "drop": {},
	} {
		c := call(files.OpRead, `{"folder":"`+folder+`","path":"x.md"}`)
		p, _ := f.Plan(c)
		r, d := f.Parse(context.Background(), c, p, &connectors.Answer{
			Files: []connectors.FileEntry{{Path: "x.md", Size: 5, Modified: when}}, Body: strings.NewReader("héy\n"),
		})
		if d != nil || r.Provenance.Internal != want.Internal || len(r.Provenance.Readers) != len(want.Readers) {
			t.Fatalf("%s: %+v %v", folder, r.Provenance, d)
		}
		reply := r.Reply.(files.ReadReply)
		if reply.Text == nil || *reply.Text != "héy\n" || reply.Size != 5 || !reply.Modified.Equal(when) || len(reply.SHA256) != 64 {
			t.Errorf("%+v", reply)
		}
	}
}

func TestBinaryTooLargeAndBroken(t *testing.T) {
	f := open(t)
	c := call(files.OpRead, `{"folder":"docs","path":"x"}`)
	p, _ := f.Plan(c)
	answer := func(r io.Reader) *connectors.Answer {
		return &connectors.Answer{Files: make([]connectors.FileEntry, 1), Body: r}
	}
	r, d := f.Parse(context.Background(), c, p, answer(strings.NewReader("\xff\x00")))
	if d != nil || r.Reply.(files.ReadReply).Text != nil || len(r.Reply.(files.ReadReply).Base64) != 2 {
		t.Errorf("%+v %v", r, d)
	}
	if _, d := f.Parse(context.Background(), c, p, answer(failing{connectors.ErrAnswerTooLarge})); d == nil || d.Code != abi.TooLarge {
		t.Error(d)
	}
	if _, d := f.Parse(context.Background(), c, p, answer(failing{errors.New("disk")})); d == nil || d.Code != abi.Upstream {
		t.Error(d)
	}
	if _, err := files.New(map[string]files.Folder{"../x": {}}); err == nil {
		t.Error("a folder name that is a path was accepted")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
