package label_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/host/label"
)

func genReaders(t *rapid.T) label.Readers {
	if rapid.IntRange(0, 3).Draw(t, "everyone") == 3 {
		return label.Everyone()
	}
	return label.Only(rapid.SliceOfN(rapid.SampledFrom([]string{"workspace", "model", "host:a", "mail:ann@example.com"}), 0, 4).Draw(t, "readers")...)
}

// gen draws a label that Join could have made, some with more origins than fit.
func gen(t *rapid.T) label.Set {
	var origins []string
	start, n := rapid.IntRange(0, 40).Draw(t, "first"), rapid.IntRange(0, 2*label.MaxOrigins).Draw(t, "origins")
	for i := range n {
		origins = append(origins, fmt.Sprintf("files:docs/%03d", start+i))
	}
	if rapid.Bool().Draw(t, "late script") { // sorts behind the mark of left-out origins
		origins = append(origins, "files:日")
	}
	return label.Set{
		Integrity: label.Integrity(rapid.IntRange(0, int(label.User)).Draw(t, "integrity")), Readers: genReaders(t),
		Secret: rapid.Bool().Draw(t, "secret"), PII: rapid.Bool().Draw(t, "pii"),
		Origins: label.Join(label.Set{Origins: origins}, label.Set{}).Origins, // sorted and bounded
	}
}

func same(t *rapid.T, what string, a, b label.Set) {
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%s: %+v is not %+v", what, a, b)
	}
}

// Law 1.
func TestJoinIsCommutativeAssociativeIdempotentWithCleanAsIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen(t), gen(t), gen(t)
		same(t, "commutative", label.Join(a, b), label.Join(b, a))
		same(t, "associative", label.Join(label.Join(a, b), c), label.Join(a, label.Join(b, c)))
		same(t, "idempotent", label.Join(a, a), a)
		same(t, "identity", label.Join(a, label.Clean()), a)
		same(t, "identity", label.Join(label.Clean(), a), a)
	})
}

// Law 2, and what bounds the origins.
func TestJoiningNeverWidens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen(t), gen(t)
		j := label.Join(a, b)
		for _, x := range []label.Set{a, b} {
			if j.Integrity > x.Integrity || !j.Readers.Within(x.Readers) || x.Secret && !j.Secret || x.PII && !j.PII {
				t.Fatalf("%v joined to %v", x, j)
			}
			for _, o := range x.Origins {
				if !slices.Contains(j.Origins, o) && !slices.Contains(j.Origins, label.MoreOrigins) {
					t.Fatalf("the origin %s was left out without a mark", o)
				}
			}
		}
		if len(j.Origins) > label.MaxOrigins || !slices.IsSorted(j.Origins) {
			t.Fatalf("%d origins", len(j.Origins))
		}
		for _, o := range j.Origins {
			if o != label.MoreOrigins && !slices.Contains(a.Origins, o) && !slices.Contains(b.Origins, o) {
				t.Fatalf("the origin %s came from nowhere", o)
			}
		}
	})
}

func TestJoinLeavesItsArgumentsAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen(t), gen(t)
		before, _ := json.Marshal([]label.Set{a, b})
		j := label.Join(a, b)
		for i := range j.Origins {
			j.Origins[i] = "overwritten"
		}
		names := j.Readers.Names()
		for i := range names {
			names[i] = "overwritten"
		}
		if after, _ := json.Marshal([]label.Set{a, b}); string(after) != string(before) {
			t.Fatalf("%s became %s", before, after)
		}
	})
}

// Law 3.
func TestTheZeroSetIsTheStrictest(t *testing.T) {
	var zero label.Set
	if zero.Integrity != label.External || zero.Readers.IsEveryone() || len(zero.Readers.Names()) != 0 {
		t.Fatal(zero)
	}
	rapid.Check(t, func(t *rapid.T) {
		a := gen(t)
		j := label.Join(a, zero)
		if j.Integrity != label.External || len(j.Readers.Names()) != 0 || j.Readers.IsEveryone() {
			t.Fatalf("%v joined with the zero set is %v", a, j)
		}
		if !zero.Readers.Within(a.Readers) {
			t.Fatal("nobody is not within", a)
		}
	})
	for _, s := range []string{"", "User", "trusted"} {
		if label.ParseIntegrity(s) != label.External {
			t.Errorf("%q is trusted", s)
		}
	}
	if label.Integrity(200).String() != "external" {
		t.Error("an unknown integrity has a trusted name")
	}
}

func TestReadersWithinAndExceptAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genReaders(t), genReaders(t)
		if a.Within(b) != (len(a.Except(b)) == 0) {
			t.Fatalf("%v within %v: %v, except: %v", a, b, a.Within(b), a.Except(b))
		}
	})
}

func TestJSONRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := gen(t)
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var b label.Set
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatal(err)
		}
		if again, _ := json.Marshal(b); string(again) != string(text) || !b.Readers.Within(a.Readers) || !a.Readers.Within(b.Readers) || !slices.Equal(a.Origins, b.Origins) {
			t.Fatalf("%s became %s", text, again)
		}
	})
}

// What a stored label says and this program does not know may have made it
// stricter, so reading it as less is refused.
func TestWhatIsNotUnderstoodIsAnErrorNeverAWiderLabel(t *testing.T) {
	for _, text := range []string{
		``, `null`, `{}`, `[]`, `{"integrity":"trusted"}`, `{"integrity":"User"}`, `{"integrity":3}`, `{"integrity":"user","everyone":"yes"}`,
		`{"integrity":"user","everyone":true,"confidential":true}`, `{"integrity":"user","secret":1}`,
	} {
		s := label.Clean()
		if err := json.Unmarshal([]byte(text), &s); err == nil {
			t.Errorf("%s was read as %v", text, s)
		}
	}
}
