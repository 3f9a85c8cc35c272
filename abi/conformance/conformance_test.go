package conformance_test

import (
	"bytes"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi/conformance"
)

var clause = regexp.MustCompile(`(?m)^(\d+\.\d+) `)

// TestEveryClause: each clause of the SPEC has a vector, or a reason why it has none,
// and nothing else is named.
func TestEveryClause(t *testing.T) {
	spec, err := os.ReadFile("../SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, v := range conformance.Vectors() {
		if v.Clauses == "" {
			t.Errorf("the vector %q names no clause", v.Name)
		}
		for c := range strings.FieldsSeq(v.Clauses) {
			named[c] = true
		}
	}
	exists := map[string]bool{}
	for _, m := range clause.FindAllStringSubmatch(string(spec), -1) {
		c := m[1]
		exists[c] = true
		reason, untestable := conformance.Untestable[c]
		if named[c] == untestable {
			t.Errorf("SPEC %s: named by a vector is %v, and untestable %v (%s): one of the two is needed", c, named[c], untestable, reason)
		}
	}
	if len(exists) < 40 {
		t.Fatalf("only %d clauses were found", len(exists))
	}
	for c := range named {
		if !exists[c] {
			t.Errorf("a vector names the clause %s, which does not exist", c)
		}
	}
	// One more is a decision, and not the way to get a clause past this test.
	if got, want := slices.Sorted(maps.Keys(conformance.Untestable)), []string{"10.2", "10.3", "10.4", "4.2", "9.4"}; !slices.Equal(got, want) {
		t.Errorf("untestable are %v, not %v", got, want)
	}
	for c, reason := range conformance.Untestable {
		if !exists[c] || reason == "" {
			t.Errorf("untestable: the clause %s exists: %v, reason %q", c, exists[c], reason)
		}
	}
}

// TestVectorsAreDeterministic builds everything twice. Names tell vectors apart.
func TestVectorsAreDeterministic(t *testing.T) {
	one, two := conformance.Vectors(), conformance.Vectors()
	names := map[string]bool{}
	for i, v := range one {
		if names[v.Name] {
			t.Errorf("two vectors are named %q", v.Name)
		}
		names[v.Name] = true
		if len(v.Want) == 0 {
			t.Errorf("%s wants nothing", v.Name)
		}
		if v.Module != nil && !bytes.Equal(v.Module(), two[i].Module()) {
			t.Errorf("%s is another module each time", v.Name)
		}
	}
}
