package abi

import "encoding/json"

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
		// Journal is how much of this segment is recorded, and how much may be.
		Journal JournalUse `json:"journal"`
	}
	// JournalUse is what a segment has recorded, of what it may. Past that the host
	// refuses everything but run.continue.
	JournalUse struct {
		Segment    int   `json:"segment"` // 1 for a run that never continued
		Records    int64 `json:"records"`
		Bytes      int64 `json:"bytes"`
		MaxRecords int64 `json:"max_records"`
		MaxBytes   int64 `json:"max_bytes"`
	}
	// ContinueArgs are those of run.continue.
	ContinueArgs struct {
		State json.RawMessage `json:"state"`
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
	// ResolvedResult answers any effect of which a person said what became of it,
	// instead of the result that its operation has.
	ResolvedResult struct {
		Resolved string `json:"resolved"` // happened
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
	// SkillArgs are those of skill.call. Without a Budget it is all that is left of the
	// run's own.
	SkillArgs struct {
		Skill  string          `json:"skill"`
		Input  json.RawMessage `json:"input,omitempty"`
		Budget *MicroUSD       `json:"budget_micro_usd,omitempty"`
	}
	// SkillResult answers skill.call: JSON as the skill wrote it, or a string where it
	// wrote anything else.
	SkillResult struct {
		Result json.RawMessage `json:"result"`
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
