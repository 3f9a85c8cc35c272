package llm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/llm"
)

// A dollar for a million tokens is a million PicoUSD for each.
func config() llm.Config {
	return llm.Config{
		Connection: "con_llm", MaxOutput: 1000,
		Models: map[string]llm.Price{
			"acme/one": {Input: 1_000_000, Output: 3_000_000, Request: 5_000_000},
			"local":    {Free: true},
		},
	}
}

func open(t *testing.T, c llm.Config) *llm.LLM {
	t.Helper()
	l, err := llm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func chat(args string) connectors.Call {
	return connectors.Call{Operation: llm.OpChat, Args: json.RawMessage(args)}
}

const conversation = `{"model":"acme/one","messages":[
 {"role":"system","content":"be brief"},{"role":"user","content":"read it"},
 {"role":"assistant","tool_calls":[{"id":"call_1","name":"files.read","arguments":"{\"path\":\"a\"}"}]},
 {"role":"tool","tool_call_id":"call_1","name":"files.read","content":"text"}],
 "tools":[{"name":"files.read","description":"reads","parameters":{"type":"object","properties":{"z":{"type":"integer","maximum":9007199254740991},"a":{}}}}],
 "tool_choice":"files.read","max_output_tokens":50}`

// Laws 1 and 2, on the frozen body.
func TestFrozenBody(t *testing.T) {
	p, d := open(t, config()).Plan(chat(conversation))
	if d != nil {
		t.Fatal(d)
	}
	got, err := abi.Canonical(p.Frozen.HTTP.Body)
	if err != nil {
		t.Fatal(err)
	}
	want, err := abi.Canonical([]byte(`{"model":"acme/one","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":50,
		"provider":{"data_collection":"deny","require_parameters":true},"usage":{"include":true},
		"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"read it"},
		{"role":"assistant","tool_calls":[{"id":"call_1","type":"function","function":{"name":"files-read","arguments":"{\"path\":\"a\"}"}}]},
		{"role":"tool","tool_call_id":"call_1","content":"text"}],
		"tools":[{"type":"function","function":{"name":"files-read","description":"reads","parameters":{"type":"object","properties":{"z":{"type":"integer","maximum":9007199254740991},"a":{}}}}}],
		"tool_choice":{"type":"function","function":{"name":"files-read"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("body\n%s\nwant\n%s", got, want)
	}
	f := p.Frozen.HTTP
	if f.URL != "https://openrouter.ai/api/v1/chat/completions" || f.Method != http.MethodPost || *f.Credential != (connectors.Slot{Connection: "con_llm", Header: "Authorization", Prefix: "Bearer "}) {
		t.Errorf("%+v", f)
	}
	if fmt.Sprint(f.Header) != "[{Accept application/json} {Content-Type application/json}]" && fmt.Sprint(f.Header) != "[{Accept text/event-stream} {Content-Type application/json}]" {
		t.Errorf("headers %v", f.Header)
	}
	if p.Resources[0] != "model:acme/one" || p.Audience[0] != "model" || p.Account != "con_llm" {
		t.Errorf("%+v", p)
	}
	first, _ := p.Digest()
	for range 20 {
		again, _ := open(t, config()).Plan(chat(conversation))
		if x, _ := again.Digest(); x != first {
			t.Fatal("equal calls gave other bytes")
		}
	}
}

// Law 1: the reject table.
func TestSchemaIsClosed(t *testing.T) {
	l := open(t, config())
	user := `"messages":[{"role":"user","content":"x"}]`
	for _, extra := range []string{
		`"provider":{"order":["evil"]}`, `"plugins":[{"id":"web"}]`, `"web_search_options":{}`, `"models":["a","b"]`, `"route":"fallback"`, `"transforms":[]`,
		`"stream":false`, `"stream_options":{}`, `"usage":{}`, `"n":5`, `"max_tokens":99`, `"max_completion_tokens":99`, `"temperature":1`, `"seed":1`, `"user":"x"`,
		`"store":true`, `"metadata":{}`, `"functions":[]`, `"function_call":"auto"`, `"response_format":{}`, `"service_tier":"flex"`, `"prediction":{}`, `"modalities":["audio"]`,
		`"audio":{}`, `"reasoning":{}`, `"reasoning_effort":"high"`, `"parallel_tool_calls":true`, `"logit_bias":{}`, `"stop":["x"]`, `"preset":"x"`, `"Model":"x"`, `"api_key":"x"`,
		`"max_output_tokens":-1`, `"tool_choice":"required"`, `"tool_choice":"other"`, `"tool_choice":{"type":"web"}`,
		`"tools":[{"type":"openrouter:web_search"}]`, `"tools":[{"name":"a","type":"web_search"}]`, `"tools":[{"name":"a b"}]`, `"tools":[{"name":""}]`, `"tools":[{"name":"a.b"},{"name":"a-b"}]`,
		`"tools":[{"name":"a","parameters":[]}]`, `"tools":[{"name":"a","strict":true}]`,
	} {
		args := `{"model":"acme/one",` + user + `,` + extra + `}`
		if p, d := l.Plan(chat(args)); d == nil || d.Code != abi.Invalid {
			t.Errorf("%s: %v %s", extra, d, p.Frozen.Kind())
		}
	}
	for _, m := range []string{
		`[]`, `[{"role":"developer","content":"x"}]`, `[{"role":"user"}]`, `[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x/"}}]}]`,
		`[{"role":"user","content":"x","cache_control":{}}]`, `[{"role":"user","content":"x","tool_call_id":"a"}]`, `[{"role":"assistant"}]`, `[{"role":"tool","content":"x"}]`,
		`[{"role":"assistant","tool_calls":[{"id":"a"}]}]`, `[{"role":"assistant","content":"x","prefix":true}]`, `[{"role":"user","content":"x","name":"y"}]`,
	} {
		if _, d := l.Plan(chat(`{"model":"acme/one","messages":` + m + `}`)); d == nil || d.Code != abi.Invalid {
			t.Errorf("%s: %v", m, d)
		}
	}
}

// Law 2.
func TestOutputLimitIsAlwaysSentAndCapped(t *testing.T) {
	for asked, want := range map[string]string{"": "1000", `,"max_output_tokens":5`: "16", `,"max_output_tokens":99999999`: "1000"} {
		p, d := open(t, config()).Plan(chat(`{"model":"acme/one","messages":[{"role":"user","content":"x"}]` + asked + `}`))
		if d != nil || !strings.Contains(string(p.Frozen.HTTP.Body), `"max_completion_tokens":`+want) {
			t.Errorf("%q: %v", asked, d)
		}
	}
	c := config()
	c.BaseURL, c.OldLimit, c.Connection = "http://127.0.0.1:11434/v1/", true, ""
	p, d := open(t, c).Plan(chat(`{"model":"local","messages":[{"role":"user","content":"x"}]}`))
	if d != nil || !strings.Contains(string(p.Frozen.HTTP.Body), `"max_tokens":1000`) || strings.Contains(string(p.Frozen.HTTP.Body), "provider") {
		t.Errorf("%s %v", p.Frozen.HTTP.Body, d)
	}
	if p.Frozen.HTTP.Credential != nil || p.Ceiling != 0 || p.Frozen.HTTP.URL != "http://127.0.0.1:11434/v1/chat/completions" {
		t.Errorf("%+v", p)
	}
}

// Law 3.
func TestModelWithoutPriceIsRefused(t *testing.T) {
	for _, m := range []string{"acme/two", "acme/One", "acme/one ", "", "acme/one:free"} {
		if _, d := open(t, config()).Plan(chat(`{"model":"` + m + `","messages":[{"role":"user","content":"x"}]}`)); d == nil || d.Code != abi.Denied {
			t.Errorf("%q: %v", m, d)
		}
	}
	for name, models := range map[string]map[string]llm.Price{
		"zero": {"a": {}}, "negative": {"a": {Input: -1}}, "free and not": {"a": {Free: true, Input: 1}}, "id": {"a*": {Free: true}}, "empty id": {"": {Free: true}},
	} {
		if _, err := llm.New(llm.Config{Models: models}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	// A host without models refuses every call instead of not starting.
	closed, err := llm.New(llm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, d := closed.Plan(chat(conversation)); d == nil || d.Code != abi.Denied {
		t.Errorf("without models: %v", d)
	}
	for _, u := range []string{"ftp://x.example", "https://u:p@x.example/v1", "https://x.example/v1?a=b", "x"} {
		if _, err := llm.New(llm.Config{BaseURL: u, Models: config().Models}); err == nil {
			t.Errorf("%s was accepted", u)
		}
	}
}

// Law 4.
func TestCeilingIsNeverBelowTheCost(t *testing.T) {
	p, d := open(t, config()).Plan(chat(conversation))
	if d != nil {
		t.Fatal(d)
	}
	if want := abi.MicroUSD(len(p.Frozen.HTTP.Body) + 3*50 + 5); p.Ceiling != want {
		t.Errorf("ceiling %v, want %v", p.Ceiling, want)
	}
}

func stream(chunks ...string) io.Reader {
	var b strings.Builder
	for _, c := range chunks {
		b.WriteString("data: " + c + "\n\n")
	}
	return strings.NewReader(b.String())
}

func delta(d string) string {
	return `{"id":"gen-1","object":"chat.completion.chunk","created":1,"model":"acme/one","choices":[{"index":0,"delta":` + d + `,"finish_reason":null}]}`
}

func finish(reason string) string {
	return `{"id":"gen-1","object":"chat.completion.chunk","created":1,"model":"acme/one","choices":[{"index":0,"delta":{},"finish_reason":"` + reason + `"}]}`
}

func usage(u string) string {
	return `{"id":"gen-1","object":"chat.completion.chunk","created":1,"model":"acme/one","choices":[],"usage":` + u + `}`
}

func parse(t *testing.T, status int, header map[string][]string, body io.Reader) (connectors.Result, []string, *abi.Denial) {
	t.Helper()
	if header == nil {
		header = map[string][]string{"Content-Type": {"text/event-stream"}}
	}
	l, c := open(t, config()), chat(conversation)
	p, d := l.Plan(c)
	if d != nil {
		t.Fatal(d)
	}
	var words []string
	r, d := l.Parse(context.Background(), c, p, &connectors.Answer{Status: status, Header: header, Body: body, Emit: func(s string) { words = append(words, s) }})
	return r, words, d
}

func TestParsesWordsToolCallsAndUsage(t *testing.T) {
	_, _, d := parse(t, 200, nil, stream(
		": OPENROUTER PROCESSING", delta(`{"role":"assistant","content":"Hel"}`), delta(`{"content":"lo"}`),
		delta(`{"tool_calls":[{"index":0,"id":"call_7","type":"function","function":{"name":"files-read","arguments":""}}]}`),
		delta(`{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}`), delta(`{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}`),
		finish("tool_calls"), usage(`{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14,"cost":0.0000120001}`), "[DONE]"))
	if d == nil {
		t.Fatal("a comment inside a data line was accepted")
	}
	r, words, d := parse(t, 200, nil, io.MultiReader(strings.NewReader(": OPENROUTER PROCESSING\n\n"), stream(
		delta(`{"role":"assistant","content":"Hel"}`), delta(`{"content":"lo"}`),
		delta(`{"tool_calls":[{"index":0,"id":"call_7","type":"function","function":{"name":"files-read","arguments":""}}]}`),
		delta(`{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}`), delta(`{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}`),
		finish("tool_calls"), usage(`{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14,"cost":0.0000120001}`), "[DONE]")))
	if d != nil {
		t.Fatal(d)
	}
	reply := r.Reply.(llm.ChatReply)
	if strings.Join(words, "|") != "Hel|lo" || reply.Message.Content != "Hello" || reply.FinishReason != "tool_calls" || r.ProviderID != "gen-1" {
		t.Errorf("%q %+v", words, reply)
	}
	if len(reply.Message.ToolCalls) != 1 || reply.Message.ToolCalls[0] != (llm.ToolCall{ID: "call_7", Name: "files.read", Arguments: `{"a":1}`}) {
		t.Errorf("%+v", reply.Message.ToolCalls)
	}
	if r.Cost == nil || *r.Cost != 13 || *reply.Usage != (llm.Usage{InputTokens: 10, OutputTokens: 4}) || *reply.CostMicroUSD != 13 {
		t.Errorf("cost %v %+v", r.Cost, reply)
	}
	if r.Provenance.Internal || r.Provenance.Readers[0] != connectors.Everyone {
		t.Errorf("%+v", r.Provenance)
	}
}

// Law 5.
func TestUnstatedCostIsUnknown(t *testing.T) {
	for name, x := range map[string]struct {
		chunk string
		want  int64 // -1: unknown
	}{
		"no usage":       {finish("stop"), -1},
		"tokens":         {usage(`{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14}`), 10 + 3*4 + 5},
		"stated":         {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":1e-7}`), 1},
		"stated zero":    {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":0}`), 0},
		"null":           {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":null}`), 27},
		"huge exponent":  {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":1e999999999}`), -1},
		"negative":       {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":-1}`), -1},
		"text":           {usage(`{"prompt_tokens":10,"completion_tokens":4,"cost":"free"}`), -1},
		"half a usage":   {usage(`{"prompt_tokens":10}`), -1},
		"negative token": {usage(`{"prompt_tokens":-10,"completion_tokens":4}`), -1},
	} {
		r, _, d := parse(t, 200, nil, stream(delta(`{"content":"x"}`), finish("stop"), x.chunk, "[DONE]"))
		switch {
		case d != nil:
			t.Errorf("%s: %v", name, d)
		case x.want < 0 && r.Cost != nil, x.want >= 0 && (r.Cost == nil || int64(*r.Cost) != x.want):
			t.Errorf("%s: cost %v, want %d", name, r.Cost, x.want)
		}
	}
}

func TestRefusalsAndBrokenAnswers(t *testing.T) {
	limit := `{"error":{"message":"Key limit exceeded (monthly)","code":403}}`
	for name, x := range map[string]struct {
		status int
		body   io.Reader
		code   abi.Code
		effect abi.Outcome
	}{
		"401": {401, strings.NewReader("{}"), abi.ConnectorRevoked, abi.OutcomeNone}, "402": {402, nil, abi.Budget, abi.OutcomeNone},
		"403 limit": {403, strings.NewReader(limit), abi.Budget, abi.OutcomeNone}, "403": {403, strings.NewReader("no"), abi.Denied, abi.OutcomeNone},
		"400": {400, nil, abi.Invalid, abi.OutcomeNone}, "404": {404, nil, abi.Upstream, abi.OutcomeNone}, "413": {413, nil, abi.TooLarge, abi.OutcomeNone},
		"429": {429, nil, abi.Rate, abi.OutcomeNone}, "500": {500, nil, abi.Upstream, abi.OutcomeSent}, "302": {302, nil, abi.Upstream, abi.OutcomeNone},
		"ends early":   {200, stream(delta(`{"content":"x"}`)), abi.Upstream, abi.OutcomeSent},
		"empty":        {200, stream(), abi.Upstream, abi.OutcomeSent},
		"not a stream": {200, strings.NewReader("<html>"), abi.Upstream, abi.OutcomeSent},
		"error inside": {200, stream(delta(`{"content":"x"}`), `{"error":{"code":502,"message":"x"}}`), abi.Upstream, abi.OutcomeSent},
		"too large":    {200, io.MultiReader(stream(delta(`{"content":"x"}`)), failing{connectors.ErrAnswerTooLarge}), abi.TooLarge, abi.OutcomeSent},
		"deadline":     {200, io.MultiReader(stream(finish("stop")), failing{context.DeadlineExceeded}), abi.Timeout, abi.OutcomeSent},
		"reset":        {200, io.MultiReader(stream(delta(`{"content":"x"}`)), failing{errors.New("reset")}), abi.Upstream, abi.OutcomeSent},
	} {
		if x.body == nil {
			x.body = strings.NewReader("")
		}
		_, _, d := parse(t, x.status, map[string][]string{"Content-Type": {"text/event-stream"}, "Retry-After": {"7"}}, x.body)
		if d == nil || d.Code != x.code || d.Effect != x.effect {
			t.Errorf("%s: %+v", name, d)
		}
		if name == "429" && d.RetryAfterMS != 7000 {
			t.Errorf("retry after %d ms", d.RetryAfterMS)
		}
	}
}

// The SDK's client would read the environment; its services must not.
func TestEnvironmentIsIgnored(t *testing.T) {
	for _, name := range []string{"OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"} {
		t.Setenv(name, "https://evil.example/"+name)
	}
	p, d := open(t, config()).Plan(chat(conversation))
	if d != nil || p.Frozen.HTTP.URL != "https://openrouter.ai/api/v1/chat/completions" || len(p.Frozen.HTTP.Header) != 2 {
		t.Errorf("%+v %v", p.Frozen.HTTP, d)
	}
}

func TestTimeoutIsTheOperators(t *testing.T) {
	c := config()
	c.Timeout = time.Second
	if p, _ := open(t, c).Plan(chat(conversation)); p.Timeout != time.Second {
		t.Error(p.Timeout)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
