package conformance

import (
	"fmt"

	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// first are requests of version 1 with their fingerprints, in letters and not by any name
// of this repository: what is removed or changed in meaning (10.2) is found here.
var first = [...][2]string{
	{`{"op":"host.describe","v":1,"args":{}}`, "73fa4743b6b10d971e9e68f0ecb5487bf4660ccfd1e4937330d896b040b81fcb"},
	{`{"op":"run.progress","v":1,"args":{"text":"half","percent":50}}`, "8e26018fb0673babe5ff72dece80227410d16a5a32a61875f75011e2c91ef6e6"},
	{`{"op":"log.write","v":1,"args":{"level":"info","text":"hello"}}`, "cd22b717233d7d281999f3c597f94c4fbe8aefd3ddf65cee067677956b5570e0"},
	{`{"op":"time.now","v":1,"args":{}}`, "8d98c50d77abe9987ea388f50a16a61aa977268e472dd8b7e8517b146d9dd70c"},
	{`{"op":"time.sleep","v":1,"args":{"ms":1000}}`, "d3f3e2b410d947e6a69f28f750abb562828fd24e52460ede10eab80ec58df2b1"},
	{`{"op":"random.bytes","v":1,"args":{"n":16}}`, "416eee72b4d80e2706927a3e96ad63ed88eb5c67b287f0836d1a082c9e025fde"},
	{`{"op":"kv.get","v":1,"args":{"key":"a"}}`, "edbfa596af6200a76f17367ad04aba2353ab5611cfb8b01eda44058be0f5c8f3"},
	{`{"op":"kv.put","v":1,"args":{"key":"a","value":{"b":[1,null,true]}}}`, "890a22b4657fe09a81676428345250a7e348190dd7d074601d7716dd89e59fd8"},
	{`{"op":"kv.delete","v":1,"args":{"key":"a"}}`, "0fad2a14e9fee067d8f1d1469dab28eb6ffead37685b25402db439ec4550ebeb"},
	{`{"op":"kv.list","v":1,"args":{"prefix":"a"}}`, "951313455b82f15205e35a9c65f5dddbb554474a953a04465144a808df6f6274"},
	{`{"op":"tool.list","v":1,"args":{}}`, "0a41e99a96d0d15c2294d6f02c3f94a9e4bfea8f1d741e1ce3ad184da6d5049f"},
	{`{"op":"tool.call","v":1,"args":{"operation":"files.read","args":{"path":"a"}}}`, "c514d460f739e3ab4d7ccf3d5680b392634f8bbc01d7caff1c8e989a6a3d946b"},
	{`{"op":"send","v":1,"args":{"operation":"mail.send","args":{"to":["ann@example.com"],"subject":"hello","text":"hi"}}}`, "c9d91464b0252a105e61999326251518e83fa61250b36c3d702ef721be5b4ebc"},
	{`{"op":"http.fetch","v":1,"args":{"url":"https://example.com/","method":"HEAD"}}`, "a488143722d88ba089e9f120af2278a8d0e2adaf3d9aa899688470a3b9edc66b"},
	{`{"op":"llm.chat","v":1,"args":{"model":"","messages":[{"role":"user","content":"hello"}],"max_output_tokens":100}}`, "d6bb7f5e2acaa442238436107d6a05e541dfd931475e3ee18d91f180a950e6c0"},
	{`{"op":"skill.call","v":1,"args":{"skill":"digest","input":{}}}`, "58fd5ff8b09ec4a9189277b930da46961ffcca687ffa5ee8a411b42e6917e10f"},
	{`{"op":"batch","v":1,"args":{"requests":[{"op":"time.now","v":1},{"op":"kv.get","v":1,"args":{"key":"a"}}]}}`, "f9f84b17919678fc69f80f540bb7ed129e2bddda5f3cf9a7e681d46bc7d98e28"},
	{`{"op":"run.continue","v":1,"args":{"state":{"page":2}}}`, "5aab9ec2b37d9a73cb72de9de2bd6ef72c012e4020a1f259cdf4fe85de7bf1e1"},
}

// versionVectors hold the host to what version 1 keeps and where it grows (10.2, 10.3), and
// to what a host may do ahead of a run (9.4).
func versionVectors() (v []Vector) {
	for _, c := range first {
		v = append(v, Vector{Name: "version 1 has " + c[0], Clauses: "10.2 3.4 6.2", Request: []byte(c[0]), Want: []string{"read " + c[1]}})
	}
	for _, name := range []string{"open", "send", "now", "abort", "call2"} {
		v = append(v, Vector{
			Name: "version 1 has no function " + name, Clauses: "2.1 10.2", Compile: true, Want: []string{"fault MODULE"},
			Module: with(func(b *w.Builder) { b.Import("monroe_v1", name, "iiii", "I") }),
		})
	}
	const later = `{"op":"time.now","v":2}`
	both := later + ask
	return append(
		v,
		Vector{
			Name: "another version of an op is well formed", Clauses: "3.1 10.3 6.2", Request: []byte(later),
			Want: []string{"read c48a74a7a678c4fd90e9d205a47ca29c892e600b7647105a806fd36d1721fd0c"},
		},
		Vector{
			Name: "two versions of an op reach whoever answers, each as it is", Clauses: "3.1 10.3",
			Module: guest(both, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 256, 64), w.Drop, call(im, 23, 23, 256, 64), w.Wrap)
			}),
			Want: []string{fmt.Sprintf("call %q", later), called, `done 9 ""`},
		},
		Vector{
			Name: "a start function that never ends does not occupy the host", Clauses: "9.4", Compile: true, Want: []string{"*"},
			Module: build(func(b *w.Builder, _ w.Imports) []byte { b.Start(b.Func("", "", 0, w.Forever())); return ok }),
		},
		Vector{
			Name: "an _initialize that never ends does not occupy the host", Clauses: "9.4", Compile: true, Want: []string{"*"},
			Module: with(func(b *w.Builder) { b.Export("_initialize", w.KindFunc, b.Func("", "", 0, w.Forever())) }),
		},
		Vector{
			Name: "what start-up left is there, whenever it ran", Clauses: "2.4 9.4", Module: started,
			Want: []string{`done 2534 ""`},
		},
	)
}

// started is a guest whose start-up grows the memory, writes there, sets a global and
// changes a table, each of which its monroe_run looks at.
func started() []byte {
	b, _ := w.Guest()
	b.Global(0, true)
	b.Table(2, 2)
	typ := b.Type("", "i")
	nine, four := b.Func("", "i", 0, w.I32Const(9)), b.Func("", "i", 0, w.I32Const(4))
	b.Element(0, nine, four)
	b.Export("_initialize", w.KindFunc, b.Func("", "", 0, w.Cat(
		w.I32Const(1), []byte{0x40, 0}, w.Drop, // memory.grow
		w.I32Const(page), w.I32Const(5), []byte{0x3a, 0, 0}, // i32.store8
		w.I32Const(3), []byte{0x24, 0}, // global.set
		w.I32Const(0), w.I32Const(1), []byte{0x25, 0, 0x26, 0}, // table.get, table.set
	)))
	times := func(n int32) []byte { return w.Cat(w.I32Const(n), []byte{0x6c}) }
	return w.Run(
		b,
		[]byte{0x3f, 0}, times(1000), // memory.size
		w.I32Const(page), []byte{0x2d, 0, 0}, times(100), w.Add, // i32.load8_u
		[]byte{0x23, 0}, times(10), w.Add,
		w.I32Const(0), []byte{0x11}, w.U32(typ), []byte{0}, w.Add, // call_indirect
	)
}
