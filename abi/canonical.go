package abi

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects of a message may nest.
const MaxDepth = 64

// MaxSafeInteger is the largest integer, and its negative the smallest, that a
// message may hold: 2^53-1, beyond which RFC 8785 cannot represent every one.
const MaxSafeInteger = 1<<53 - 1

// ErrNotCanonical is wrapped by every error of Canonical.
var ErrNotCanonical = errors.New("not acceptable JSON")

// Canonical reads one JSON value strictly and returns it in the form of
// RFC 8785 (sorted keys, no space, minimal escapes). It refuses what two
// readers could understand differently: duplicate keys, invalid UTF-8, lone
// surrogates, numbers that are not integers within ±MaxSafeInteger, minus zero,
// nesting beyond MaxDepth, and anything after the value. The result does not
// share memory with in.
func Canonical(in []byte) ([]byte, error) { return appendCanonical(make([]byte, 0, len(in)), in) }

func appendCanonical(out, in []byte) ([]byte, error) {
	p := &jsonReader{in: in}
	p.space()
	out, err := p.value(out, 0)
	if err == nil {
		p.space()
		if p.at != len(in) {
			err = p.fail("text after the value")
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// String is the lower-case hexadecimal form.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Fingerprint identifies a request for replay (SPEC 6.2). Acceptable JSON is
// identified by its canonical form, so that a guest may reorder keys; anything
// else by its bytes. The two can never coincide.
func Fingerprint(request []byte) Digest {
	fp, _, _ := fingerprint(request)
	return fp
}

// fingerprint is Fingerprint together with Canonical.
func fingerprint(request []byte) (fp Digest, canon []byte, err error) {
	const canonical, raw = "monroe/request/canonical\x00", "monroe/request/raw\x00"
	out, err := appendCanonical(append(make([]byte, 0, len(canonical)+len(request)), canonical...), request)
	if err != nil {
		return sha256.Sum256(append([]byte(raw), request...)), nil, err
	}
	return sha256.Sum256(out), out[len(canonical):], nil
}

type jsonReader struct {
	in []byte
	at int
}

func (p *jsonReader) fail(format string, args ...any) error {
	return fmt.Errorf("%w: %s at byte %d", ErrNotCanonical, fmt.Sprintf(format, args...), p.at)
}

func (p *jsonReader) space() {
	for p.at < len(p.in) && bytes.IndexByte([]byte(" \t\r\n"), p.in[p.at]) >= 0 {
		p.at++
	}
}

func (p *jsonReader) peek() byte {
	if p.at < len(p.in) {
		return p.in[p.at]
	}
	return 0
}

func (p *jsonReader) value(out []byte, depth int) ([]byte, error) {
	switch c := p.peek(); {
	case (c == '{' || c == '[') && depth == MaxDepth:
		return nil, p.fail("nesting deeper than %d", MaxDepth)
	case c == '{':
		return p.object(out, depth)
	case c == '[':
		return p.array(out, depth)
	case c == '"':
		s, err := p.str()
		return appendString(out, s), err
	case c == '-' || c >= '0' && c <= '9':
		return p.number(out)
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(p.in[p.at:], []byte(word)) {
			p.at += len(word)
			return append(out, word...), nil
		}
	}
	if p.at == len(p.in) {
		return nil, p.fail("the value is cut off")
	}
	return nil, p.fail("unexpected %q", p.peek())
}

func (p *jsonReader) array(out []byte, depth int) ([]byte, error) {
	out = append(out, '[')
	p.at++
	p.space()
	if p.peek() == ']' {
		p.at++
		return append(out, ']'), nil
	}
	for {
		var err error
		if out, err = p.value(out, depth+1); err != nil {
			return nil, err
		}
		p.space()
		switch p.peek() {
		case ',':
			out = append(out, ',')
			p.at++
			p.space()
		case ']':
			p.at++
			return append(out, ']'), nil
		default:
			return nil, p.fail("a comma or ] is missing")
		}
	}
}

// member is one of an object: its key, and where it lies in the output.
type member struct {
	key      []byte
	from, to int
}

func (p *jsonReader) object(out []byte, depth int) ([]byte, error) {
	var few [8]member // most objects have no more
	members, sorted := few[:0], true
	out = append(out, '{')
	first := len(out)
	p.at++
	p.space()
	for closed := p.peek() == '}'; !closed; {
		if p.peek() != '"' {
			return nil, p.fail("a key is missing")
		}
		key, err := p.str()
		if err != nil {
			return nil, err
		}
		p.space()
		if p.peek() != ':' {
			return nil, p.fail("a colon is missing")
		}
		p.at++
		p.space()
		if n := len(members); n > 0 {
			out = append(out, ',')
			sorted = sorted && compareKeys(members[n-1].key, key) < 0
		}
		m := member{key: key, from: len(out)}
		if out, err = p.value(append(appendString(out, key), ':'), depth+1); err != nil {
			return nil, err
		}
		m.to = len(out)
		members = append(members, m)
		p.space()
		switch p.peek() {
		case ',':
			p.at++
			p.space()
		case '}':
			closed = true
		default:
			return nil, p.fail("a comma or } is missing")
		}
	}
	p.at++
	if sorted { // as the canonical form is itself
		return append(out, '}'), nil
	}
	slices.SortFunc(members, func(a, b member) int { return compareKeys(a.key, b.key) })
	as := bytes.Clone(out[first:])
	out = out[:first]
	for i, m := range members {
		if i > 0 {
			if bytes.Equal(m.key, members[i-1].key) {
				return nil, p.fail("the key %q occurs twice", m.key)
			}
			out = append(out, ',')
		}
		out = append(out, as[m.from-first:m.to-first]...)
	}
	return append(out, '}'), nil
}

// compareKeys is the order of RFC 8785: that of UTF-16, where what UTF-8 begins with EE
// or EF comes after all that takes two units.
func compareKeys(a, b []byte) int {
	i, most := 0, min(len(a), len(b))
	for i < most && a[i] == b[i] {
		i++
	}
	if i == most {
		return cmp.Compare(len(a), len(b))
	}
	rank := func(c byte) byte {
		if c == 0xEE || c == 0xEF {
			return c + 0x10
		}
		return c
	}
	return cmp.Compare(rank(a[i]), rank(b[i]))
}

func (p *jsonReader) number(out []byte) ([]byte, error) {
	from := p.at
	if p.peek() == '-' {
		p.at++
	}
	digits := p.at
	for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
		p.at++
	}
	if c := p.peek(); c == '.' || c == 'e' || c == 'E' {
		return nil, p.fail("a number that is not an integer (write it as a string)")
	}
	text := string(p.in[from:p.at])
	if p.at == digits || p.in[digits] == '0' && p.at-digits > 1 || text == "-0" {
		return nil, p.fail("the number %q is not well formed", text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > MaxSafeInteger || n < -MaxSafeInteger {
		return nil, p.fail("the number %s is beyond 2^53-1", text)
	}
	return append(out, text...), nil
}

// str reads a string literal; the cursor is at its opening quote. What it returns may
// be a part of the input.
func (p *jsonReader) str() ([]byte, error) {
	p.at++
	s := p.plain()
	if p.peek() != '"' {
		s = bytes.Clone(s)
	}
	for {
		if p.at >= len(p.in) {
			return nil, p.fail("a string is cut off")
		}
		c := p.in[p.at]
		switch {
		case c == '"':
			p.at++
			return s, nil
		case c < 0x20:
			return nil, p.fail("a control character in a string")
		case c == '\\':
			r, err := p.escape()
			if err != nil {
				return nil, err
			}
			s = utf8.AppendRune(s, r)
		case c < utf8.RuneSelf:
			s = append(s, p.plain()...)
		default:
			r, n := utf8.DecodeRune(p.in[p.at:])
			if r == utf8.RuneError && n == 1 {
				return nil, p.fail("invalid UTF-8")
			}
			s = append(s, p.in[p.at:p.at+n]...)
			p.at += n
		}
	}
}

// plain takes what stands for itself, the common case, in one piece.
func (p *jsonReader) plain() []byte {
	from := p.at
	for p.at < len(p.in) && p.in[p.at] >= 0x20 && p.in[p.at] < utf8.RuneSelf && p.in[p.at] != '"' && p.in[p.at] != '\\' {
		p.at++
	}
	return p.in[from:p.at:p.at]
}

var simpleEscapes = map[byte]rune{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (p *jsonReader) escape() (rune, error) {
	p.at++ // the backslash
	c := p.peek()
	if r, ok := simpleEscapes[c]; ok {
		p.at++
		return r, nil
	}
	if c != 'u' {
		return 0, p.fail("unknown escape %q", c)
	}
	r, err := p.hex4()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if !bytes.HasPrefix(p.in[p.at:], []byte(`\u`)) {
		return 0, p.fail("a lone surrogate")
	}
	p.at++
	low, err := p.hex4()
	if err != nil {
		return 0, err
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, p.fail("a lone surrogate")
	}
	return r, nil
}

// hex4 reads the u and four digits of an escape.
func (p *jsonReader) hex4() (rune, error) {
	p.at++
	if p.at+4 > len(p.in) {
		return 0, p.fail("an escape is cut off")
	}
	n, err := strconv.ParseUint(string(p.in[p.at:p.at+4]), 16, 16)
	if err != nil {
		return 0, p.fail("an escape is not hexadecimal")
	}
	p.at += 4
	return rune(n), nil
}

// appendString writes s with the escapes of RFC 8785 section 3.2.2.2.
func appendString(out, s []byte) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for _, c := range s {
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, `\b`...)
		case '\f':
			out = append(out, `\f`...)
		case '\n':
			out = append(out, `\n`...)
		case '\r':
			out = append(out, `\r`...)
		case '\t':
			out = append(out, `\t`...)
		default:
			if c < 0x20 {
				out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}
