package conformance

import (
	"encoding/binary"
	"fmt"

	"github.com/getmonroe/monroe/abi"
	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// three is a guest that makes three calls, the second of which it builds from the
// answer to the first, parks the third reply and writes all that it learned and a
// reading of the clock.
func three() []byte {
	b, im := w.Guest()
	clock := b.Import(wasi, "clock_time_get", "iIi", "i")
	b.Data(0, []byte(ask))
	b.Data(64, []byte(`{"op":"kv.get","v":1,"args":{"key":"_"}}`))
	b.Export("monroe_run", w.KindFunc, b.Func("", "i", 1,
		call(im, 0, 23, 256, 64), w.Wrap, w.LocalSet(0), write(im, 1, 256, 14), w.Drop,
		// the digit of the answer becomes the key
		w.I32Const(64+36), w.I32Const(256+11), []byte{0x2d, 0, 0, 0x3a, 0, 0},
		call(im, 64, 40, 256, 64), w.Drop, write(im, 1, 256, 14), w.Drop,
		call(im, 0, 23, 0, 0), w.Drop, read(im, 2, 256, 14), w.Drop, write(im, 1, 256, 14), w.Drop,
		w.I32Const(0), w.I64Const(0), w.I32Const(512), w.Call(clock), w.Drop, write(im, 1, 512, 8), w.Drop,
		ok))
	return b.Bytes()
}

const secondCall = `call "{\"op\":\"kv.get\",\"v\":1,\"args\":{\"key\":\"1\"}}"`

// counted answers the n-th call of a run, of which some were recorded, with n, at n
// times 18 µs.
func counted(before int) func(int, []byte) Answer {
	return func(n int, _ []byte) Answer {
		return Answer{fmt.Sprintf(`{"ok":{"n":%d}}`, n+before), int64(n+before) * 18_000}
	}
}

func recorded(n int) []Past {
	requests := []string{ask, `{"op":"kv.get","v":1,"args":{"key":"1"}}`, ask}
	var past []Past
	for i := range n {
		a := counted(0)(i+1, nil)
		past = append(past, Past{Fingerprint: abi.Fingerprint([]byte(requests[i])).String(), Reply: []byte(a.Reply), AtNS: a.AtNS})
	}
	return past
}

func replayVectors() []Vector {
	denial := `{"error":{"code":"BUDGET","reason":"the cap is used up","effect":"none"}}`
	v := []Vector{
		{
			Name: "replay: another request than the recorded one", Clauses: "6.3", Module: three,
			Past: []Past{{Fingerprint: abi.Fingerprint([]byte(`{"op":"random.bytes","v":1,"args":{"n":8}}`)).String(), Reply: []byte(`{"ok":{}}`)}},
			Want: []string{"fault DIVERGED"},
		},
		{
			Name: "replay: a divergence at the last recorded call", Clauses: "6.3",
			Module: three, Past: append(recorded(1), recorded(1)...), Want: []string{"fault DIVERGED"},
		},
		{
			Name: "replay: the order of keys does not matter", Clauses: "6.2 6.3",
			Module: guest(`{"v": 1, "op":"time.now"}`, func(im w.Imports) []byte { return w.Cat(call(im, 0, 25, 64, 64), w.Wrap) }),
			Past:   recorded(1), Want: []string{`done 14 ""`},
		},
		{
			Name: "replay: what is no JSON is known by its bytes", Clauses: "6.2",
			Module: guest(`{"v": 1, "op":"time.no"`, func(im w.Imports) []byte { return w.Cat(call(im, 0, 23, 64, 64), w.Wrap) }),
			Past:   []Past{{Fingerprint: abi.Fingerprint([]byte(`{"v": 1, "op":"time.no"`)).String(), Reply: []byte(`{"error":{}}`)}}, Want: []string{`done 12 ""`},
		},
		{
			Name: "replay: a denial is given again", Clauses: "5.3 6.1",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 64, 256), w.Wrap, w.LocalSet(0), write(im, 1, 64, int32(len(denial))), w.Drop, ok)
			}),
			Past: []Past{{Fingerprint: recorded(1)[0].Fingerprint, Reply: []byte(denial)}},
			Want: []string{fmt.Sprintf("done 0 %q", denial)},
		},
		{
			Name: "replay: recorded calls count", Clauses: "6.1 7.2", Limits: abi.Limits{Calls: 2}, Module: three, Past: recorded(1), Answer: counted(1),
			Want: []string{secondCall, "fault LIMIT"},
		},
		{
			Name: "replay: more is recorded than the guest asks for", Clauses: "6.3 6.4",
			Module: one(func(im w.Imports) []byte { return call(im, 0, 23, 64, 64) }), Past: recorded(2), Want: []string{"fault DIVERGED"},
		},
	}
	learned := append([]byte(`{"ok":{"n":1}}{"ok":{"n":2}}{"ok":{"n":3}}`), binary.LittleEndian.AppendUint64(nil, 55_000)...)
	all := []string{called, secondCall, called, fmt.Sprintf("done 0 %q", learned)}
	for n := range 4 {
		v = append(v, Vector{
			Name: fmt.Sprintf("replay: cut after %d calls", n), Clauses: "6.1 6.4 6.5 5.3 2.9", Module: three,
			Past: recorded(n), Answer: counted(n), Want: all[n:],
		})
	}
	return v
}

// requests are well-formed ones, one for each op.
var requests = map[abi.Op]string{
	abi.OpDescribe: `{}`, abi.OpProgress: `{"text":"half","percent":50}`, abi.OpLog: `{"level":"info","text":"hello"}`,
	abi.OpTimeNow: `{}`, abi.OpTimeSleep: `{"ms":1000}`, abi.OpRandom: `{"n":16}`,
	abi.OpKVGet: `{"key":"a"}`, abi.OpKVPut: `{"key":"a","value":{"b":[1,null,true]}}`, abi.OpKVDelete: `{"key":"a"}`, abi.OpKVList: `{"prefix":"a"}`,
	abi.OpToolList: `{}`, abi.OpToolCall: `{"operation":"files.read","args":{"path":"a"}}`,
	abi.OpSend:      `{"operation":"mail.send","args":{"to":["ann@example.com"],"subject":"hello","text":"hi"}}`,
	abi.OpHTTPFetch: `{"url":"https://example.com/","method":"HEAD"}`,
	abi.OpLLMChat:   `{"model":"","messages":[{"role":"user","content":"hello"}],"max_output_tokens":100}`,
	abi.OpSkillCall: `{"skill":"digest","input":{}}`, abi.OpBatch: `{"requests":[{"op":"time.now","v":1},{"op":"kv.get","v":1,"args":{"key":"a"}}]}`,
	abi.OpRunContinue: `{"state":{"page":2}}`,
}

var opClauses = map[abi.Op]string{
	abi.OpDescribe: "3.5", abi.OpProgress: "3.6", abi.OpLog: "3.6", abi.OpTimeNow: "3.7", abi.OpTimeSleep: "3.7", abi.OpRandom: "3.7",
	abi.OpKVGet: "3.8", abi.OpKVPut: "3.8", abi.OpKVDelete: "3.8", abi.OpKVList: "3.8", abi.OpToolList: "3.9", abi.OpToolCall: "3.9",
	abi.OpSend: "3.9", abi.OpHTTPFetch: "3.9", abi.OpLLMChat: "3.10", abi.OpBatch: "3.11", abi.OpSkillCall: "3.12", abi.OpRunContinue: "3.12",
}

// exchange is a guest that makes one request and writes the answer as its result.
func exchange(request string, answer int) func() []byte {
	return guest(request, func(im w.Imports) []byte {
		return w.Cat(call(im, 0, int32(len(request)), 32768, 32768), w.Wrap, w.LocalSet(0), write(im, 1, 32768, int32(answer)), w.Drop, ok)
	})
}

// messageVectors carry every op to the host and every code back, unchanged.
func messageVectors() (v []Vector) {
	for _, op := range append(abi.Ops(), "weather.predict") {
		request := fmt.Sprintf(`{"op":%q,"v":1,"args":%s}`, op, requests[op])
		clauses := "3.1 3.4 " + opClauses[op]
		if op == "weather.predict" { // no version of this SPEC has it
			request = `{"op":"weather.predict","v":9,"args":{}}`
		}
		v = append(v,
			Vector{
				Name: fmt.Sprintf("%s reaches whoever answers, as it is", op), Clauses: clauses, Module: exchange(request, 9),
				Want: []string{fmt.Sprintf("call %q", request), "done 0 " + okay},
			},
			Vector{
				Name: fmt.Sprintf("%s is a well-formed request", op), Clauses: clauses + " 6.2", Request: []byte(request),
				Want: []string{"read " + abi.Fingerprint([]byte(request)).String()},
			})
	}
	for _, code := range append(abi.Codes(), "A_LATER_ONE") {
		for _, effect := range []abi.Outcome{abi.OutcomeNone, abi.OutcomeSent, abi.OutcomeMay} {
			if (code == abi.OutcomeUnknown) != (effect == abi.OutcomeMay) && effect != abi.OutcomeNone {
				continue
			}
			reply := fmt.Sprintf(`{"error":{"code":%q,"reason":"no","effect":%q,"later":1}}`, code, effect)
			v = append(v, Vector{
				Name: fmt.Sprintf("%s with the effect %s is a result", code, effect), Clauses: "1.2 2.12 5.1 5.2",
				Module: exchange(ask, len(reply)), Answer: always(reply),
				Want: []string{called, fmt.Sprintf("done 0 %q", reply)},
			})
		}
	}
	return v
}
