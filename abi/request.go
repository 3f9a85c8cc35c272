package abi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// Op names what a guest asks for. Ops are data: an unknown one is answered with
// UNSUPPORTED and never fails linking (SPEC 3.1).
type Op string

// The ops of version 1 (SPEC 3.4).
const (
	OpDescribe    Op = "host.describe"
	OpProgress    Op = "run.progress"
	OpLog         Op = "log.write"
	OpTimeNow     Op = "time.now"
	OpTimeSleep   Op = "time.sleep"
	OpRandom      Op = "random.bytes"
	OpKVGet       Op = "kv.get"
	OpKVPut       Op = "kv.put"
	OpKVDelete    Op = "kv.delete"
	OpKVList      Op = "kv.list"
	OpToolList    Op = "tool.list"
	OpToolCall    Op = "tool.call"
	OpSend        Op = "send"
	OpHTTPFetch   Op = "http.fetch"
	OpLLMChat     Op = "llm.chat"
	OpSkillCall   Op = "skill.call"
	OpBatch       Op = "batch"
	OpRunContinue Op = "run.continue"
)

// Ops lists every op of version 1. A host may support fewer; host.describe says
// which.
func Ops() []Op {
	return []Op{
		OpDescribe, OpProgress, OpLog, OpTimeNow, OpTimeSleep, OpRandom, OpKVGet, OpKVPut, OpKVDelete,
		OpKVList, OpToolList, OpToolCall, OpSend, OpHTTPFetch, OpLLMChat, OpSkillCall, OpBatch, OpRunContinue,
	}
}

// Request is one host call. Args is canonical JSON, always an object.
type Request struct {
	Op   Op              `json:"op"`
	V    int             `json:"v"`
	Args json.RawMessage `json:"args,omitempty"`
	// MustUnderstand names request fields that the host may not ignore.
	MustUnderstand []string `json:"must_understand,omitempty"`
}

var requestFields = []string{"op", "v", "args", "must_understand"}

// DecodeRequest reads a request strictly (SPEC 3.2). The result shares no memory
// with b. A nil request comes with the denial to answer with.
func DecodeRequest(b []byte) (*Request, *Denial) {
	_, r, d := ReadRequest(b)
	return r, d
}

// ReadRequest is DecodeRequest together with Fingerprint, for whoever needs both.
func ReadRequest(b []byte) (Digest, *Request, *Denial) {
	fp, canon, err := fingerprint(b)
	if len(b) > MaxRequest {
		return fp, nil, Deny(TooLarge, fmt.Sprintf("the request has %d bytes, at most %d are allowed", len(b), MaxRequest), "send less in one call")
	}
	r, d := decodeCanonical(canon, err)
	return fp, r, d
}

func decodeCanonical(canon []byte, err error) (*Request, *Denial) {
	if err != nil {
		return nil, Deny(Invalid, err.Error(), `a request is {"op":"…","v":1,"args":{…}} in UTF-8 JSON with integers only`)
	}
	var fields map[string]json.RawMessage
	if canon[0] != '{' || json.Unmarshal(canon, &fields) != nil {
		return nil, Deny(Invalid, "the request is not a JSON object", `a request is {"op":"…","v":1,"args":{…}}`)
	}
	var r Request
	if err := json.Unmarshal(canon, &r); err != nil {
		return nil, Deny(Invalid, "the request has a field of the wrong type: "+err.Error(), "")
	}
	// encoding/json matches names without regard to case; the wire does not.
	for name := range fields {
		known := slices.Contains(requestFields, name)
		if !known && slices.ContainsFunc(requestFields, func(f string) bool { return bytes.EqualFold([]byte(f), []byte(name)) }) {
			return nil, Deny(Invalid, fmt.Sprintf("the field %q must be lower case", name), "")
		}
		if !known && slices.Contains(r.MustUnderstand, name) {
			return nil, Deny(Unsupported, fmt.Sprintf("this host does not know the field %q", name), "leave it out, or use a newer host")
		}
	}
	for _, name := range r.MustUnderstand {
		if _, present := fields[name]; !present {
			return nil, Deny(Invalid, fmt.Sprintf("must_understand names %q, which is absent", name), "")
		}
	}
	if r.Op == "" || len(r.Op) > MaxName {
		return nil, Deny(Invalid, fmt.Sprintf("op has %d bytes, 1 to %d are allowed", len(r.Op), MaxName), "")
	}
	if r.V < 1 {
		return nil, Deny(Invalid, "v, the version of the op, is at least 1", `add "v":1`)
	}
	if len(r.Args) == 0 {
		r.Args = json.RawMessage("{}")
	}
	if r.Args[0] != '{' {
		return nil, Deny(Invalid, "args is not an object", "")
	}
	return &r, nil
}
