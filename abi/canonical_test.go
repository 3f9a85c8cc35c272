package abi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
)

// TestCanonicalVectors holds the examples of RFC 8785 that have no fractions, and
// the corners around them (SPEC 3.2).
func TestCanonicalVectors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		// RFC 8785, 3.2.3: keys are sorted by UTF-16 units, so the emoji (d83d …)
		// comes before the Hebrew letter's presentation form (fb33).
		{
			`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",` +
				`"\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\"," +
				"\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}",
		},
		// RFC 8785, 3.2.2: strings and literals.
		{
			`{"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`,
			`{"literals":[null,true,false],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		{` [ 1 , {} , [ ] , "" ]` + "\t\r\n", `[1,{},[],""]`},
		{`{"b":1,"a":{"d":0,"c":-5}}`, `{"a":{"c":-5,"d":0},"b":1}`},
		{`9007199254740991`, `9007199254740991`},
		{`-9007199254740991`, `-9007199254740991`},
		{"\"\u007f\u2028<>&\"", "\"\u007f\u2028<>&\""}, // no escapes but those that are needed
		{`"\b\f\n\r\t\u001f\u0000"`, `"\b\f\n\r\t\u001f\u0000"`},
		{`{"":1}`, `{"":1}`},
		{`{"aa":1,"a":2,"":3}`, `{"":3,"a":2,"aa":1}`},
		{strings.Repeat("[", abi.MaxDepth) + strings.Repeat("]", abi.MaxDepth), strings.Repeat("[", abi.MaxDepth) + strings.Repeat("]", abi.MaxDepth)},
	} {
		got, err := abi.Canonical([]byte(c.in))
		if err != nil || string(got) != c.want {
			t.Errorf("%s\n got %s, %v\nwant %s", c.in, got, err, c.want)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for _, in := range []string{
		``, ` `, `{`, `}`, `[`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{a:1}`, `{'a':1}`, `{"a":1 "b":2}`,
		`{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `[{"x":{"a":1,"a":1}}]`, // repeated keys, escaped or deep
		`1.0`, `1e2`, `1E2`, `0.5`, `-0`, `-0.0`, `01`, `-01`, `+1`, `.5`, `1.`, `-`, `--1`, `0x10`, `1_000`, `NaN`, `Infinity`, `-Infinity`,
		`9007199254740992`, `-9007199254740992`, `99999999999999999999999`,
		`tru`, `True`, `nul`, `undefined`, `true false`, `{} {}`, `[] x`, `1 1`, "\x00", "[1]\x00",
		`"`, `"\`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u+123"`, `"\U0041"`, "\"\n\"", "\"\x1f\"",
		"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "{\"\xff\":1}", // not UTF-8
		`"\ud800"`, `"\udc00"`, `"\ud800x"`, `"\ud800\n"`, `"\ud800\u0041"`, `"\ud800\ud800"`, `"\udc00\ud800"`, // lone surrogates
		"\ufeff{}", "\u00a01", "// x\n1", "/**/1",
		strings.Repeat("[", abi.MaxDepth+1) + strings.Repeat("]", abi.MaxDepth+1),
		strings.Repeat(`{"a":`, 10_000),
	} {
		if got, err := abi.Canonical([]byte(in)); err == nil {
			t.Errorf("%.60q became %s", in, got)
		} else if !errors.Is(err, abi.ErrNotCanonical) {
			t.Errorf("%.60q: %v does not wrap ErrNotCanonical", in, err)
		}
	}
}

func TestCanonicalSharesNoMemory(t *testing.T) {
	in := []byte(`{"a":"text"}`)
	got, err := abi.Canonical(in)
	if err != nil {
		t.Fatal(err)
	}
	for i := range in {
		in[i] = 'x'
	}
	if string(got) != `{"a":"text"}` {
		t.Errorf("the result changed with its source: %s", got)
	}
}

func TestFingerprint(t *testing.T) {
	same := []string{`{"op":"a","v":1}`, ` {"v":1, "op":"\u0061"}`}
	if abi.Fingerprint([]byte(same[0])) != abi.Fingerprint([]byte(same[1])) {
		t.Error("two spellings of one request have different fingerprints")
	}
	differ := []string{`{"op":"a","v":1}`, `{"op":"a","v":2}`, `{"op":"a","v":1`, `{"op":"a","v":1.0}`, ``, `{}`, `null`}
	seen := map[abi.Digest]string{}
	for _, in := range differ {
		d := abi.Fingerprint([]byte(in))
		if other, ok := seen[d]; ok {
			t.Errorf("%q and %q have one fingerprint", in, other)
		}
		seen[d] = in
	}
	// Fixed for good: journals hold it.
	if got := abi.Fingerprint([]byte(`{"op":"host.describe","v":1,"args":{}}`)).String(); got != "73fa4743b6b10d971e9e68f0ecb5487bf4660ccfd1e4937330d896b040b81fcb" {
		t.Errorf("the fingerprint of the vector is %s", got)
	}
}

// A replay takes the fingerprint of every request again.
func TestAFingerprintIsCheap(t *testing.T) {
	request := []byte(`{"args":{"messages":[{"content":"hello","role":"user"}],"model":"m"},"op":"llm.chat","v":1}`)
	if n := testing.AllocsPerRun(100, func() { abi.Fingerprint(request) }); n != 1 {
		t.Errorf("%v allocations for a request that is canonical", n)
	}
	// And what has to be put into order costs what it has, not what lies before it.
	many := []byte("[" + strings.Repeat(`{"b":1,"a":1},`, abi.MaxRequest/14-1) + "0]")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	abi.Fingerprint(many)
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; grew > 6*uint64(len(many)) {
		t.Errorf("%d bytes for a request of %d", grew, len(many))
	}
}

// FuzzCanonical: what is accepted means the same to encoding/json, and its
// canonical form is its own.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{
		`{"b":[1,-2,{"c":null}],"a":"\u00e9\ud83d\ude00"}`, `[]`, `"\""`, `-0`, `1e5`, `{"a":1,"a":2}`, "\"\xed\xa0\x80\"", `"\ud800"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		canon, err := abi.Canonical(in)
		if err != nil {
			return
		}
		again, err := abi.Canonical(canon)
		if err != nil || !bytes.Equal(canon, again) {
			t.Errorf("%s became %s, %v", canon, again, err)
		}
		if a, b := meaning(t, in), meaning(t, canon); !reflect.DeepEqual(a, b) {
			t.Errorf("%q means %v, %q means %v", in, a, canon, b)
		}
	})
}

// meaning is the value as another reader sees it.
func meaning(t *testing.T, b []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("encoding/json refuses %q: %v", b, err)
	}
	return v
}
