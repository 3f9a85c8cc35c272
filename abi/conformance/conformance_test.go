package conformance_test

import (
	"bytes"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/conformance"
)

var clause = regexp.MustCompile(`(?m)^(\d+\.\d+) `)

// withdrawn is a clause that says nothing any more.
var withdrawn = regexp.MustCompile(`(?m)^(\d+\.\d+) \*Withdrawn\.\*`)

// TestEveryClause: each clause of the SPEC has a vector, and nothing else is named.
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
	exists, gone := map[string]bool{}, map[string]bool{}
	for _, m := range withdrawn.FindAllStringSubmatch(string(spec), -1) {
		gone[m[1]] = true
	}
	for _, m := range clause.FindAllStringSubmatch(string(spec), -1) {
		c := m[1]
		if exists[c] = !gone[c]; exists[c] && !named[c] {
			t.Errorf("SPEC %s: no vector names it", c)
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
	if got := slices.Sorted(maps.Keys(gone)); !slices.Equal(got, []string{"10.4"}) {
		t.Errorf("withdrawn are %v", got)
	}
}

// TestVersionOneKeepsWhatItHas: the vectors of ops and codes follow the lists of package
// abi, and these say what the lists may not lose (10.2).
func TestVersionOneKeepsWhatItHas(t *testing.T) {
	ops, codes := strings.Fields("host.describe run.progress log.write time.now time.sleep random.bytes kv.get kv.put kv.delete kv.list tool.list tool.call send http.fetch llm.chat skill.call batch run.continue"), strings.Fields("DENIED SCOPE BUDGET APPROVAL_REJECTED APPROVAL_EXPIRED LABEL SCAN NOT_FOUND INVALID UNSUPPORTED TOO_LARGE RATE UPSTREAM OUTCOME_UNKNOWN TIMEOUT CONNECTOR_REVOKED INTERNAL")
	for _, op := range ops {
		if !slices.Contains(abi.Ops(), abi.Op(op)) {
			t.Errorf("the op %s is gone", op)
		}
	}
	for _, code := range codes {
		if !slices.Contains(abi.Codes(), abi.Code(code)) {
			t.Errorf("the code %s is gone", code)
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
