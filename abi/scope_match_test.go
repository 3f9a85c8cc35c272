package abi

import (
	"slices"
	"strings"
	"testing"
)

// coversSlowly is the definition in SPEC 4.3, word for word.
func coversSlowly(p Pattern, resource string) bool {
	if CheckPattern(p) != nil || CheckResource(resource) != nil {
		return false
	}
	ps, pat, _ := splitResource(string(p))
	rs, res, _ := splitResource(resource)
	if ps != rs {
		return false
	}
	for i, g := range pat {
		switch {
		case g == "**":
			return true
		case i >= len(res):
			return false
		case g == "*":
			if res[i] == "" {
				return false
			}
		case g != res[i]:
			return false
		}
	}
	return len(pat) == len(res)
}

// TestCoversAsDefined holds the fast comparison to the definition, for every path of
// up to three segments of a small alphabet, malformed ones included.
func TestCoversAsDefined(t *testing.T) {
	alphabet := []string{"", "a", "b", "*", "**", ".", "a*"}
	paths := []string{""}
	for from := 0; len(paths) < 400; {
		for _, p := range slices.Clone(paths[from:]) {
			for _, g := range alphabet {
				if p == "" {
					paths = append(paths, g)
				} else {
					paths = append(paths, p+"/"+g)
				}
			}
			from++
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	yes := 0
	for _, p := range paths {
		for _, r := range paths {
			for _, scheme := range []string{"s:", "t:", ""} {
				if want := coversSlowly(Pattern("s:"+p), scheme+r); Pattern("s:"+p).Covers(scheme+r) != want {
					t.Fatalf("%q covers %q: not %t", "s:"+p, scheme+r, want)
				} else if want {
					yes++
				}
			}
		}
	}
	if yes == 0 || strings.Contains(paths[0], "s") {
		t.Fatal("nothing was covered")
	}
}
