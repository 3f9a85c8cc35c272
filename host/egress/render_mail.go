package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io"
	"mime"
	"mime/multipart"
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

// mail shows a message. The recipients are the envelope's. It
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
	body, err := io.ReadAll(m.Body)
	return err == nil && v.content("", m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), "", body, 0)
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

// maxNesting bounds how deep multiparts are opened.
const maxNesting = 4

// content shows a body: text as it is, HTML as its source, several parts one by one,
// anything else as an attachment. It reports whether nothing was left out.
func (v *Preview) content(name string, contentType, encoding, disposition string, body []byte, depth int) bool {
	kind, params, err := mime.ParseMediaType(contentType)
	if contentType == "" {
		kind, params, err = "text/plain", nil, nil
	}
	if err != nil {
		return false
	}
	if strings.HasPrefix(kind, "multipart/") {
		return depth < maxNesting && v.parts(name, params["boundary"], body, depth)
	}
	data, ok := decoded(body, encoding)
	if !ok {
		return false
	}
	attached, named, err := mime.ParseMediaType(disposition)
	if disposition != "" && err != nil {
		return false
	}
	charset := strings.ToLower(params["charset"])
	text := (charset == "" || charset == "utf-8" || charset == "us-ascii") && utf8.Valid(data)
	switch {
	case name == "" && kind != "text/plain", name == "" && !text:
		return false // the message is one thing that is not text
	case text && kind == "text/plain" && attached != "attachment":
		v.body(string(data))
	case text && kind == "text/html" && attached != "attachment":
		v.warn("Content: HTML is shown as its source; a mail program shows it instead of the plain text")
		v.body(string(data))
		v.links(html.UnescapeString(string(data))) // where a link really leads may be spelled in entities
		v.destinations(string(data))
	default:
		sum := sha256.Sum256(data)
		v.field("Attachment", fmt.Sprintf("%q, %s, %d bytes, SHA-256 %s", named["filename"], kind, len(data), hex.EncodeToString(sum[:])))
		v.warn("Content: an attachment is listed and not shown")
	}
	return true
}

// parts shows a multipart body, with every header of every part. Words before the
// first and after the last boundary, which no mail program shows, are not covered.
func (v *Preview) parts(name, boundary string, body []byte, depth int) bool {
	trimmed := bytes.TrimSuffix(body, []byte("\r\n"))
	if boundary == "" || !bytes.HasPrefix(body, []byte("--"+boundary+"\r\n")) || !bytes.HasSuffix(trimmed, []byte("\r\n--"+boundary+"--")) ||
		bytes.Count(body, []byte("--"+boundary+"--")) != 1 {
		return false
	}
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	for n := 1; ; n++ {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return n > 1
		}
		if err != nil {
			return false
		}
		data, err := io.ReadAll(p)
		if err != nil {
			return false
		}
		part := fmt.Sprintf("Part %s%d", name, n)
		h := mail.Header(p.Header)
		for _, k := range sortedNames(h) {
			for _, x := range h[k] {
				v.field(part+", "+k, x)
			}
		}
		for _, k := range []string{"Content-Type", "Content-Transfer-Encoding", "Content-Disposition"} {
			if len(h[k]) > 1 { // which one counts is anybody's guess
				return false
			}
		}
		if !v.content(fmt.Sprintf("%s%d.", name, n), h.Get("Content-Type"), h.Get("Content-Transfer-Encoding"), h.Get("Content-Disposition"), data, depth+1) {
			return false
		}
	}
}

func decoded(body []byte, encoding string) ([]byte, bool) {
	var r io.Reader = bytes.NewReader(body)
	switch strings.ToLower(encoding) {
	case "", "7bit", "8bit":
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	default:
		return nil, false
	}
	b, err := io.ReadAll(r)
	return b, err == nil
}

func sortedNames(h mail.Header) []string {
	var out []string
	for name := range h {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
