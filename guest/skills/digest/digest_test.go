package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
	"github.com/getmonroe/monroe/guest/guesttest"
)

//go:embed manifest.json
var manifest []byte

func files(pairs ...string) fstest.MapFS {
	fs := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		fs[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1]), ModTime: time.Date(2026, 11, 1, 8, 0, i, 0, time.UTC)}
	}
	return fs
}

func newHost(t *testing.T, fs fstest.MapFS) *guesttest.Host {
	h := guesttest.New(t, manifest)
	h.Folder("docs", fs)
	return h
}

func digestOf(t *testing.T, h *guesttest.Host, in map[string]any) result {
	t.Helper()
	if in["folder"] == nil {
		in["folder"] = "docs"
	}
	var res result
	h.Run(run, in).Decode(t, &res)
	h.Replay(run)
	return res
}

func TestFirstDigestThenTheNews(t *testing.T) {
	fs := files(
		"plan.md", "# Plan\n\nShall we ship on Friday?\n\n## Next\n- [ ] write the notes\n- [x] done\n",
		"README", "About\n=====\nSee [the plan](plan.md) and [gone](old/x.md#top) or https://example.com/a?b=c.\n",
		"old.txt", "Nothing here.\n",
		"logo.png", "\x89PNG\xff",
	)
	h := newHost(t, fs)
	res := digestOf(t, h, map[string]any{})
	if !res.First || res.Files != 3 || !res.Mail.Sent || !res.Mail.Remembered || res.Mail.MessageID == "" {
		t.Errorf("first digest: %+v", res.Mail)
	}
	want := []finding{{"plan.md", 3, "Shall we ship on Friday?"}, {"plan.md", 6, "[ ] write the notes"}}
	if !slices.Equal(res.OpenQuestions, want) {
		t.Errorf("open questions %v, want %v", res.OpenQuestions, want)
	}
	if len(res.Links.Broken) != 1 || res.Links.Broken[0] != (finding{"README", 3, "old/x.md#top (no such file)"}) {
		t.Errorf("broken links %v", res.Links.Broken)
	}
	if !slices.Equal(res.Links.Hosts, []string{"example.com"}) {
		t.Errorf("hosts %v", res.Links.Hosts)
	}
	mail := h.Outbox()[0]
	if mail.To[0] != "owner@example.com" || mail.Subject != "Digest of docs: 3 documents, first digest" {
		t.Errorf("mail %v %q", mail.To, mail.Subject)
	}
	golden(t, mail.Text, `Digest of docs
==============
2 November 2026: the first digest of docs, so all of it is new: 3 documents.

Open questions (2)
------------------
  plan.md:3  Shall we ship on Friday?
  plan.md:6  [ ] write the notes

Outline
-------
  README  (3 lines, 8 words)
      1  About
  old.txt  (1 line, 2 words)
  plan.md  (7 lines, 12 words)
      1  Plan
      5    Next

Links that lead nowhere (1)
---------------------------
  README:3  old/x.md#top (no such file)

Links, by host
--------------
  example.com (1 link)
    https://example.com/a?b=c  README:3

Left out
--------
  - Not documents, so not read: 1 × .png.
`)

	fs["plan.md"].Data = []byte("# Plan\n\n## Done\n")
	fs["new.md"] = &fstest.MapFile{Data: []byte("# Fresh\n")}
	delete(fs, "old.txt")
	h.Clock = h.Clock.AddDate(0, 0, 7)
	res = digestOf(t, h, map[string]any{"title": "Weekly", "to": "team@example.com"})
	if got := fmt.Sprint(res.Changed); got != "{[new.md] [plan.md] [old.txt] 1}" || res.First {
		t.Errorf("changes %s", got)
	}
	mail = h.Outbox()[1]
	if mail.Subject != "Weekly: 1 new, 1 changed, 1 removed" || mail.To[0] != "team@example.com" {
		t.Errorf("mail %v %q", mail.To, mail.Subject)
	}
	if strings.Contains(mail.Text, "About") {
		t.Errorf("an unchanged document is outlined again:\n%s", mail.Text)
	}

	res = digestOf(t, h, map[string]any{})
	if res.Changed.any() || !strings.Contains(res.Text, "nothing changed in docs since the digest of 9 November 2026") {
		t.Errorf("third digest:\n%s", res.Text)
	}
}

func golden(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestRejectedMailLosesNoNews(t *testing.T) {
	for _, code := range []abi.Code{abi.ApprovalRejected, abi.ApprovalExpired, abi.Label, abi.Scope, abi.OutcomeUnknown} {
		h := newHost(t, files("a.md", "# A\n"))
		h.Deny(guest.MailSend, abi.Deny(code, "no", "ask later"))
		res := digestOf(t, h, map[string]any{})
		if res.Mail.Sent || res.Mail.Code != code || res.Mail.Remedy != "ask later" || res.Text == "" {
			t.Errorf("%s: %+v", code, res.Mail)
		}
		if len(h.KV) != 0 || len(h.CallsOf(string(abi.OpKVPut))) != 0 {
			t.Errorf("%s: a digest that was not mailed was remembered", code)
		}
		h.Allow(guest.MailSend)
		if res = digestOf(t, h, map[string]any{}); !res.First || !res.Mail.Sent {
			t.Errorf("%s: the next digest lost the news", code)
		}
	}
}

func TestRemembersOnlyAfterTheMail(t *testing.T) {
	h := newHost(t, files("a.md", "# A\n"))
	digestOf(t, h, map[string]any{})
	sent, put := -1, -1
	for i, c := range h.Calls() {
		switch {
		case c.Operation == guest.MailSend:
			sent = i
		case c.Op == abi.OpKVPut:
			put = i
		}
	}
	if sent < 0 || put < sent {
		t.Errorf("mail at call %d, kv.put at call %d", sent, put)
	}
	h.Deny(string(abi.OpKVPut), abi.Deny(abi.Budget, "full", ""))
	if res := digestOf(t, h, map[string]any{}); !res.Mail.Sent || res.Mail.Remembered || res.Mail.Reason == "" {
		t.Errorf("a full memory: %+v", res.Mail)
	}
}

func TestBadInputs(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                                "folder",
		`{"folder":"docs","Title":"x"}`:     "must be spelled",
		`{"folder":"docs","max":1}`:         "unknown field",
		`{"folder":"docs","since":"x"}`:     "not a date",
		`{"folder":"docs","max_files":-1}`:  "max_files",
		`{"folder":"docs","max_files":1.5}`: "integer",
		`[]`:                                "",
		`{"folder":"nope"}`:                 "NOT_FOUND",
		`{"folder":"a/../b"}`:               "INVALID",
	} {
		h := newHost(t, files("a.md", "x"))
		f := h.Run(run, []byte(in)).Failure(t)
		if !strings.Contains(f.Error.Reason, want) {
			t.Errorf("%s: %q does not tell of %q", in, f.Error.Reason, want)
		}
		if len(h.Outbox()) > 0 {
			t.Errorf("%s: mailed", in)
		}
	}
	h := newHost(t, files("a.md", "x"))
	h.Owner = ""
	if f := h.Run(run, []byte(`{"folder":"docs"}`)).Failure(t); !strings.Contains(f.Error.Reason, "nobody to mail") {
		t.Errorf("no owner: %q", f.Error.Reason)
	}
}

func TestWhatCannotBeReadIsNoted(t *testing.T) {
	fs := files(
		"latin.md", "caf\xe9",
		"nul.txt", "a\x00b",
		"big.md", strings.Repeat("x\n", largestFile),
		"ok.md", "# Fine\n"+strings.Repeat("y", 3*longestLine)+" TODO unseen\n",
		".git/config.md", "# Hidden",
		"node_modules/p/README.md", "# Hidden",
		"empty.md", "",
	)
	h := newHost(t, fs)
	res := digestOf(t, h, map[string]any{})
	if res.Files != 2 || strings.Contains(res.Text, "Hidden") {
		t.Errorf("%d files read:\n%s", res.Files, res.Text)
	}
	for _, want := range []string{"latin.md is not text", "nul.txt is not text", "big.md is too large", "ok.md: 1 very long line"} {
		if !strings.Contains(res.Text, want) {
			t.Errorf("the digest does not note %q:\n%s", want, res.Text)
		}
	}
}

func TestUnreadDocumentsAreNeitherNewNorRemoved(t *testing.T) {
	fs := files("a.md", "a", "b.md", "b", "c.md", "c")
	h := newHost(t, fs)
	digestOf(t, h, map[string]any{})
	res := digestOf(t, h, map[string]any{"max_files": 1})
	if res.Changed.any() || res.Files != 1 || !strings.Contains(res.Text, "2 documents were not read") {
		t.Errorf("with one file: %+v\n%s", res.Changed, res.Text)
	}
	if res = digestOf(t, h, map[string]any{}); res.Changed.any() {
		t.Errorf("afterwards: %+v", res.Changed)
	}
}

func TestTruncatedListing(t *testing.T) {
	h := newHost(t, files("a.md", "[x](b.md)", "b.md", "b"))
	digestOf(t, h, map[string]any{})
	h.Answer(guest.FilesList, func(json.RawMessage) abi.Reply {
		return abi.OK(guest.Listing{Entries: []guest.Entry{{Path: "a.md", Size: 9, Modified: "2026-11-01T08:00:00Z"}}, Truncated: true})
	})
	res := digestOf(t, h, map[string]any{})
	if len(res.Changed.Removed)+len(res.Links.Broken) != 0 || len(res.Notes) == 0 {
		t.Errorf("claims what it cannot know: %+v %v", res.Changed, res.Links.Broken)
	}
}

func TestSince(t *testing.T) {
	fs := files("old.md", "# Old\n", "new.md", "# New\n")
	fs["old.md"].ModTime = time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	res := digestOf(t, newHost(t, fs), map[string]any{"since": "2026-10-01"})
	if !strings.Contains(res.Text, "modified since 1 October 2026") || strings.Contains(res.Text, "  Old\n") || !strings.Contains(res.Text, "  New\n") {
		t.Errorf("since:\n%s", res.Text)
	}
}

func TestManyAndLongStayBounded(t *testing.T) {
	fs := fstest.MapFS{}
	for i := range 60 {
		var b strings.Builder
		for j := range 40 {
			fmt.Fprintf(&b, "# Heading %d %s\n\nIs this %d open?\n\n[l](https://h%d.example/%s)\n", j, strings.Repeat("w", 300), j, j, strings.Repeat("p", 300))
		}
		fs[fmt.Sprintf("dir/%03d-%s.md", i, strings.Repeat("n", 100))] = &fstest.MapFile{Data: []byte(b.String())}
	}
	h := newHost(t, fs)
	res := digestOf(t, h, map[string]any{"max_files": 1000})
	if len(res.Text) > mostText || len(res.OpenQuestions) != 100 || !strings.Contains(res.Text, "more open questions") {
		t.Errorf("%d bytes of text, %d questions", len(res.Text), len(res.OpenQuestions))
	}
	if again := digestOf(t, newHost(t, fs), map[string]any{"max_files": 1000}); again.Text != res.Text {
		t.Error("equal folders gave different digests")
	}
}

func TestForeignTextStaysOnItsLine(t *testing.T) {
	h := newHost(t, files("a.md", "# T\u202eitle\x1b[31m\u200b\n\nIs it\u2028\u202esafe?\n"))
	res := digestOf(t, h, map[string]any{"title": "One\r\nBcc: x@y"})
	if strings.ContainsAny(res.Text, "\u202e\u200b\u2028\x1b\r") || strings.Contains(h.Outbox()[0].Subject, "\n") {
		t.Errorf("control characters survive: %q", res.Text)
	}
}
