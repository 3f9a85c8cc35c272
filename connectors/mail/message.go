package mail

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"mime/quotedprintable"
	"strings"
	"time"
	"unicode/utf8"
)

// message is what a mail says.
type message struct {
	from, id      string
	to, cc        []string
	subject, text string
	date          time.Time
}

// bytes writes the message of RFC 5322: CRLF line ends, no line above 78
// characters but those of one long address, and nothing from outside in a header
// that is not encoded.
func (m message) bytes() ([]byte, error) {
	var b bytes.Buffer
	line := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
	line("From", m.from)
	line("To", strings.Join(m.to, ",\r\n "))
	if len(m.cc) > 0 {
		line("Cc", strings.Join(m.cc, ",\r\n "))
	}
	line("Subject", encodeSubject(m.subject))
	line("Date", m.date.UTC().Format(time.RFC1123Z))
	line("Message-ID", "<"+m.id+">")
	// Out-of-office programs do not answer what says so (RFC 3834).
	line("Auto-Submitted", "auto-generated")
	line("MIME-Version", "1.0")
	line("Content-Type", "text/plain; charset=utf-8")
	line("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(m.text)
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	q := quotedprintable.NewWriter(&b)
	if _, err := q.Write([]byte(text)); err != nil {
		return nil, err
	}
	if err := q.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// encodeSubject gives the header's value: as it is if it is short plain ASCII that
// no reader takes for an encoded word, else as encoded words (RFC 2047) of whole
// characters.
func encodeSubject(s string) string {
	plain := len(s) <= 60 && !strings.Contains(s, "=?") && strings.TrimSpace(s) == s
	for i := range len(s) {
		plain = plain && s[i] >= ' ' && s[i] <= '~'
	}
	if plain {
		return s
	}
	const most = 42 // bytes in one word: 56 in base64, 68 with its frame
	var words []string
	for len(s) > 0 {
		n := min(most, len(s))
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		words = append(words, "=?utf-8?B?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, "\r\n ")
}
