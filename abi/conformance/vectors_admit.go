package conformance

import (
	"fmt"
	"strings"

	"github.com/getmonroe/monroe/abi"
	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// bare is a module without the parts that a vector wants to leave out.
func bare(fill func(b *w.Builder)) func() []byte {
	return func() []byte {
		b := &w.Builder{}
		fill(b)
		return b.Bytes()
	}
}

func run0(b *w.Builder)     { b.Export("monroe_run", w.KindFunc, b.Func("", "i", 0, ok)) }
func memory(b *w.Builder)   { b.Memory(1); b.Export("memory", w.KindMemory, 0) }
func manifest(b *w.Builder) { b.Custom(abi.ManifestSection, []byte(w.Manifest)) }

// with is a guest to which something is added before its monroe_run.
func with(fill func(b *w.Builder)) func() []byte {
	return build(func(b *w.Builder, _ w.Imports) []byte { fill(b); return ok })
}

// body is a guest with one more function of the given code.
func body(code ...[]byte) func() []byte {
	return with(func(b *w.Builder) { b.Func("", "", 0, code...) })
}

// nested is a function with n blocks within each other.
func nested(n int) func() []byte { return body(w.Repeat(n, w.Block), w.Repeat(n, w.End)) }

func locals(n uint32, code ...[]byte) func() []byte {
	return with(func(b *w.Builder) { b.Func("", "", n, code...) })
}

func segments(n int) func() []byte {
	return with(func(b *w.Builder) {
		b.Raw(11, w.Cat(w.U32(uint32(n)), w.Repeat(n, []byte{0}, ok, w.End, w.Vec([]byte{1}))))
	})
}

func functions(n int) func() []byte { // one of them is monroe_run
	return with(func(b *w.Builder) {
		t := b.Type("", "")
		for range n - 1 {
			b.FuncRaw(t, []byte{0, 0x0b})
		}
	})
}

// padded is a guest of exactly n bytes, by a custom section.
func padded(n int) func() []byte {
	return func() []byte {
		b, _ := w.Guest()
		b.Custom("padding", make([]byte, n-1000))
		short := n - len(w.Run(b, ok))
		b, _ = w.Guest()
		b.Custom("padding", make([]byte, n-1000+short))
		return w.Run(b, ok)
	}
}

func admissionVectors() []Vector {
	refused := func(clauses, name string, module func() []byte) Vector {
		return Vector{Name: "refused: " + name, Clauses: clauses, Module: module, Compile: true, Want: []string{"fault MODULE"}}
	}
	tooLarge := func(name string, module func() []byte) Vector {
		return Vector{Name: "refused: " + name, Clauses: "9.1 9.3", Module: module, Compile: true, Want: []string{"fault TOO_LARGE"}}
	}
	accepted := func(clauses, name string, module func() []byte) Vector {
		return Vector{Name: "accepted: " + name, Clauses: clauses, Module: module, Compile: true, Want: []string{"compiled"}}
	}
	raw := func(b []byte) func() []byte { return func() []byte { return b } }
	imports := func(module, name, params, results string) func() []byte {
		return with(func(b *w.Builder) { b.Import(module, name, params, results) })
	}
	const pad = 1 << 20
	return []Vector{
		refused("9.1", "text", raw([]byte("(module)"))),
		refused("9.1", "nothing", raw([]byte{})),
		refused("1.3 9.1", "a component", raw(w.Header(0x0001000d))),
		refused("9.1", "a module that is cut off", func() []byte { m := w.Asks(ask, 64); return m[:len(m)-3] }),
		refused("9.1 2.2", "no memory", bare(func(b *w.Builder) { run0(b); manifest(b) })),
		refused("9.1 2.2", "a memory that is not exported", bare(func(b *w.Builder) { b.Memory(1); run0(b); manifest(b) })),
		refused("9.1 2.2", "no monroe_run", bare(func(b *w.Builder) { memory(b); manifest(b) })),
		refused("9.1 2.2", "monroe_run of another type", bare(func(b *w.Builder) {
			memory(b)
			manifest(b)
			b.Export("monroe_run", w.KindFunc, b.Func("", "", 0))
		})),
		refused("9.1 2.2", "_initialize of another type", with(func(b *w.Builder) { b.Export("_initialize", w.KindFunc, b.Func("i", "", 0)) })),
		refused("9.1 4.1", "no manifest", bare(func(b *w.Builder) { memory(b); run0(b) })),
		refused("9.1 4.1", "two manifests", with(manifest)),
		refused("9.1 4.1", "a bad manifest", bare(func(b *w.Builder) { memory(b); run0(b); b.Custom(abi.ManifestSection, []byte(`{"abi":2}`)) })),
		refused("2.1 9.1", "an unknown function of monroe_v1", imports("monroe_v1", "exec", "ii", "I")),
		refused("2.1 9.1", "call with another type", imports("monroe_v1", "call", "ii", "I")),
		refused("2.1 9.1 10.1", "another major version", imports("monroe_v999", "call", "iiii", "I")),
		refused("2.1 9.1", "a module of its own", imports("env", "abort", "", "")),
		refused("2.1 8.1 8.2 9.1", "WASI files", imports(wasi, "path_open", "iiiiiIIii", "i")),
		refused("2.1 8.1 8.2 9.1", "WASI sockets", imports(wasi, "sock_send", "iiiii", "i")),
		refused("2.1 9.1", "an imported memory", bare(func(b *w.Builder) {
			b.ImportRaw("env", "memory", []byte{2, 0, 1}, false)
			b.Export("memory", w.KindMemory, 0)
			run0(b)
			manifest(b)
		})),
		refused("2.1 9.1", "an imported global", with(func(b *w.Builder) { b.ImportRaw("env", "g", []byte{3, w.I32, 0}, false) })),
		refused("2.2 9.2", "a shared memory", bare(func(b *w.Builder) {
			b.MemoryRaw(3, 1, 2)
			b.Export("memory", w.KindMemory, 0)
			run0(b)
			manifest(b)
		})),
		refused("2.2 9.2", "a 64-bit memory", bare(func(b *w.Builder) {
			b.MemoryRaw(4, 1)
			b.Export("memory", w.KindMemory, 0)
			run0(b)
			manifest(b)
		})),
		refused("2.2 9.2", "two memories", with(func(b *w.Builder) { b.Memory(1) })),
		refused("9.2", "atomics", body([]byte{0xfe, 3, 0})),
		refused("9.2", "exceptions", body([]byte{0x06, 0x40}, w.End)),
		refused("9.2", "exceptions of the later kind", body([]byte{0x1f, 0x40, 0}, w.End)),
		refused("9.2", "garbage collection", body([]byte{0xfb, 1, 0}, w.Drop)),
		refused("9.2", "relaxed vectors", body([]byte{0xfd, 0x80, 2}, w.Drop)),
		refused("9.1", "code that is not well typed", body(w.Add)),

		accepted("9.2", "the profile", portable),
		accepted("9.3", "50 000 functions", functions(50_000)),
		tooLarge("50 001 functions", functions(50_001)),
		accepted("9.3", "2 000 locals", locals(2_000)),
		tooLarge("2 001 locals", locals(2_001)),
		tooLarge("4 billion locals", locals(1<<32-1)),
		accepted("9.3", "50 loops of 1 000 locals", locals(1_000, w.Repeat(50, w.Loop, w.End))),
		tooLarge("51 loops of 1 000 locals", locals(1_000, w.Repeat(51, w.Loop, w.End))),
		accepted("9.3", "blocks nested 2 999 deep", nested(2_999)), // the function itself is the first
		tooLarge("blocks nested 3 001 deep", nested(3_001)),
		tooLarge("a compile bomb of 50 000 blocks", nested(50_000)),
		tooLarge("a compile bomb of 20 000 loops", locals(500, w.Repeat(20_000, w.Loop, w.End))),
		accepted("9.3", "100 000 data segments", segments(100_000)),
		tooLarge("100 001 data segments", segments(100_001)),
		accepted("9.3", "a table of 100 000", with(func(b *w.Builder) { b.Table(100_000, 100_000) })),
		tooLarge("a table of 100 001", with(func(b *w.Builder) { b.Table(100_001) })),
		refused("9.3", "a table that grows to 4 billion", with(func(b *w.Builder) {
			b.Table(0, 1<<32-1)
			b.Func("", "i", 0, []byte{0xd0, 0x70}, w.I32Const(1), []byte{0xfc, 15, 0})
		})),
		tooLarge("a body of more than 1 MiB", body(w.Repeat(pad, []byte{0x01}))),
		accepted("9.3", "a module of 16 MiB", padded(abi.MaxModule)),
	}
}

// readVectors hold the host's reader of requests, manifests and patterns to 3.2, 4.1
// and 4.3.
func readVectors() (v []Vector) {
	request := func(name, text string, code abi.Code) {
		want := "read " + abi.Fingerprint([]byte(text)).String()
		if code != "" {
			want += " " + string(code)
		}
		v = append(v, Vector{Name: "request: " + name, Clauses: "3.2 3.13 6.2", Request: []byte(text), Want: []string{want}})
	}
	deep := func(n int) string {
		return `{"op":"x","v":1,"args":{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}}`
	}
	v = append(v, Vector{
		Name: "request: the SPEC's own fingerprint", Clauses: "6.2", Request: []byte(`{"op":"host.describe","v":1,"args":{}}`),
		Want: []string{"read 73fa4743b6b10d971e9e68f0ecb5487bf4660ccfd1e4937330d896b040b81fcb"},
	})
	request("keys in any order, with space", " {\"v\" :\t1,\n\"op\":\"kv.get\", \"args\":{} }\r\n", "")
	request("no args", `{"op":"time.now","v":1}`, "")
	request("an unknown field", `{"op":"time.now","v":1,"later":true}`, "")
	request("an unknown field that must be understood", `{"op":"time.now","v":1,"later":true,"must_understand":["later"]}`, abi.Unsupported)
	request("must_understand of an absent field", `{"op":"time.now","v":1,"must_understand":["later"]}`, abi.Invalid)
	request("must_understand of a known field", `{"op":"time.now","v":1,"args":{},"must_understand":["args"]}`, "")
	request("another case", `{"op":"time.now","v":1,"Args":{}}`, abi.Invalid)
	request("empty", ``+" ", abi.Invalid)
	request("an array", `[]`, abi.Invalid)
	request("null", `null`, abi.Invalid)
	request("text after the object", `{"op":"time.now","v":1}{}`, abi.Invalid)
	request("a repeated key", `{"op":"time.now","op":"send","v":1}`, abi.Invalid)
	request("a repeated key, escaped", `{"op":"time.now","\u006fp":"send","v":1}`, abi.Invalid)
	request("a repeated key, deep", `{"op":"send","v":1,"args":{"a":{"b":1,"b":2}}}`, abi.Invalid)
	request("invalid UTF-8", "{\"op\":\"x\xff\",\"v\":1}", abi.Invalid)
	request("an overlong slash", "{\"op\":\"x\xc0\xaf\",\"v\":1}", abi.Invalid)
	request("a lone surrogate", `{"op":"x","v":1,"args":{"a":"\ud800"}}`, abi.Invalid)
	request("a pair of surrogates", `{"op":"x","v":1,"args":{"a":"\ud83d\ude00"}}`, "")
	request("a fraction", `{"op":"x","v":1,"args":{"usd":1.5}}`, abi.Invalid)
	request("an exponent", `{"op":"x","v":1,"args":{"n":1e3}}`, abi.Invalid)
	request("minus zero", `{"op":"x","v":1,"args":{"n":-0}}`, abi.Invalid)
	request("a leading zero", `{"op":"x","v":1,"args":{"n":01}}`, abi.Invalid)
	request("2^53-1", `{"op":"x","v":1,"args":{"n":9007199254740991}}`, "")
	request("2^53", `{"op":"x","v":1,"args":{"n":9007199254740992}}`, abi.Invalid)
	request("-2^53", `{"op":"x","v":1,"args":{"n":-9007199254740992}}`, abi.Invalid)
	request("a nesting of 64", deep(62), "")
	request("a nesting of 65", deep(63), abi.Invalid)
	request("a bomb of brackets", deep(100_000), abi.Invalid)
	request("no op", `{"v":1}`, abi.Invalid)
	request("an op of 65 bytes", `{"op":"`+strings.Repeat("x", 65)+`","v":1}`, abi.Invalid)
	request("no version", `{"op":"time.now"}`, abi.Invalid)
	request("version 0", `{"op":"time.now","v":0}`, abi.Invalid)
	request("an op of the wrong type", `{"op":1,"v":1}`, abi.Invalid)
	request("args of the wrong type", `{"op":"time.now","v":1,"args":[]}`, abi.Invalid)
	request("more than 1 MiB", `{"op":"x","v":1,"args":{"a":"`+strings.Repeat("x", abi.MaxRequest)+`"}}`, abi.TooLarge)

	manifest := func(name, text string, good bool) {
		want := "manifest"
		if !good {
			want = "manifest INVALID"
		}
		v = append(v, Vector{Name: "manifest: " + name, Clauses: "4.1 3.3", Manifest: []byte(text), Want: []string{want}})
	}
	manifest("the least", `{"abi":1,"name":"a","version":"1"}`, true)
	manifest("all fields", `{"abi":1,"name":"a-1","version":"1.0.0+x","description":"d","ops":["send","tool.call"],"operations":[{"operation":"files.read","effect":"read","resource":"files:docs/**"}],"input":{"type":"object"},"limits":{"memory_pages":10,"calls":5,"wall_ns":1000000000,"cpu_ns":1000000000}}`, true)
	manifest("another abi", `{"abi":2,"name":"a","version":"1"}`, false)
	manifest("a name with a capital", `{"abi":1,"name":"Ab","version":"1"}`, false)
	manifest("a name of 33 bytes", `{"abi":1,"name":"`+strings.Repeat("a", 33)+`","version":"1"}`, false)
	manifest("no version", `{"abi":1,"name":"a"}`, false)
	manifest("a version with a space", `{"abi":1,"name":"a","version":"1 0"}`, false)
	manifest("a description of 1025 bytes", `{"abi":1,"name":"a","version":"1","description":"`+strings.Repeat("d", 1025)+`"}`, false)
	manifest("an op twice", `{"abi":1,"name":"a","version":"1","ops":["send","send"]}`, false)
	manifest("an unknown op", `{"abi":1,"name":"a","version":"1","ops":["exec"]}`, false)
	manifest("an unknown field", `{"abi":1,"name":"a","version":"1","grants":[]}`, false)
	manifest("a field in another case", `{"abi":1,"name":"a","version":"1","Ops":[]}`, false)
	manifest("an unknown effect", `{"abi":1,"name":"a","version":"1","operations":[{"operation":"files.read","effect":"peek","resource":"files:a"}]}`, false)
	manifest("a resource that climbs", `{"abi":1,"name":"a","version":"1","operations":[{"operation":"files.read","effect":"read","resource":"files:../a"}]}`, false)
	manifest("a repeated key", `{"abi":1,"abi":1,"name":"a","version":"1"}`, false)
	manifest("more than 64 KiB", `{"abi":1,"name":"a","version":"1","input":{"x":"`+strings.Repeat("x", 64<<10)+`"}}`, false)

	for _, c := range []struct {
		pattern, resource string
		covers            bool
	}{
		{"files:docs/**", "files:docs", true},
		{"files:docs/**", "files:docs/a/b", true},
		{"files:docs/**", "files:docs2", false},
		{"files:docs/**", "files:docs/../x", false},
		{"files:docs/*", "files:docs/a", true},
		{"files:docs/*", "files:docs", false},
		{"files:docs/*", "files:docs/", false},
		{"files:docs/*", "files:docs/a/b", false},
		{"mail:ann@example.com", "mail:ann@example.com", true},
		{"mail:ann@example.com", "mail:ann@example.com.x", false},
		{"https://example.com/**", "https://example.com/", true},
		{"https://example.com/**", "https://example.com/a", true},
		{"https://example.com/**", "https://example.com.x/", false},
		{"https://example.com/**", "http://example.com/", false},
		{"files:*", "files:a b", true},
		{"files:**", `files:a\b`, false},
		{"files:**", "files:a\x00", false},
		{"files:**", "files:*", false},
		{"files:a*", "files:ab", false},
		{"files:**/a", "files:x/a", false},
		{"files:" + strings.Repeat("a", 2042), "files:" + strings.Repeat("a", 2042), true},
		{"files:" + strings.Repeat("a", 2043), "files:" + strings.Repeat("a", 2043), false},
	} {
		want := "covers not"
		if c.covers {
			want = "covers"
		}
		name := fmt.Sprintf("%.40q (%d bytes) and %.40q", c.pattern, len(c.pattern), c.resource)
		v = append(v, Vector{Name: "scope: " + name, Clauses: "4.3 7.1", Covers: [2]string{c.pattern, c.resource}, Want: []string{want}})
	}
	return v
}
