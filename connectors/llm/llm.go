// Package llm asks a language model, through any endpoint that speaks the OpenAI
// chat completions protocol.
//
// Laws, each with a test of the same name:
//
//  1. The schema is closed (law 14): what is not in ChatArgs cannot get into the
//     frozen body, which is checked key by key after the SDK wrote it.
//  2. The host alone sets routing, streaming and the output limit, and always sends
//     all three.
//  3. A model without a price is refused: what cannot be capped is not called.
//  4. The ceiling is never below the cost: every token is at least one byte of the
//     body, and the output is limited.
//  5. A cost that the provider did not state is unknown, never zero.
//
// It knows the protocol, prices and models. It must not know credentials, grants,
// labels or budgets. The reply is labelled as outside words that everyone may read:
// the broker joins that with the label of the run, which holds the prompt's.
package llm

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/shared"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
	"github.com/getmonroe/monroe/connectors/capture"
)

// OpChat is the operation, reached by the op of the same name.
const OpChat = "llm.chat"

// OpenRouter is the base URL that is used when the operator names none.
const OpenRouter = "https://openrouter.ai/api/v1"

// Defaults of a Config.
const (
	DefaultMaxOutput = 4096 // tokens
	DefaultTimeout   = 5 * time.Minute
	maxStream        = 16 << 20 // bytes of an answer
)

// Price is what a model costs, in PicoUSD (10^-12 dollars). A price of zero counts
// as unknown unless Free is set.
type Price struct {
	Input   abi.PicoUSD // per input token
	Output  abi.PicoUSD // per output token
	Request abi.PicoUSD // per request
	// Free says that the model costs nothing, such as one on the operator's own
	// machine. The prices must be zero then.
	Free bool
}

// Config is the operator's.
type Config struct {
	// BaseURL is the endpoint, such as http://127.0.0.1:11434/v1; empty means
	// OpenRouter.
	BaseURL string
	// Connection is the id of the credential; empty if the endpoint needs none.
	Connection string
	// Models are the only ones that may be called, by their exact ids. Without any,
	// every call is refused.
	Models map[string]Price
	// Default is the model that a call without one gets; empty means that a call has
	// to name one. It must be one of Models.
	Default string
	// MaxOutput limits the output tokens of a call; 0 means DefaultMaxOutput.
	MaxOutput int64
	// Routed says that the endpoint is OpenRouter's or speaks its routing fields.
	// It is implied by an empty BaseURL.
	Routed bool
	// OldLimit sends the output limit as max_tokens, for endpoints that do not know
	// max_completion_tokens.
	OldLimit bool
	// Timeout bounds a call; 0 means DefaultTimeout.
	Timeout time.Duration
}

// LLM is the connector. It is safe for concurrent use.
type LLM struct {
	c   Config
	url string // of the one request
}

// New returns the connector. It fails for a model without a usable price.
func New(c Config) (*LLM, error) {
	if c.BaseURL == "" {
		c.BaseURL, c.Routed = OpenRouter, true
	}
	t, err := canon.URL(strings.TrimRight(c.BaseURL, "/") + "/chat/completions")
	if err != nil || t.URL != t.Resource {
		return nil, fmt.Errorf("llm: BaseURL %q: it is an http or https URL without a query", c.BaseURL)
	}
	c.BaseURL = strings.TrimSuffix(t.URL, "chat/completions")
	c.Models = maps.Clone(c.Models)
	for _, id := range slices.Sorted(maps.Keys(c.Models)) {
		p := c.Models[id]
		if err := abi.CheckResource("model:" + id); err != nil || id == "" {
			return nil, fmt.Errorf("llm: model %q is not a usable id", id)
		}
		zero := p.Input == 0 && p.Output == 0 && p.Request == 0
		if p.Input < 0 || p.Output < 0 || p.Request < 0 || p.Free != zero {
			return nil, fmt.Errorf("llm: model %q: give its prices, or say that it is free", id)
		}
	}
	if _, ok := c.Models[c.Default]; !ok && c.Default != "" {
		return nil, fmt.Errorf("llm: the default model %q is not one of Models", c.Default)
	}
	if c.MaxOutput == 0 {
		c.MaxOutput = DefaultMaxOutput
	}
	if c.MaxOutput < minOutput {
		return nil, fmt.Errorf("llm: MaxOutput is at least %d", minOutput)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	return &LLM{c: c, url: t.URL}, nil
}

// Operations are the descriptors. A lost answer may be asked for again: that hands
// nothing to anybody new, and the ceiling of the lost attempt stays spent.
func (l *LLM) Operations() []connectors.Operation {
	return []connectors.Operation{{
		Name: OpChat, Version: 1, Effect: abi.EffectMetered, Replay: abi.ReplayPure, Op: abi.OpLLMChat,
		Renderer: connectors.RenderHTTP,
		Summary:  "Ask a language model to continue a conversation, possibly by calling tools.",
		Args:     json.RawMessage(argsSchema),
		Allow:    []connectors.Request{{Method: http.MethodPost, URL: abi.Pattern(l.url)}},
	}}
}

// Plan lets the SDK write the request, against the capturing transport.
func (l *LLM) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	a, price, d := l.read(c)
	if d != nil {
		return connectors.Plan{}, d
	}
	f, err := capture.Record(l.options(), func(client *http.Client, key string) error {
		service, params := l.sdk(a, client, key)
		stream := service.NewStreaming(ctx(), params)
		defer func() { _ = stream.Close() }()
		return stream.Err()
	})
	if err != nil {
		return connectors.Plan{}, abi.Deny(abi.Internal, "the request to the model could not be written", "")
	}
	if err := checkBody(f.Body); err != nil || f.URL != l.url {
		return connectors.Plan{}, abi.Deny(abi.Internal, "the request to the model holds what it must not", "")
	}
	ceiling := price.of(int64(len(f.Body)), a.MaxOutputTokens)
	return connectors.Plan{
		Resources: []string{"model:" + a.Model}, Destination: l.url, Account: l.c.Connection,
		Audience: []string{"model"}, Frozen: connectors.Frozen{HTTP: f}, Ceiling: ceiling,
		Timeout: l.c.Timeout, MaxAnswer: maxStream,
	}, nil
}

// of is the price of a call. Each part is rounded up, so a ceiling made of larger
// counts is never below a cost made of smaller ones.
func (p Price) of(input, output int64) abi.MicroUSD {
	in, out, fee := p.Input.Times(input), p.Output.Times(output), p.Request.Times(1)
	const most = abi.MicroUSD(1 << 61)
	return min(in, most) + min(out, most) + min(fee, most)
}

// read decodes the arguments and applies the operator's limits.
func (l *LLM) read(c connectors.Call) (*ChatArgs, Price, *abi.Denial) {
	if c.Operation != OpChat {
		return nil, Price{}, abi.Deny(abi.Unsupported, fmt.Sprintf("there is no operation %q", c.Operation), "use llm.chat")
	}
	var a ChatArgs
	if d := abi.DecodeArgs(c.Args, &a); d != nil {
		return nil, Price{}, d
	}
	if a.Model == "" {
		a.Model = l.c.Default
	}
	if d := a.check(); d != nil {
		return nil, Price{}, d
	}
	if len(l.c.Models) == 0 {
		return nil, Price{}, abi.Deny(abi.Denied, "no model is set up on this host", "the operator names an endpoint and its models in operator.yaml")
	}
	price, ok := l.c.Models[a.Model]
	if !ok {
		return nil, Price{}, abi.Deny(abi.Denied, fmt.Sprintf("the model %.80q is not allowed here, or its price is not known", a.Model),
			"use one of: "+strings.Join(slices.Sorted(maps.Keys(l.c.Models)), ", "))
	}
	if a.MaxOutputTokens == 0 || a.MaxOutputTokens > l.c.MaxOutput {
		a.MaxOutputTokens = l.c.MaxOutput
	}
	a.MaxOutputTokens = max(a.MaxOutputTokens, minOutput)
	return &a, price, nil
}

func (l *LLM) options() capture.Options {
	o := capture.Options{Headers: []string{"Accept", "Content-Type"}}
	if l.c.Connection != "" {
		o.Slot = &connectors.Slot{Connection: l.c.Connection, Header: "Authorization", Prefix: "Bearer "}
	}
	return o
}

// sdk configures the SDK for one call. Its services, unlike its client, read no
// environment.
func (l *LLM) sdk(a *ChatArgs, client *http.Client, key string) (openai.ChatCompletionService, openai.ChatCompletionNewParams) {
	opts := []option.RequestOption{
		option.WithBaseURL(l.c.BaseURL), option.WithHTTPClient(client), option.WithMaxRetries(0),
	}
	if l.c.Connection != "" {
		opts = append(opts, option.WithAPIKey(key))
	}
	if l.c.Routed {
		opts = append(opts,
			option.WithJSONSet("provider", map[string]any{"data_collection": "deny", "require_parameters": true}),
			option.WithJSONSet("usage", map[string]any{"include": true}))
	}
	p := openai.ChatCompletionNewParams{
		Model: a.Model, Messages: messages(a),
		StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	}
	if l.c.OldLimit {
		p.MaxTokens = openai.Int(a.MaxOutputTokens)
	} else {
		p.MaxCompletionTokens = openai.Int(a.MaxOutputTokens)
	}
	for _, t := range a.Tools {
		f := shared.FunctionDefinitionParam{Name: wireName(t.Name)}
		if t.Description != "" {
			f.Description = openai.String(t.Description)
		}
		if len(t.Parameters) > 0 {
			// It is canonical JSON, an object, so it decodes.
			_ = json.Unmarshal(t.Parameters, &f.Parameters)
		}
		p.Tools = append(p.Tools, openai.ChatCompletionFunctionTool(f))
	}
	switch a.ToolChoice {
	case "":
	case "auto", "none", "required":
		p.ToolChoice.OfAuto = openai.String(a.ToolChoice)
	default:
		p.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: wireName(a.ToolChoice)})
	}
	return openai.NewChatCompletionService(opts...), p
}

func messages(a *ChatArgs) []openai.ChatCompletionMessageParamUnion {
	var out []openai.ChatCompletionMessageParamUnion
	for _, m := range a.Messages {
		switch m.Role {
		case "system":
			out = append(out, openai.SystemMessage(m.Content))
		case "user":
			out = append(out, openai.UserMessage(m.Content))
		case "tool":
			out = append(out, openai.ToolMessage(m.Content, m.ToolCallID))
		case "assistant":
			var x openai.ChatCompletionAssistantMessageParam
			if m.Content != "" {
				x.Content.OfString = param.NewOpt(m.Content)
			}
			for _, c := range m.ToolCalls {
				x.ToolCalls = append(x.ToolCalls, openai.ChatCompletionMessageToolCallUnionParam{
					OfFunction: &openai.ChatCompletionMessageFunctionToolCallParam{
						ID: c.ID,
						Function: openai.ChatCompletionMessageFunctionToolCallFunctionParam{
							Name: wireName(c.Name), Arguments: c.Arguments,
						},
					},
				})
			}
			out = append(out, openai.ChatCompletionMessageParamUnion{OfAssistant: &x})
		}
	}
	return out
}

// checkBody lets nothing out that this package did not mean to write.
func checkBody(body []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(body, &keys); err != nil {
		return err
	}
	for k := range keys {
		switch k {
		case "model", "messages", "tools", "tool_choice", "max_completion_tokens", "max_tokens", "stream", "stream_options", "provider", "usage":
		default:
			return fmt.Errorf("llm: the body holds %q", k)
		}
	}
	return nil
}
