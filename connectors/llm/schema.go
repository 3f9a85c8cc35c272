package llm

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/abi"
)

// Limits of one call, beside those of abi.
const (
	MaxMessages = 1000
	MaxTools    = 128
	minOutput   = 16 // tokens; some providers refuse a lower limit
)

// ChatArgs are the arguments of llm.chat. The schema is closed: whatever else a
// provider understands (routing, plugins, web search, sampling, several choices)
// is refused with INVALID.
type ChatArgs struct {
	Model    string    `json:"model"`
	Messages []Message `json:"messages"`
	Tools    []Tool    `json:"tools,omitempty"`
	// ToolChoice is auto (also when empty), none, required or the name of a tool.
	ToolChoice string `json:"tool_choice,omitempty"`
	// MaxOutputTokens is lowered to the operator's limit; 0 means that limit.
	MaxOutputTokens int64 `json:"max_output_tokens,omitempty"`
}

// Message is one message of a conversation.
type Message struct {
	Role       string     `json:"role"` // system, user, assistant or tool
	Content    string     `json:"content,omitempty"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`   // of an assistant
	ToolCallID string     `json:"tool_call_id,omitempty"` // of a tool: what it answers
	Name       string     `json:"name,omitempty"`         // of a tool, for the reader; not sent
}

// ToolCall is a model's wish to call a tool. Arguments is JSON text as the model
// wrote it, so it may be malformed.
type ToolCall struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// Tool is a function that the model may ask for, named like an operation.
type Tool struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"` // JSON Schema, an object
}

// ChatReply answers llm.chat.
type ChatReply struct {
	Message      Message `json:"message"`
	FinishReason string  `json:"finish_reason"` // stop, length, tool_calls or content_filter
	Usage        *Usage  `json:"usage,omitempty"`
	// CostMicroUSD is absent when the provider did not say what it used.
	CostMicroUSD *abi.MicroUSD `json:"cost_micro_usd,omitempty"`
}

// Usage counts tokens.
type Usage struct {
	InputTokens  int64 `json:"input_tokens"`
	OutputTokens int64 `json:"output_tokens"`
}

var (
	toolName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)
	toolCallID = regexp.MustCompile(`^[A-Za-z0-9_.:|-]{1,128}$`)
)

// check refuses what the schema alone does not show.
func (a *ChatArgs) check() *abi.Denial {
	bad := func(format string, args ...any) *abi.Denial {
		return abi.Deny(abi.Invalid, fmt.Sprintf(format, args...), "compare the call with the schema of llm.chat")
	}
	switch {
	case len(a.Messages) == 0 || len(a.Messages) > MaxMessages:
		return bad("messages: 1 to %d", MaxMessages)
	case len(a.Tools) > MaxTools:
		return bad("tools: at most %d", MaxTools)
	case a.MaxOutputTokens < 0:
		return bad("max_output_tokens is not negative")
	}
	for i, m := range a.Messages {
		switch m.Role {
		case "system", "user":
			if m.Content == "" || m.ToolCalls != nil || m.ToolCallID != "" || m.Name != "" {
				return bad("messages[%d]: %s has content and nothing else", i, m.Role)
			}
		case "assistant":
			if m.ToolCallID != "" || m.Name != "" || m.Content == "" && len(m.ToolCalls) == 0 {
				return bad("messages[%d]: assistant has content, tool_calls or both", i)
			}
			for _, c := range m.ToolCalls {
				if !toolCallID.MatchString(c.ID) || !toolName.MatchString(c.Name) {
					return bad("messages[%d]: a tool call needs an id and the name of a tool", i)
				}
			}
		case "tool":
			if m.ToolCalls != nil || !toolCallID.MatchString(m.ToolCallID) {
				return bad("messages[%d]: tool has content and the tool_call_id that it answers", i)
			}
		default:
			return bad("messages[%d]: role is system, user, assistant or tool", i)
		}
	}
	seen := map[string]string{}
	for i, t := range a.Tools {
		if !toolName.MatchString(t.Name) {
			return bad("tools[%d]: a name is a letter, then up to 63 letters, digits, dots, - or _", i)
		}
		if other, ok := seen[wireName(t.Name)]; ok {
			return bad("tools[%d]: the provider cannot tell %q from %q", i, t.Name, other)
		}
		seen[wireName(t.Name)] = t.Name
		if len(t.Parameters) > 0 && t.Parameters[0] != '{' {
			return bad("tools[%d]: parameters is a JSON Schema, so an object", i)
		}
	}
	switch a.ToolChoice {
	case "", "auto", "none":
	case "required":
		if len(a.Tools) == 0 {
			return bad("tool_choice is required but there are no tools")
		}
	default:
		if !slices.ContainsFunc(a.Tools, func(t Tool) bool { return t.Name == a.ToolChoice }) {
			return bad("tool_choice is auto, none, required or the name of one of the tools")
		}
	}
	return nil
}

// wireName is the form of a tool's name that providers take: they know no dots.
func wireName(name string) string { return strings.ReplaceAll(name, ".", "-") }

// guestName is the tool of the call that the wire name stands for. A name that the
// model made up comes back as it is.
func (a *ChatArgs) guestName(wire string) string {
	for _, t := range a.Tools {
		if wireName(t.Name) == wire {
			return t.Name
		}
	}
	return wire
}

// argsSchema is the closed JSON Schema of ChatArgs.
const argsSchema = `{"type":"object","properties":{` +
	`"model":{"type":"string","description":"exact id of an allowed model"},` +
	`"messages":{"type":"array","minItems":1,"maxItems":1000,"items":{"type":"object","properties":{` +
	`"role":{"type":"string","enum":["system","user","assistant","tool"]},"content":{"type":"string"},` +
	`"tool_calls":{"type":"array","items":{"type":"object","properties":{"id":{"type":"string"},"name":{"type":"string"},"arguments":{"type":"string"}},` +
	`"required":["id","name","arguments"],"additionalProperties":false}},` +
	`"tool_call_id":{"type":"string"},"name":{"type":"string"}},"required":["role"],"additionalProperties":false}},` +
	`"tools":{"type":"array","maxItems":128,"items":{"type":"object","properties":{"name":{"type":"string"},"description":{"type":"string"},` +
	`"parameters":{"type":"object"}},"required":["name"],"additionalProperties":false}},` +
	`"tool_choice":{"type":"string","description":"auto, none, required or the name of a tool"},` +
	`"max_output_tokens":{"type":"integer","minimum":0}},` +
	`"required":["model","messages"],"additionalProperties":false}`
