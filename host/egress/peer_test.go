package egress_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/llm"
	"github.com/getmonroe/monroe/connectors/mail"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/egress/peertest"
	"github.com/getmonroe/monroe/host/vault"
)

// fixtures are what the model says.
const fixtures = `{"fixtures":[
 {"match":{"toolCallId":"call_1"},"response":{"content":"The plan says: ship on Friday, then rest.","usage":{"prompt_tokens":200,"completion_tokens":30,"total_tokens":230,"cost":0.0010000001}}},
 {"match":{"userMessage":"read the plan"},"response":{"toolCalls":[{"id":"call_1","name":"files-read","arguments":{"folder":"docs","path":"plan.md"}}],
  "usage":{"prompt_tokens":120,"completion_tokens":17,"total_tokens":137,"cost":0.00042}}}]}`

func TestPeerAimockStreamsAToolCallAndAnAnswer(t *testing.T) {
	address := peertest.Aimock(t, fixtures)

	for base, cost := range map[string][2]abi.MicroUSD{
		"/api/v1": {420, 1001},                    // speaks as OpenRouter: states the cost
		"/v1":     {120 + 3*17 + 5, 200 + 90 + 5}, // speaks as OpenAI: counts only
	} {
		l, err := llm.New(llm.Config{
			BaseURL: "http://" + address + base, Connection: "con_llm", Routed: base == "/api/v1",
			Models: map[string]llm.Price{"acme/one": {Input: 1_000_000, Output: 3_000_000, Request: 5_000_000}},
		})
		if err != nil {
			t.Fatal(err)
		}
		keys, err := vault.NewStatic(vault.Credential{Connection: "con_llm", Subject: "us", Origins: []string{"http://" + address}, Secret: vault.NewSecret("sk-test-0123456789")})
		if err != nil {
			t.Fatal(err)
		}
		e := open(t, egress.Config{Connectors: []connectors.Connector{l}, Credentials: keys, Open: []egress.Opening{{Operation: llm.OpChat, Address: address}}}, nil)
		ask := llm.ChatArgs{
			Model: "acme/one", Messages: []llm.Message{{Role: "user", Content: "please read the plan"}},
			Tools: []llm.Tool{{Name: "files.read", Parameters: json.RawMessage(`{"type":"object"}`)}},
		}
		turn := func() (connectors.Result, llm.ChatReply, int) {
			t.Helper()
			args, err := json.Marshal(ask)
			if err != nil {
				t.Fatal(err)
			}
			call := connectors.Call{Operation: llm.OpChat, Args: args}
			_, p, d := e.Plan(t.Context(), call, nil)
			if d != nil {
				t.Fatal(d)
			}
			words := 0
			o := e.Perform(t.Context(), permitFor(t, p), call, p, func(string) { words++ })
			if o.Denial != nil {
				t.Fatalf("%s: %+v", base, o.Denial)
			}
			if o.Result.Cost == nil || *o.Result.Cost > p.Ceiling && base == "/v1" {
				t.Errorf("%s: cost %v, ceiling %v", base, o.Result.Cost, p.Ceiling)
			}
			return o.Result, o.Result.Reply.(llm.ChatReply), words
		}
		r, reply, _ := turn()
		if reply.FinishReason != "tool_calls" || len(reply.Message.ToolCalls) != 1 ||
			reply.Message.ToolCalls[0] != (llm.ToolCall{ID: "call_1", Name: "files.read", Arguments: `{"folder":"docs","path":"plan.md"}`}) {
			t.Errorf("%s: %+v", base, reply)
		}
		if *reply.Usage != (llm.Usage{InputTokens: 120, OutputTokens: 17}) || *r.Cost != cost[0] || r.ProviderID == "" {
			t.Errorf("%s: %+v, cost %v", base, reply.Usage, *r.Cost)
		}
		ask.Messages = append(ask.Messages, reply.Message, llm.Message{Role: "tool", ToolCallID: "call_1", Content: "ship on Friday"})
		r, reply, words := turn()
		if reply.Message.Content != "The plan says: ship on Friday, then rest." || reply.FinishReason != "stop" || words < 3 || *r.Cost != cost[1] {
			t.Errorf("%s: %+v in %d pieces, cost %v", base, reply, words, *r.Cost)
		}
	}
}

func TestPeerMailpitReceivesTheFrozenMessage(t *testing.T) {
	web, address := peertest.Mailpit(t)
	m, err := mail.New(mail.Config{From: "monroe@example.com", Server: "main"})
	if err != nil {
		t.Fatal(err)
	}
	e := open(t, egress.Config{Connectors: []connectors.Connector{m}, SMTP: map[string]egress.SMTPServer{"main": {Address: address}}}, nil)
	args, err := json.Marshal(mail.SendArgs{To: []string{"ann@example.com"}, CC: []string{"bob@example.com"}, Subject: "Grüße\u200b aus Köln", Text: "Zeile 1\n.Punkt\nü = 1\n"})
	if err != nil {
		t.Fatal(err)
	}
	call := connectors.Call{Operation: mail.OpSend, Args: args, Key: strings.Repeat("ab", 16), Now: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)}
	_, p, d := e.Plan(t.Context(), call, nil)
	if d != nil {
		t.Fatal(d)
	}
	if o := e.Perform(t.Context(), permitFor(t, p), call, p, nil); o.Denial != nil {
		t.Fatal(o.Denial)
	}
	get := func(path string, v any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+web+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := new(http.Client).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if raw, ok := v.(*string); ok && err == nil {
			*raw = string(b)
		} else if err != nil || json.Unmarshal(b, v) != nil {
			t.Fatalf("%s: %v %.200s", path, err, b)
		}
	}
	var list struct {
		Messages []struct {
			ID, MessageID, Subject string
			From                   struct{ Address string }
			To, Cc, Bcc            []struct{ Address string }
		} `json:"messages"`
	}
	get("/api/v1/messages", &list)
	if len(list.Messages) != 1 {
		t.Fatalf("%+v", list)
	}
	x := list.Messages[0]
	if x.MessageID != call.Key+"@example.com" || x.Subject != "Grüße\u200b aus Köln" || x.From.Address != "monroe@example.com" ||
		len(x.To) != 1 || x.To[0].Address != "ann@example.com" || len(x.Cc) != 1 || len(x.Bcc) != 0 {
		t.Errorf("%+v", x)
	}
	var one struct{ Text string }
	get("/api/v1/message/"+x.ID, &one)
	if strings.ReplaceAll(one.Text, "\r\n", "\n") != "Zeile 1\n.Punkt\nü = 1\n" {
		t.Errorf("%q", one.Text)
	}
	var raw string
	get("/api/v1/message/"+x.ID+"/raw", &raw)
	if !strings.HasSuffix(raw, string(p.Frozen.SMTP.Data)) {
		t.Errorf("the message was changed on its way:\n%s", raw)
	}
}
