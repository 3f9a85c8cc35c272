package egress

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"strings"

	"github.com/getmonroe/monroe/host/vault"
)

// needles are the forms in which a server could give a credential back.
func needles(secret string) [][]byte {
	if secret == "" {
		return nil
	}
	quoted, _ := json.Marshal(secret) // a string always encodes
	var out [][]byte
	for _, s := range []string{
		secret,
		string(quoted[1 : len(quoted)-1]),
		url.QueryEscape(secret), url.PathEscape(secret),
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawStdEncoding.EncodeToString([]byte(secret)),
		base64.URLEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
		hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
	} {
		out = append(out, []byte(s))
	}
	return out
}

func scrubText(s, secret string) string {
	for _, n := range needles(secret) {
		s = strings.ReplaceAll(s, string(n), vault.Redacted)
	}
	return s
}

// scrub replaces a credential in a stream, also where it is spread over several
// reads. It holds back only what could be its beginning, so that words stream on.
func scrub(r io.Reader, secret string) io.Reader {
	if secret == "" {
		return r
	}
	return &scrubber{r: r, needles: needles(secret)}
}

type scrubber struct {
	r       io.Reader
	needles [][]byte
	held    []byte // read, and not yet known to be harmless
	ready   []byte // harmless
	err     error
}

func (s *scrubber) Read(p []byte) (int, error) {
	for len(s.ready) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		buf := make([]byte, 32<<10)
		n, err := s.r.Read(buf)
		s.held = append(s.held, buf[:n]...)
		s.err = err
		for _, x := range s.needles {
			s.held = bytes.ReplaceAll(s.held, x, []byte(vault.Redacted))
		}
		keep := 0
		if err == nil {
			keep = s.beginning()
		}
		cut := len(s.held) - keep
		s.ready, s.held = s.held[:cut:cut], bytes.Clone(s.held[cut:])
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

// beginning is the length of the longest end of held that a needle starts with.
func (s *scrubber) beginning() int {
	longest := 0
	for _, x := range s.needles {
		for n := min(len(x)-1, len(s.held)); n > longest; n-- {
			if bytes.HasSuffix(s.held, x[:n]) {
				longest = n
			}
		}
	}
	return longest
}
