package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"unicode/utf8"
)

// envelope shows who gets a message, whatever its headers claim.
func (v *Preview) envelope(from string, to []string) {
	if !v.lacks("From") {
		return
	}
	v.field("From", from)
	for _, a := range to {
		v.field("To", a)
		if _, domain, ok := strings.Cut(a, "@"); ok {
			v.host(domain)
		}
	}
}

// mail shows a message of one text part. The recipients are the envelope's. It
// reports whether all of the message was shown.
func (v *Preview) mail(from string, to []string, data []byte) bool {
	v.envelope(from, to)
	sum := sha256.Sum256(data)
	v.field("Message", fmt.Sprintf("%d bytes, SHA-256 %s", len(data), hex.EncodeToString(sum[:])))
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return false
	}
	v.compare(from, to, m.Header)
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil || len(m.Header["Subject"]) > 1 {
		return false
	}
	v.field("Subject", subject)
	for _, name := range sortedNames(m.Header) {
		switch name {
		case "From", "To", "Cc", "Subject", "Mime-Version", "Content-Type", "Content-Transfer-Encoding":
			continue // shown above, or what the content below was read by
		}
		for _, x := range m.Header[name] {
			v.field(name, x)
		}
	}
	text, ok := textOf(m)
	if !ok {
		return false
	}
	v.body(text)
	return true
}

// compare warns where the headers tell the recipient something else than the
// envelope tells the server.
func (v *Preview) compare(from string, to []string, h mail.Header) {
	if list, err := h.AddressList("From"); err != nil || len(list) != 1 || !strings.EqualFold(list[0].Address, from) {
		v.warn("the sender that the message shows is not the one of the envelope")
	}
	var shown []string
	for _, name := range []string{"To", "Cc"} {
		if h.Get(name) == "" {
			continue
		}
		list, err := h.AddressList(name)
		if err != nil {
			v.warn("the recipients that the message shows cannot be read")
		}
		for _, a := range list {
			shown = append(shown, strings.ToLower(a.Address))
		}
	}
	for _, a := range to {
		if !slices.Contains(shown, strings.ToLower(a)) {
			v.warn("it also goes to " + a + ", which the message does not show")
		}
	}
	for _, a := range shown {
		if !slices.ContainsFunc(to, func(t string) bool { return strings.EqualFold(t, a) }) {
			v.warn("the message shows " + a + ", who does not get it")
		}
	}
}

func textOf(m *mail.Message) (string, bool) {
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if m.Header.Get("Content-Type") == "" {
		kind, params, err = "text/plain", nil, nil
	}
	if err != nil || kind != "text/plain" {
		return "", false
	}
	if c := strings.ToLower(params["charset"]); c != "" && c != "utf-8" && c != "us-ascii" {
		return "", false
	}
	r := m.Body
	switch strings.ToLower(m.Header.Get("Content-Transfer-Encoding")) {
	case "", "7bit", "8bit":
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	default:
		return "", false
	}
	b, err := io.ReadAll(r)
	return string(b), err == nil && utf8.Valid(b)
}

func sortedNames(h mail.Header) []string {
	var out []string
	for name := range h {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
