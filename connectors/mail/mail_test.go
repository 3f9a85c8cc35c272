package mail_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	netmail "net/mail"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/mail"
)

const key = "0123456789abcdef0123456789abcdef"

func open(t testing.TB, c mail.Config) *mail.Mail {
	t.Helper()
	c.From = "Monroe@Example.com"
	m, err := mail.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func send(a mail.SendArgs) connectors.Call {
	b, _ := json.Marshal(a)
	return connectors.Call{Operation: mail.OpSend, Args: b, Key: key, Now: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)}
}

var headers = []string{
	"Auto-Submitted", "Cc", "Content-Transfer-Encoding", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Subject", "To",
}

// Laws 1, 2 and 4 over every message: it reads back as what was asked, from the
// operator's sender, to the envelope's recipients, without another header.
func TestMessageReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkMessage(t, rapid.String().Draw(t, "subject"), rapid.String().Draw(t, "text"))
	})
	for _, s := range []string{
		"hi\r\nBcc: eve@example.com", "=?utf-8?Q?a?=", strings.Repeat("ü", 200), "plain", " lead", "trail ", strings.Repeat("x", 400), "a\u2028b", "🎉",
	} {
		checkMessage(t, s, s)
	}
}

type reporter interface {
	Helper()
	Fatalf(string, ...any)
}

func checkMessage(t reporter, subject, text string) {
	t.Helper()
	m, err := mail.New(mail.Config{From: "monroe@example.com"})
	if err != nil {
		t.Fatalf("%v", err)
	}
	p, d := m.Plan(send(mail.SendArgs{To: []string{"Ann@example.com"}, CC: []string{"bob@example.com", "ann@example.com"}, Subject: subject, Text: text}))
	if d != nil {
		return
	}
	data := p.Frozen.Maildir.Data
	if rest := bytes.ReplaceAll(data, []byte("\r\n"), nil); bytes.ContainsAny(rest, "\r\n") {
		t.Fatalf("a bare line end in %q", data)
	}
	for line := range strings.SplitSeq(string(data), "\r\n") {
		if len(line) > 78 {
			t.Fatalf("a line of %d bytes: %q", len(line), line)
		}
	}
	got, err := netmail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%v", err)
	}
	for name, v := range got.Header {
		if !slices.Contains(headers, name) || len(v) != 1 {
			t.Fatalf("header %q: %q", name, v)
		}
	}
	if f := got.Header.Get("From"); f != "monroe@example.com" {
		t.Fatalf("from %q", f)
	}
	back, err := new(mime.WordDecoder).DecodeHeader(got.Header.Get("Subject"))
	if utf8.ValidString(subject) && (err != nil || back != subject) {
		t.Fatalf("subject %q came back as %q %v", subject, back, err)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(got.Body))
	want := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	if !strings.HasSuffix(want, "\n") {
		want += "\n"
	}
	if is := strings.ReplaceAll(string(body), "\r\n", "\n"); utf8.ValidString(text) && (err != nil || is != want) {
		t.Fatalf("text %q came back as %q %v", text, is, err)
	}
	to, _ := got.Header.AddressList("To")
	cc, _ := got.Header.AddressList("Cc")
	if len(to) != 1 || len(cc) != 1 || fmt.Sprint(p.Frozen.Maildir.To) != "[ann@example.com bob@example.com]" {
		t.Fatalf("to %v cc %v envelope %v", to, cc, p.Frozen.Maildir.To)
	}
	if fmt.Sprint(p.Resources) != "[mail:ann@example.com mail:bob@example.com]" || !slices.Equal(p.Resources, p.Audience) {
		t.Fatalf("resources %v audience %v", p.Resources, p.Audience)
	}
}

// Law 3.
func TestEqualCallsGiveEqualBytes(t *testing.T) {
	a := mail.SendArgs{To: []string{"ann@example.com"}, Subject: "hü", Text: "x"}
	var first abi.Digest
	for i := range 10 {
		p, d := open(t, mail.Config{}).Plan(send(a))
		if d != nil {
			t.Fatal(d)
		}
		got, err := p.Digest()
		if err != nil || i > 0 && got != first {
			t.Fatalf("other bytes, %v", err)
		}
		first = got
		if !bytes.Contains(p.Frozen.Maildir.Data, []byte("Message-ID: <"+key+"@example.com>\r\n")) || p.Frozen.Maildir.Unique != "1795507200."+key+".monroe" {
			t.Errorf("%q %s", p.Frozen.Maildir.Data, p.Frozen.Maildir.Unique)
		}
	}
}

func TestRefusals(t *testing.T) {
	m := open(t, mail.Config{})
	many := make([]string, 51)
	for i := range many {
		many[i] = fmt.Sprintf("a%d@example.com", i)
	}
	to := []string{"ann@example.com"}
	for name, a := range map[string]mail.SendArgs{
		"nobody": {}, "many": {To: many}, "subject line": {To: to, Subject: "a\nBcc: x@example.com"}, "subject nul": {To: to, Subject: "a\x00"},
		"text control": {To: to, Text: "a\x1b[31m"}, "long": {To: to, Text: strings.Repeat("x", mail.MaxText+1)},
		"long subject": {To: to, Subject: strings.Repeat("x", mail.MaxSubject+1)}, "two in one": {To: []string{"a@example.com, b@example.com"}},
		"display": {To: []string{"Ann <ann@example.com>"}}, "header": {To: []string{"ann@example.com\r\nBcc: eve@example.com"}},
		"cc": {To: to, CC: []string{"x"}},
	} {
		if _, d := m.Plan(send(a)); d == nil || d.Code != abi.Invalid && d.Code != abi.TooLarge {
			t.Errorf("%s: %v", name, d)
		}
	}
	for _, raw := range []string{`{"to":["a@example.com"],"subject":"","text":"","bcc":["b@example.com"]}`, `{"to":["a@example.com"],"subject":"","text":"","from":"x@example.com"}`, `{"to":"a@example.com","subject":"","text":""}`} {
		if _, d := m.Plan(connectors.Call{Operation: mail.OpSend, Args: json.RawMessage(raw), Key: key}); d == nil || d.Code != abi.Invalid {
			t.Errorf("%s: %v", raw, d)
		}
	}
	c := send(mail.SendArgs{To: to})
	c.Key = "short"
	if _, d := m.Plan(c); d == nil {
		t.Error("a call without a key was planned")
	}
	for _, bad := range []mail.Config{{}, {From: "x"}, {From: "A <a@example.com>"}, {From: "a@example.com", Connection: "con_1"}} {
		if _, err := mail.New(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestServerOrMaildir(t *testing.T) {
	s := open(t, mail.Config{Server: "main", Connection: "con_1"})
	p, d := s.Plan(send(mail.SendArgs{To: []string{"ann@example.com"}}))
	if d != nil || p.Frozen.SMTP == nil || p.Frozen.SMTP.From != "monroe@example.com" || p.Account != "con_1" || s.Operations()[0].Replay != abi.ReplayBlind {
		t.Errorf("%+v %v", p, d)
	}
	if m := open(t, mail.Config{}); m.Operations()[0].Replay != abi.ReplayProbe {
		t.Error("a Maildir can be probed")
	}
}

func FuzzMessage(f *testing.F) {
	f.Add("hi\r\nBcc: eve@example.com", "body\r\n.\r\nMAIL FROM:<x>")
	f.Add("=?utf-8?Q?a?=", "=\r\n=0D=0A")
	f.Add(strings.Repeat("ü", 100), strings.Repeat("x", 200)+" \t\n")
	f.Fuzz(func(t *testing.T, subject, text string) { checkMessage(t, subject, text) })
}
