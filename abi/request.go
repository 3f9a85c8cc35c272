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
	if len(b) > MaxRequest {
		return nil, Deny(TooLarge, fmt.Sprintf("the request has %d bytes, at most %d are allowed", len(b), MaxRequest), "send less in one call")
	}
	canon, err := Canonical(b)
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

// DecodeArgs reads the arguments of an op or operation strictly into v, a pointer
// to a struct: an unknown, repeated or differently cased field is an error, as it
// would otherwise be ignored silently.
func DecodeArgs(args json.RawMessage, v any) *Denial {
	canon, err := Canonical(args)
	if err != nil {
		return Deny(Invalid, "args: "+err.Error(), "")
	}
	d := json.NewDecoder(bytes.NewReader(canon))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return Deny(Invalid, "args: "+err.Error(), "compare the arguments with tool.list or the ABI specification")
	}
	// Round trip: a field that matched only without regard to case comes back
	// under another name.
	var have, back map[string]json.RawMessage
	again, err := json.Marshal(v)
	if err != nil || json.Unmarshal(canon, &have) != nil || json.Unmarshal(again, &back) != nil {
		return nil
	}
	for name := range have {
		for known := range back {
			if name != known && bytes.EqualFold([]byte(name), []byte(known)) {
				return Deny(Invalid, fmt.Sprintf("args: the field %q must be spelled %q", name, known), "")
			}
		}
	}
	return nil
}

// Arguments and results of the ops that are not operations of a connector.
type (
	// DescribeResult answers host.describe.
	DescribeResult struct {
		ABI       int    `json:"abi"`
		Ops       []Op   `json:"ops"`
		Workspace string `json:"workspace"`
		Run       string `json:"run"`
		Owner     string `json:"owner"` // the address that the workspace's owner reads, or empty
		Limits    Limits `json:"limits"`
		// Grants are the manifest's operations that are in force for this run.
		Grants []OperationUse `json:"grants"`
	}

	// ProgressArgs are those of run.progress.
	ProgressArgs struct {
		Text    string `json:"text"`
		Percent int    `json:"percent,omitempty"` // 0 to 100
	}
	// LogArgs are those of log.write.
	LogArgs struct {
		Level string `json:"level"` // debug, info, warn or error
		Text  string `json:"text"`
	}
	// TimeResult answers time.now.
	TimeResult struct {
		UnixMS int64 `json:"unix_ms"`
	}
	// SleepArgs are those of time.sleep.
	SleepArgs struct {
		MS int64 `json:"ms"`
	}
	// RandomArgs are those of random.bytes; N is 1 to 1024.
	RandomArgs struct {
		N int `json:"n"`
	}
	// RandomResult answers random.bytes.
	RandomResult struct {
		Base64 []byte `json:"base64"`
	}
	// KVArgs are those of the kv ops.
	KVArgs struct {
		Key    string          `json:"key,omitempty"`
		Prefix string          `json:"prefix,omitempty"`
		Value  json.RawMessage `json:"value,omitempty"`
	}
	// KVResult answers the kv ops.
	KVResult struct {
		Found bool            `json:"found,omitempty"`
		Value json.RawMessage `json:"value,omitempty"`
		Keys  []string        `json:"keys,omitempty"`
	}
	// ToolListResult answers tool.list.
	ToolListResult struct {
		Tools []Tool `json:"tools"`
	}
	// Tool is a granted operation in the form that a model is offered.
	Tool struct {
		Operation   string          `json:"operation"`
		Description string          `json:"description"`
		Effect      Effect          `json:"effect"`
		Scopes      []Pattern       `json:"scopes"`
		Parameters  json.RawMessage `json:"parameters"` // JSON Schema
	}
	// CallArgs are those of tool.call and send.
	CallArgs struct {
		Operation string          `json:"operation"`
		Args      json.RawMessage `json:"args,omitempty"`
	}
	// BatchArgs are those of batch: at most 64 requests, none of them a batch.
	BatchArgs struct {
		Requests []Request `json:"requests"`
	}
	// BatchResult holds one reply for each request, in order.
	BatchResult struct {
		Replies []Reply `json:"replies"`
	}
)
