// Package mail sends mail: by the operator's SMTP server where there is one, else
// into a Maildir folder.
//
// Laws, each with a test of the same name:
//
//  1. The sender is the operator's; a guest chooses recipients, subject and text.
//  2. Every recipient is a resource and a reader. The envelope and the headers name
//     the same ones; there is no blind copy.
//  3. Equal calls give equal bytes: the date is when the guest asked, the message id
//     is the call's key.
//  4. Nothing that a guest writes can become a header.
//
// It knows addresses and the form of a message. It must not know where the server
// or the folder is, its password, or grants.
package mail

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
)

// OpSend is the operation.
const OpSend = "mail.send"

// Limits of one mail.
const (
	MaxRecipients = 50
	MaxSubject    = 500       // bytes
	MaxText       = 512 << 10 // bytes
)

// Config is the operator's.
type Config struct {
	// From is the address that every mail comes from. It is required.
	From string
	// Server is the name of the SMTP server in host/egress. Empty means that mail is
	// delivered into Maildir instead.
	Server string
	// Connection is the id of the server's credential, empty if it needs none.
	Connection string
	// Maildir is the name of the folder in host/egress; empty means "outbox". It is
	// used without a Server only.
	Maildir string
}

// Mail is the connector. It is safe for concurrent use.
type Mail struct{ c Config }

// New returns the connector. It fails if From is not a plain address.
func New(c Config) (*Mail, error) {
	from, err := canon.Address(c.From)
	if err != nil {
		return nil, fmt.Errorf("mail: From: %w", err)
	}
	c.From = from
	if c.Maildir == "" {
		c.Maildir = "outbox"
	}
	if c.Server == "" && c.Connection != "" {
		return nil, fmt.Errorf("mail: a Connection without a Server")
	}
	return &Mail{c: c}, nil
}

// SendArgs are the arguments of mail.send.
type SendArgs struct {
	To      []string `json:"to"`
	CC      []string `json:"cc,omitempty"`
	Subject string   `json:"subject"`
	Text    string   `json:"text"`
}

// SendReply answers mail.send.
type SendReply struct {
	MessageID  string   `json:"message_id"`
	Recipients []string `json:"recipients"`
	Via        string   `json:"via"` // smtp or maildir
}

// Operations are the descriptors. The replay class depends on the way: a Maildir
// can be looked into, a mail server cannot.
func (m *Mail) Operations() []connectors.Operation {
	replay := abi.ReplayProbe
	if m.c.Server != "" {
		replay = abi.ReplayBlind
	}
	return []connectors.Operation{{
		Name: OpSend, Version: 1, Effect: abi.EffectSend, Replay: replay, Renderer: connectors.RenderMail,
		Summary: "Send a plain-text mail.",
		Args: json.RawMessage(`{"type":"object","properties":{` +
			`"to":{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":50,"description":"plain addresses such as ann@example.com"},` +
			`"cc":{"type":"array","items":{"type":"string"},"maxItems":50},` +
			`"subject":{"type":"string","maxLength":500},` +
			`"text":{"type":"string","description":"the body, plain text"}},` +
			`"required":["to","subject","text"],"additionalProperties":false}`),
	}}
}

// Plan writes the message.
func (m *Mail) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	if c.Operation != OpSend {
		return connectors.Plan{}, abi.Deny(abi.Unsupported, fmt.Sprintf("there is no operation %q", c.Operation), "use mail.send")
	}
	var a SendArgs
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return connectors.Plan{}, d
	}
	if d := check(a); d != nil {
		return connectors.Plan{}, d
	}
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(c.Key) {
		return connectors.Plan{}, abi.Deny(abi.Internal, "the call has no key of 32 hexadecimal digits", "")
	}
	var all []string
	list := func(raw []string) ([]string, *abi.Denial) {
		var out []string
		for _, s := range raw {
			clean, err := canon.Address(s)
			if err != nil {
				return nil, abi.Deny(abi.Invalid, err.Error(), "correct the address")
			}
			if !slices.Contains(all, clean) { // named twice, sent once
				all, out = append(all, clean), append(out, clean)
			}
		}
		return out, nil
	}
	to, d := list(a.To)
	if d != nil {
		return connectors.Plan{}, d
	}
	cc, d := list(a.CC)
	if d != nil {
		return connectors.Plan{}, d
	}
	_, domain, _ := strings.Cut(m.c.From, "@")
	data, err := message{
		from: m.c.From, id: c.Key + "@" + domain, to: to, cc: cc,
		subject: a.Subject, text: a.Text, date: c.Now,
	}.bytes()
	if err != nil {
		return connectors.Plan{}, abi.Deny(abi.Internal, "the message could not be written", "")
	}
	p := connectors.Plan{Account: m.c.Connection, Timeout: time.Minute}
	for _, x := range all {
		p.Resources = append(p.Resources, "mail:"+x)
	}
	p.Audience = slices.Clone(p.Resources)
	if m.c.Server != "" {
		p.Frozen.SMTP = &connectors.SMTPMessage{Server: m.c.Server, From: m.c.From, To: all, Data: data}
		p.Destination = strings.Join(all, ", ") + " by smtp:" + m.c.Server
	} else {
		unique := fmt.Sprintf("%d.%s.monroe", c.Now.Unix(), c.Key)
		p.Frozen.Maildir = &connectors.Maildir{Folder: m.c.Maildir, Unique: unique, From: m.c.From, To: all, Data: data}
		p.Destination = strings.Join(all, ", ") + " by maildir:" + m.c.Maildir
		p.Timeout = 5 * time.Second // a folder of this machine
	}
	return p, nil
}

func check(a SendArgs) *abi.Denial {
	switch {
	case len(a.To) == 0:
		return abi.Deny(abi.Invalid, "to is empty", "name at least one recipient")
	case len(a.To)+len(a.CC) > MaxRecipients:
		return abi.Deny(abi.TooLarge, fmt.Sprintf("%d recipients, at most %d are allowed", len(a.To)+len(a.CC), MaxRecipients), "send to fewer people")
	case len(a.Subject) > MaxSubject:
		return abi.Deny(abi.TooLarge, fmt.Sprintf("the subject has %d bytes, at most %d are allowed", len(a.Subject), MaxSubject), "shorten it")
	case len(a.Text) > MaxText:
		return abi.Deny(abi.TooLarge, fmt.Sprintf("the text has %d bytes, at most %d are allowed", len(a.Text), MaxText), "shorten it")
	case !utf8.ValidString(a.Subject) || !utf8.ValidString(a.Text):
		return abi.Deny(abi.Invalid, "the subject or the text is not UTF-8", "")
	}
	for _, r := range a.Subject {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return abi.Deny(abi.Invalid, "the subject holds a line break or another control character", "write it on one line")
		}
	}
	for _, r := range a.Text {
		if unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' {
			return abi.Deny(abi.Invalid, fmt.Sprintf("the text holds the control character U+%04X", r), "leave it out")
		}
	}
	return nil
}

// Parse has nothing to read: that the host got here means that the message was
// taken.
func (m *Mail) Parse(_ context.Context, c connectors.Call, p connectors.Plan, _ *connectors.Answer) (connectors.Result, *abi.Denial) {
	_, domain, _ := strings.Cut(m.c.From, "@")
	r := SendReply{MessageID: c.Key + "@" + domain}
	switch {
	case p.Frozen.SMTP != nil:
		r.Via, r.Recipients = "smtp", slices.Clone(p.Frozen.SMTP.To)
	case p.Frozen.Maildir != nil:
		r.Via, r.Recipients = "maildir", slices.Clone(p.Frozen.Maildir.To)
	default:
		return connectors.Result{}, abi.Deny(abi.Internal, "the answer is not that of a mail", "")
	}
	return connectors.Result{
		Reply: r, ProviderID: r.MessageID, Cost: new(abi.MicroUSD),
		// The reply repeats the call and says nothing new: the run's own label decides.
		Provenance: connectors.Provenance{Internal: true, Readers: []string{connectors.Everyone}, Origins: p.Resources},
	}, nil
}

// Probe looks for the delivered message: its file is named after the call's key, and
// its digest must be the message's. A mail server cannot be asked.
func (m *Mail) Probe(_ connectors.Call, p connectors.Plan) (connectors.Plan, *abi.Denial) {
	f := p.Frozen.Maildir
	if f == nil {
		return connectors.Plan{}, abi.Deny(abi.Unsupported, "a mail server cannot be asked what it took", "")
	}
	_, sum := p.Frozen.Content()
	return connectors.Plan{
		Resources: p.Resources, Destination: p.Destination, Audience: []string{"workspace"},
		Frozen: connectors.Frozen{Find: &connectors.MaildirFind{Folder: f.Folder, Unique: f.Unique, SHA256: sum}},
	}, nil
}

// Found says what Parse would have said.
func (m *Mail) Found(ctx context.Context, c connectors.Call, p, _ connectors.Plan, a *connectors.Answer) (*connectors.Result, *abi.Denial) {
	if a.Status != 200 {
		return nil, nil
	}
	r, d := m.Parse(ctx, c, p, a)
	if d != nil {
		return nil, d
	}
	return &r, nil
}
