package abi_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
)

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		pattern  abi.Pattern
		resource string
		want     bool
	}{
		{"files:docs/plan.md", "files:docs/plan.md", true},
		{"files:docs/plan.md", "files:docs/Plan.md", false},
		{"files:docs/plan.md", "files:docs/plan.md/x", false},
		{"files:docs", "files:docs/plan.md", false},
		{"files:docs/**", "files:docs", true}, // none included
		{"files:docs/**", "files:docs/a/b/c", true},
		{"files:docs/**", "files:docs2/a", false}, // whole segments
		{"files:docs/**", "files:doc", false},
		{"files:docs/*", "files:docs/a", true},
		{"files:docs/*", "files:docs/", false},
		{"files:docs/*", "files:docs", false},
		{"files:docs/*", "files:docs/a/b", false},
		{"files:*/a", "files:x/a", true},
		{"files:**", "files:a/b", true},
		{"files:**", "file:a/b", false},
		{"mail:*", "mail:ann@example.com", true},
		{"mail:ann@example.com", "mail:ann@example.com.evil", false},
		{"https://example.com/docs/**", "https://example.com/docs/a", true},
		{"https://example.com/docs/**", "https://example.com/docsx", false},
		{"https://example.com/**", "https://example.com.evil/x", false},
		{"https://example.com/**", "http://example.com/x", false},
		{"https://**", "https://example.com/x", true},
		{"files:docs/**", "files:docs/../etc", false}, // never repaired
		{"files:docs/**", "files:docs/a\x00", false},
		{"files:docs/**", "files:docs/a\u200b", false},
		{"files:docs/**", `files:docs\a`, false},
		{"files:docs/**", "files:docs/*", false},
		{"files:**/x", "files:a/x", false}, // no pattern at all
		{"files:a*", "files:ab", false},
		{"", "", false},
	} {
		if got := c.pattern.Covers(c.resource); got != c.want {
			t.Errorf("%q covers %q: %v", c.pattern, c.resource, got)
		}
	}
}

func TestPatternAndResourceForms(t *testing.T) {
	for _, s := range []string{"", "x", ":x", "Files:x", "1a:x", "a_b:x", "files:a/../b", "files:./a", "files:a\\b", "files:a\nb", "files:a\u202eb", "files:a\xffb", "files:a\u00a0b", "x:" + strings.Repeat("a", abi.MaxResource)} {
		if err := abi.CheckResource(s); !errors.Is(err, abi.ErrPattern) {
			t.Errorf("resource %.40q: %v", s, err)
		}
		if err := abi.CheckPattern(abi.Pattern(s)); !errors.Is(err, abi.ErrPattern) {
			t.Errorf("pattern %.40q: %v", s, err)
		}
	}
	for _, s := range []string{"files:", "a+b.c-d1:x", "files:a//b", "files:ünï/日本", "files:a b"} {
		if abi.CheckResource(s) != nil || abi.CheckPattern(abi.Pattern(s)) != nil {
			t.Errorf("%q is refused", s)
		}
	}
}

// naive says what clause 4.3 says, in the slowest way: it lists the ways in which
// the pattern's segments can be laid on the resource's.
func naive(pattern, resource []string) bool {
	if len(pattern) == 0 {
		return len(resource) == 0
	}
	switch head := pattern[0]; head {
	case "**":
		for n := range len(resource) + 1 {
			if naive(pattern[1:], resource[n:]) {
				return true
			}
		}
		return false
	case "*":
		return len(resource) > 0 && resource[0] != "" && naive(pattern[1:], resource[1:])
	default:
		return len(resource) > 0 && resource[0] == head && naive(pattern[1:], resource[1:])
	}
}

func naiveCovers(p, r string) bool {
	if abi.CheckPattern(abi.Pattern(p)) != nil || abi.CheckResource(r) != nil {
		return false
	}
	ps, pr, _ := strings.Cut(p, ":")
	rs, rr, _ := strings.Cut(r, ":")
	split := func(s string) []string {
		if s == "" {
			return nil
		}
		return strings.Split(s, "/")
	}
	return ps == rs && naive(split(pr), split(rr))
}

func TestCoversAgreesWithANaiveMatcher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.SampledFrom([]string{"", "a", "b", "ab", "*", "**", "é", "a*"})
		join := func(label string) string {
			scheme := rapid.SampledFrom([]string{"s", "t"}).Draw(t, label+" scheme")
			return scheme + ":" + strings.Join(rapid.SliceOfN(segment, 0, 4).Draw(t, label), "/")
		}
		p, r := join("pattern"), join("resource")
		if got, want := abi.Pattern(p).Covers(r), naiveCovers(p, r); got != want {
			t.Fatalf("%q covers %q: %v, naively %v", p, r, got, want)
		}
	})
}

func FuzzScope(f *testing.F) {
	for _, s := range [][2]string{{"files:docs/**", "files:docs/a"}, {"a:*/b", "a:x/b"}, {"a:", "a:"}, {"a:**", "a:"}, {"x:a//**", "x:a/"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, p, r string) {
		if got, want := abi.Pattern(p).Covers(r), naiveCovers(p, r); got != want {
			t.Errorf("%q covers %q: %v, naively %v", p, r, got, want)
		}
		if abi.CheckResource(r) == nil && !abi.Pattern(r).Covers(r) {
			t.Errorf("%q does not cover itself", r)
		}
	})
}
