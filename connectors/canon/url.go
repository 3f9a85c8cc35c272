package canon

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// MaxURL is the longest URL, in bytes.
const MaxURL = 2000

// ErrURL is wrapped by every error of URL.
var ErrURL = errors.New("URL")

// Target is a normalised URL, taken apart.
type Target struct {
	URL      string // what is sent
	Resource string // without the query: what a grant covers
	Origin   string // scheme://host, with the port if it is not the scheme's own
	Host     string // host, with the port if it is not the scheme's own
}

// URL brings an http or https URL into the one form that is decided on and
// sent: lower-case ASCII host, no default port, upper-case percent-encoding and
// only where it is needed. What two readers could understand differently is
// refused: user names, fragments, dot segments also when encoded, encoded slashes,
// backslashes, control characters, and numbers that are IP addresses in disguise.
// URL(t.URL) gives t again.
func URL(raw string) (Target, error) {
	bad := func(why string) (Target, error) {
		return Target{}, fmt.Errorf("%w %.200q: %s", ErrURL, raw, why)
	}
	switch {
	case len(raw) > MaxURL:
		return Target{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrURL, len(raw), MaxURL)
	case !utf8.ValidString(raw):
		return bad("it is not UTF-8")
	case strings.Contains(raw, "#"):
		return bad("a fragment stays with the reader; leave out what follows #")
	}
	for _, r := range raw {
		if r == '\\' || r == ' ' || !unicode.IsPrint(r) {
			return bad("it holds a space, a backslash, a control or an invisible character")
		}
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	if scheme = strings.ToLower(scheme); !ok || scheme != "http" && scheme != "https" {
		return bad("it must begin with https:// or http://")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host, err := authority(scheme, rest[:end])
	if err != nil {
		return bad(err.Error())
	}
	path, query, hasQuery := strings.Cut(rest[end:], "?")
	if path, err = cleanPath(path); err != nil {
		return bad(err.Error())
	}
	t := Target{Origin: scheme + "://" + host, Host: host}
	t.Resource = t.Origin + path
	t.URL = t.Resource
	if hasQuery && query != "" {
		q, err := encode(query, "/?*")
		if err != nil {
			return bad(err.Error())
		}
		t.URL += "?" + q
	}
	if len(t.URL) > MaxURL {
		return bad(fmt.Sprintf("it has more than %d bytes when encoded", MaxURL))
	}
	// The transport must write exactly this.
	if u, err := url.Parse(t.URL); err != nil || u.String() != t.URL || u.Host != t.Host {
		return bad("it has no unambiguous form")
	}
	return t, nil
}

// authority normalises host and port.
func authority(scheme, s string) (string, error) {
	if strings.ContainsAny(s, "@%") {
		return "", errors.New("a user name, a password or an encoded host is not allowed")
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' || port[0] == '+' {
			return "", errors.New("the port is 1 to 65535")
		}
	}
	if scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		port = ""
	}
	if strings.HasPrefix(host, "[") {
		a, err := netip.ParseAddr(strings.TrimSuffix(host[1:], "]"))
		if err != nil || !strings.HasSuffix(host, "]") || !a.Is6() || a.Zone() != "" {
			return "", errors.New("the IPv6 address is not well formed")
		}
		host = "[" + a.String() + "]"
	} else {
		name, err := hostName(host)
		if err != nil {
			return "", err
		}
		host = name
	}
	if port != "" {
		host += ":" + port
	}
	return host, nil
}

func hostName(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
		return a.String(), nil
	}
	name, err := idna.Lookup.ToASCII(s)
	if err != nil || name == "" || len(name) > 253 || strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") || strings.Contains(name, "..") {
		return "", errors.New("the host name is not a valid one")
	}
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return "", errors.New("the host name is not a valid one")
		}
	}
	// 0x7f.1, 2130706433 and 127.1 are addresses to some resolvers.
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last == "" || last[0] >= '0' && last[0] <= '9' {
		return "", errors.New("the host looks like an IP address but is not written as one")
	}
	return name, nil
}

// cleanPath normalises the path, which becomes the resource.
func cleanPath(p string) (string, error) {
	if p == "" {
		return "/", nil
	}
	out, err := encode(p, "/")
	if err != nil {
		return "", err
	}
	plain, err := url.PathUnescape(out)
	if err != nil || !utf8.ValidString(plain) {
		return "", errors.New("its path is not UTF-8 when decoded")
	}
	for _, r := range plain {
		if r == '\\' || unicode.IsControl(r) {
			return "", errors.New("its path holds an encoded backslash or control character")
		}
	}
	if strings.Contains(out, "%2F") {
		return "", errors.New("its path holds an encoded slash, which servers read differently")
	}
	if strings.Contains(out, "%25") {
		return "", errors.New("its path is encoded twice, which servers read differently")
	}
	for seg := range strings.SplitSeq(plain, "/") {
		// Some servers cut parameters off before they resolve dots.
		if s, _, _ := strings.Cut(seg, ";"); s == "." || s == ".." {
			return "", errors.New("dot segments are refused; write the path that is meant")
		}
	}
	return out, nil
}

const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

// encode keeps what RFC 3986 allows in a path, and extra, as it is; decodes what
// was encoded without need; and encodes the rest. The star is encoded in paths,
// since it is a wildcard in grants.
func encode(s, extra string) (string, error) {
	const hex = "0123456789ABCDEF"
	plain := unreserved + "!$&'()+,;=:@" + extra
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c, was := s[i], false
		if c == '%' {
			if i+3 > len(s) {
				return "", errors.New("a percent sign is not followed by two hexadecimal digits")
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("a percent sign is not followed by two hexadecimal digits")
			}
			c, was = byte(n), true
			i += 2
		}
		keep := strings.IndexByte(plain, c) >= 0
		if was {
			keep = strings.IndexByte(unreserved, c) >= 0
		}
		if keep {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String(), nil
}
