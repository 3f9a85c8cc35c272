package abi

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Pattern covers resources. A resource is "scheme:rest" with segments
// separated by slashes, such as "files:docs/plan.md", "mail:ann@example.com" or
// "https://example.com/docs/". In a pattern a segment "*" stands for exactly one
// segment that is not empty, and a last segment "**" for any number of them,
// none included. Everything else is literal and case-sensitive (SPEC 4.3).
type Pattern string

// ErrPattern is wrapped by every error of CheckPattern and CheckResource.
var ErrPattern = errors.New("not a scope pattern")

// MaxResource is the longest resource or pattern, in bytes.
const MaxResource = 2048

// CheckResource says why s is not a resource. Connectors must hand in a
// normalised one: dot segments, backslashes, control and invisible characters
// and the wildcard characters are refused, never repaired.
func CheckResource(s string) error {
	_, segs, err := splitResource(s)
	if err != nil {
		return err
	}
	for _, g := range segs {
		if strings.Contains(g, "*") {
			return fmt.Errorf("%w: %q: a resource has no wildcards", ErrPattern, s)
		}
	}
	return nil
}

// CheckPattern says why p is not a pattern.
func CheckPattern(p Pattern) error {
	_, segs, err := splitResource(string(p))
	if err != nil {
		return err
	}
	for i, g := range segs {
		switch {
		case g == "*":
		case g == "**":
			if i != len(segs)-1 {
				return fmt.Errorf("%w: %q: ** is only allowed at the end", ErrPattern, string(p))
			}
		case strings.Contains(g, "*"):
			return fmt.Errorf("%w: %q: a wildcard stands for a whole segment", ErrPattern, string(p))
		}
	}
	return nil
}

// Covers reports whether the pattern covers the resource. What is malformed is
// covered by nothing and covers nothing.
func (p Pattern) Covers(resource string) bool {
	r, err := ParseResource(resource)
	return err == nil && p.Matcher().Covers(r)
}

// A Resource is a checked and split resource, for whoever asks many patterns about
// it. The zero value is covered by nothing.
type Resource struct {
	scheme string
	segs   []string
}

// ParseResource checks a resource as CheckResource does, and splits it once.
func ParseResource(s string) (Resource, error) {
	if err := CheckResource(s); err != nil {
		return Resource{}, err
	}
	scheme, segs, err := splitResource(s)
	return Resource{scheme, segs}, err
}

// A Matcher is a checked and split pattern, for whoever asks it about many
// resources. The zero value covers nothing.
type Matcher struct {
	scheme string
	segs   []string
}

// Matcher splits the pattern once. That of a malformed pattern covers nothing.
func (p Pattern) Matcher() Matcher {
	if CheckPattern(p) != nil {
		return Matcher{}
	}
	scheme, segs, _ := splitResource(string(p))
	return Matcher{scheme, segs}
}

// Covers reports what Pattern.Covers does.
func (m Matcher) Covers(r Resource) bool {
	if m.scheme == "" || m.scheme != r.scheme {
		return false
	}
	for i, g := range m.segs {
		switch {
		case g == "**":
			return true
		case i >= len(r.segs):
			return false
		case g == "*":
			if r.segs[i] == "" {
				return false
			}
		case g != r.segs[i]:
			return false
		}
	}
	return len(m.segs) == len(r.segs)
}

// splitResource returns the scheme and the segments of the rest.
func splitResource(s string) (scheme string, segs []string, err error) {
	bad := func(why string) (string, []string, error) {
		return "", nil, fmt.Errorf("%w: %q: %s", ErrPattern, s, why)
	}
	if len(s) > MaxResource {
		return "", nil, fmt.Errorf("%w: longer than %d bytes", ErrPattern, MaxResource)
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || scheme == "" {
		return bad("it needs a scheme and a colon, such as files:docs/**")
	}
	for i := range len(scheme) {
		c := scheme[i]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.')) {
			return bad("the scheme is lower-case letters, digits, +, - and .")
		}
	}
	if !utf8.ValidString(rest) {
		return bad("invalid UTF-8")
	}
	for _, r := range rest {
		if r == '\\' || !unicode.IsPrint(r) {
			return bad("it holds a backslash, a control or an invisible character")
		}
	}
	if rest == "" {
		return scheme, nil, nil
	}
	segs = strings.Split(rest, "/")
	for _, g := range segs {
		if g == "." || g == ".." {
			return bad("dot segments are refused")
		}
	}
	return scheme, segs, nil
}
