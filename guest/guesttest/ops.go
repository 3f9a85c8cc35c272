package guesttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// do answers one well-formed request.
func (h *Host) do(req *abi.Request, c *Call) abi.Reply {
	if !slices.Contains(abi.Ops(), req.Op) || req.V != 1 {
		return abi.Refuse(abi.Deny(abi.Unsupported, fmt.Sprintf("%s version %d is not known", req.Op, req.V), "ask host.describe"))
	}
	if !h.manifest.HasOp(req.Op) {
		return abi.Refuse(abi.Deny(abi.Scope, fmt.Sprintf("the manifest does not list the op %s", req.Op), "add it to ops"))
	}
	switch req.Op {
	case abi.OpToolCall, abi.OpSend:
		var a abi.CallArgs
		if d := abi.DecodeArgs(req.Args, &a); d != nil {
			return abi.Refuse(d)
		}
		c.Operation, c.Args = a.Operation, a.Args
		return h.operation(req.Op, a.Operation, a.Args)
	case abi.OpHTTPFetch, abi.OpLLMChat:
		return h.operation(req.Op, string(req.Op), req.Args)
	case abi.OpBatch:
		return h.batch(req.Args)
	}
	if r, ok := h.override(string(req.Op), req.Args); ok {
		return r
	}
	switch req.Op {
	case abi.OpKVGet, abi.OpKVPut, abi.OpKVDelete, abi.OpKVList:
		return h.kv(req.Op, req.Args)
	}
	return h.plain(req.Op, req.Args)
}

// override applies Deny and Answer.
func (h *Host) override(name string, args json.RawMessage) (abi.Reply, bool) {
	if d := h.denials[name]; d != nil {
		return abi.Refuse(d), true
	}
	if f := h.answers[name]; f != nil {
		return f(args), true
	}
	return abi.Reply{}, false
}

func (h *Host) plain(op abi.Op, args json.RawMessage) abi.Reply {
	switch op {
	case abi.OpDescribe:
		return with(args, func(*struct{}) abi.Reply {
			return abi.OK(abi.DescribeResult{
				ABI: abi.Version, Ops: abi.Ops(), Workspace: "test", Run: "run_00000000000000000000000000",
				Owner: h.Owner, Limits: abi.DefaultLimits(), Grants: h.manifest.Operations, Journal: abi.JournalUse{Segment: max(h.segments, 1)},
			})
		})
	case abi.OpProgress:
		return with(args, func(a *abi.ProgressArgs) abi.Reply {
			h.progress = append(h.progress, a.Text)
			return abi.OK(struct{}{})
		})
	case abi.OpLog:
		return with(args, func(a *abi.LogArgs) abi.Reply {
			h.t.Logf("guest %s: %s", a.Level, a.Text)
			return abi.OK(struct{}{})
		})
	case abi.OpTimeNow:
		return abi.OK(abi.TimeResult{UnixMS: h.Clock.UnixMilli()})
	case abi.OpTimeSleep:
		return with(args, func(a *abi.SleepArgs) abi.Reply {
			h.Clock = h.Clock.Add(time.Duration(a.MS) * time.Millisecond)
			return abi.OK(struct{}{})
		})
	case abi.OpRandom:
		return with(args, func(a *abi.RandomArgs) abi.Reply {
			if a.N < 1 || a.N > 1024 {
				return abi.Refuse(abi.Deny(abi.Invalid, "n is 1 to 1024", ""))
			}
			b := make([]byte, a.N) // a counter: a test needs no surprise
			for i := range b {
				h.random++
				b[i] = h.random
			}
			return abi.OK(abi.RandomResult{Base64: b})
		})
	case abi.OpRunContinue:
		return with(args, func(a *abi.ContinueArgs) abi.Reply {
			if !h.native {
				return abi.Refuse(abi.Deny(abi.Unsupported, "run.continue needs Run, which can begin the guest anew", ""))
			}
			if len(a.State) == 0 {
				return abi.Refuse(abi.Deny(abi.Invalid, "a state is needed", ""))
			}
			h.input = a.State
			panic(continued{}) // nothing of the guest goes on; Run begins it anew
		})
	case abi.OpToolList:
		return abi.OK(abi.ToolListResult{Tools: h.tools()})
	}
	return abi.Refuse(abi.Deny(abi.Unsupported, fmt.Sprintf("%s is not supported here", op), ""))
}

// with decodes args exactly and goes on.
func with[A any](args json.RawMessage, f func(*A) abi.Reply) abi.Reply {
	var a A
	if d := abi.DecodeArgs(args, &a); d != nil {
		return abi.Refuse(d)
	}
	return f(&a)
}

func (h *Host) kv(op abi.Op, args json.RawMessage) abi.Reply {
	return with(args, func(a *abi.KVArgs) abi.Reply {
		if op != abi.OpKVList && (a.Key == "" || len(a.Key) > abi.MaxKVKey) {
			return abi.Refuse(abi.Deny(abi.Invalid, fmt.Sprintf("key has %d bytes, 1 to %d are allowed", len(a.Key), abi.MaxKVKey), ""))
		}
		switch op {
		case abi.OpKVPut:
			if a.Value == nil {
				return abi.Refuse(abi.Deny(abi.Invalid, "value is missing", "use kv.delete to remove a key"))
			}
			if len(a.Value) > abi.MaxKVValue {
				return abi.Refuse(abi.Deny(abi.TooLarge, fmt.Sprintf("the value has %d bytes, at most %d are allowed", len(a.Value), abi.MaxKVValue), "keep less"))
			}
			h.KV[a.Key] = slices.Clone(a.Value)
			return abi.OK(abi.KVResult{})
		case abi.OpKVDelete:
			_, found := h.KV[a.Key]
			delete(h.KV, a.Key)
			return abi.OK(abi.KVResult{Found: found})
		case abi.OpKVList:
			keys := slices.Sorted(maps.Keys(h.KV))
			return abi.OK(abi.KVResult{Keys: slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, a.Prefix) })})
		}
		v, found := h.KV[a.Key]
		return abi.OK(abi.KVResult{Found: found, Value: v})
	})
}

func (h *Host) batch(args json.RawMessage) abi.Reply {
	return with(args, func(a *abi.BatchArgs) abi.Reply {
		if len(a.Requests) == 0 || len(a.Requests) > abi.MaxBatch {
			return abi.Refuse(abi.Deny(abi.Invalid, fmt.Sprintf("a batch has 1 to %d requests", abi.MaxBatch), ""))
		}
		var out abi.BatchResult
		for _, r := range a.Requests {
			if r.Op == abi.OpBatch || r.Op == abi.OpRunContinue {
				return abi.Refuse(abi.Deny(abi.Invalid, "a batch holds no batch and no run.continue", ""))
			}
		}
		for _, r := range a.Requests {
			b, err := json.Marshal(r)
			req, d := abi.DecodeRequest(b)
			if err != nil || d != nil {
				out.Replies = append(out.Replies, abi.Refuse(abi.Deny(abi.Invalid, "a request of the batch is malformed", "")))
				continue
			}
			c := Call{Op: req.Op, Args: req.Args}
			c.Reply = h.do(req, &c)
			h.calls = append(h.calls, c)
			out.Replies = append(out.Replies, c.Reply)
		}
		return abi.OK(out)
	})
}

// tools are the manifest's operations as a model is offered them.
func (h *Host) tools() []abi.Tool {
	var tools []abi.Tool
	for _, u := range h.manifest.Operations {
		i := slices.IndexFunc(tools, func(t abi.Tool) bool { return t.Operation == u.Operation })
		if i < 0 {
			if u.Operation == guest.LLMChat {
				continue // a model is not offered itself
			}
			i = len(tools)
			schema := builtinSchemas()[u.Operation]
			if schema == "" {
				schema = `{"type":"object"}`
			}
			tools = append(tools, abi.Tool{
				Operation: u.Operation, Description: "The operation " + u.Operation + ".", Effect: u.Effect,
				Parameters: json.RawMessage(schema),
			})
		}
		tools[i].Scopes = append(tools[i].Scopes, u.Resource)
	}
	return tools
}
