package abi_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
)

func TestDecodeRequest(t *testing.T) {
	for _, c := range []struct{ in, op, args string }{
		{`{"op":"time.now","v":1}`, "time.now", `{}`},
		{`{"args":{"b":1,"a":2},"v":3,"op":"x"}`, "x", `{"a":2,"b":1}`},
		{`{"op":"x","v":1,"future":[1]}`, "x", `{}`}, // an unknown field is ignored …
		{`{"op":"x","v":1,"must_understand":["args"],"args":{}}`, "x", `{}`},
		{`{"op":"x","v":1,"must_understand":[]}`, "x", `{}`},
		{`{"op":"` + strings.Repeat("x", abi.MaxName) + `","v":1}`, strings.Repeat("x", abi.MaxName), `{}`},
	} {
		r, d := abi.DecodeRequest([]byte(c.in))
		if d != nil || string(r.Op) != c.op || string(r.Args) != c.args {
			t.Errorf("%s: %+v %v", c.in, r, d)
		}
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	for in, code := range map[string]abi.Code{
		``:                                       abi.Invalid,
		`null`:                                   abi.Invalid,
		`[]`:                                     abi.Invalid,
		`"op"`:                                   abi.Invalid,
		`{}`:                                     abi.Invalid,
		`{"op":"x"}`:                             abi.Invalid,
		`{"op":"","v":1}`:                        abi.Invalid,
		`{"op":null,"v":1}`:                      abi.Invalid,
		`{"op":1,"v":1}`:                         abi.Invalid,
		`{"op":"x","v":0}`:                       abi.Invalid,
		`{"op":"x","v":-1}`:                      abi.Invalid,
		`{"op":"x","v":"1"}`:                     abi.Invalid,
		`{"op":"x","v":1,"args":[]}`:             abi.Invalid,
		`{"op":"x","v":1,"args":null}`:           abi.Invalid,
		`{"op":"x","v":1,"args":"{}"}`:           abi.Invalid,
		`{"op":"x","v":1,"args":{"a":0.1}}`:      abi.Invalid,
		`{"op":"x","v":1,"args":{"a":1,"a":1}}`:  abi.Invalid,
		`{"op":"x","op":"y","v":1}`:              abi.Invalid,
		`{"Op":"x","v":1}`:                       abi.Invalid,
		`{"op":"x","v":1,"ARGS":{}}`:             abi.Invalid,
		`{"op":"x","v":1,"arg\u017f":{}}`:        abi.Invalid, // ſ folds to s
		`{"op":"x","v":1} ` + "\x00":             abi.Invalid,
		`{"op":"x","v":1,"must_understand":"a"}`: abi.Invalid,
		`{"op":"x","v":1,"must_understand":["a"]}`:             abi.Invalid, // names what is absent
		`{"op":"x","v":1,"a":1,"must_understand":["a"]}`:       abi.Unsupported,
		`{"op":"` + strings.Repeat("x", 65) + `","v":1}`:       abi.Invalid,
		`{"op":"` + strings.Repeat("x", abi.MaxRequest) + `"}`: abi.TooLarge,
	} {
		r, d := abi.DecodeRequest([]byte(in))
		if r != nil || d == nil || d.Code != code || d.Effect != abi.OutcomeNone || d.Reason == "" {
			t.Errorf("%.80s: %+v %v, want %s", in, r, d, code)
		}
	}
}

// FuzzDecodeRequest: exactly one of request and denial, and a request that is
// written again is read as the same.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"op":"send","v":1,"args":{"operation":"mail.send","args":{"to":["a@b.c"]}}}`))
	f.Add([]byte(`{"op":"x","v":1,"must_understand":["y"],"y":0}`))
	f.Add([]byte(`{"OP":"x","v":1}`))
	f.Add([]byte(`{"op":"x","v":1,"args":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, d := abi.DecodeRequest(in)
		if (r == nil) == (d == nil) {
			t.Fatalf("%q: request %v, denial %v", in, r, d)
		}
		if d != nil {
			return
		}
		if r.Op == "" || r.V < 1 || len(r.Args) == 0 || r.Args[0] != '{' {
			t.Fatalf("%q was read as %+v", in, r)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, d := abi.DecodeRequest(b)
		// Unknown fields are not kept, so must_understand can name an absent one now.
		if d != nil || again.Op != r.Op || again.V != r.V || !bytes.Equal(again.Args, r.Args) {
			t.Fatalf("%q was read as %+v, and again as %+v, %v", in, r, again, d)
		}
	})
}

func TestDecodeArgs(t *testing.T) {
	type inner struct {
		Name string `json:"name"`
	}
	type args struct {
		inner
		List  []inner          `json:"list,omitempty"`
		Map   map[string]inner `json:"map,omitempty"`
		Ptr   *inner           `json:"ptr,omitempty"`
		Raw   json.RawMessage  `json:"raw,omitempty"`
		Plain int
		Skip  string `json:"-"`
		Blob  []byte `json:"blob,omitempty"`
	}
	for _, ok := range []string{
		`{}`, `{"name":"x","Plain":1}`, `{"list":[{"name":"a"}],"map":{"Any":{"name":"b"}},"ptr":{"name":"c"}}`,
		`{"raw":{"Any":{"thing":[1]}}}`, `{"blob":"AAEC"}`, `{"list":null,"ptr":null}`,
	} {
		var a args
		if d := abi.DecodeArgs([]byte(ok), &a); d != nil {
			t.Errorf("%s: %v", ok, d)
		}
	}
	for in, want := range map[string]string{
		`{"Name":"x"}`:               `args: the field "Name" must be spelled "name"`,
		`{"Name":""}`:                `must be spelled`, // a zero value hides nothing
		`{"plain":1}`:                `must be spelled "Plain"`,
		`{"li\u017ft":[]}`:           `must be spelled "list"`,
		`{"list":[{},{"NAME":"x"}]}`: `args.list[1]: the field "NAME"`,
		`{"map":{"k":{"other":1}}}`:  `args.map.k: unknown field "other"`,
		`{"ptr":{"x":1}}`:            `args.ptr: unknown field`,
		`{"Skip":"x"}`:               `unknown field`,
		`{"inner":{}}`:               `unknown field`,
		`{"list":{}}`:                `args: json`,
		`{"name":1}`:                 `args: json`,
		`{"Plain":1.5}`:              `integer`,
		`{"name":"a","name":"b"}`:    `occurs twice`,
		`{"blob":"%"}`:               `args:`,
		`[]`:                         `args: json`,
		`{"raw":{"a":1,"a":2}}`:      `occurs twice`,
	} {
		var a args
		d := abi.DecodeArgs([]byte(in), &a)
		if d == nil || d.Code != abi.Invalid || !strings.Contains(d.Reason, want) {
			t.Errorf("%s: %v, want a reason with %q", in, d, want)
		}
	}
}
