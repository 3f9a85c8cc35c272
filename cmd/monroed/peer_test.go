package main_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/egress/peertest"
)

// fixtures are what the model says.
const fixtures = `{"fixtures":[
 {"match":{"toolCallId":"call_1"},"response":{"content":"The plan asks: shall we ship on Friday?","usage":{"prompt_tokens":200,"completion_tokens":30,"total_tokens":230}}},
 {"match":{"userMessage":"read the plan"},"response":{"toolCalls":[{"id":"call_1","name":"files_read","arguments":{"folder":"docs","path":"plan.md"}}],
  "usage":{"prompt_tokens":120,"completion_tokens":17,"total_tokens":137}}}]}`

// TestPeerAssistantAimock lets the assistant do a task with a model that others
// wrote: a streamed tool call, the file, a streamed answer, and the bill.
func TestPeerAssistantAimock(t *testing.T) {
	const key = "sk-test-0123456789abcdef"
	address := peertest.Aimock(t, fixtures)
	d := newDaemon(t, "model:\n  base_url: http://"+address+"/v1\n  private: true\n  default: acme/one\n  allowed:\n"+
		"    - {model: acme/one, input_usd_per_million: \"1\", output_usd_per_million: \"3\", max_output_tokens: 1000}\n")
	d.env = []string{"MONROE_MODEL_KEY=" + key}
	d.up()
	d.push(guestModule(t, "assistant"))
	d.apply(d.config(
		`skill: assistant, operation: files.list, resource: "files:docs/**"`,
		`skill: assistant, operation: files.read, resource: "files:docs/**"`,
		`skill: assistant, operation: llm.chat, resource: "model:acme/one"`,
	))
	est, err := d.Estimate(d.ctx(), "assistant", "")
	if err != nil || est.Ceiling <= 0 || est.Runs != 0 {
		t.Errorf("estimate %+v, %v", est, err)
	}
	r, err := d.StartRun(d.ctx(), api.StartInput{Skill: "assistant", Input: json.RawMessage(`{"task":"read the plan"}`), MaxUSD: "0.50"})
	if err != nil {
		t.Fatal(err)
	}
	words := ""
	if err := d.Watch(d.ctx(), r.ID, 0, func(e host.Event) error {
		if e.Kind == host.EventStream {
			words += e.Text
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	v := d.run(r.ID)
	if v.State != host.StateSucceeded {
		t.Fatalf("the run %s: %s\n%+v", v.State, v.Failure, v.Log)
	}
	var res struct {
		Answer    string `json:"answer"`
		ToolCalls int    `json:"tool_calls"`
		Calls     []struct{ Operation, Outcome string }
	}
	if err := json.Unmarshal(v.Result, &res); err != nil {
		t.Fatal(err)
	}
	const answer = "The plan asks: shall we ship on Friday?"
	if res.Answer != answer || res.ToolCalls != 1 || res.Calls[0].Operation != "files.read" || res.Calls[0].Outcome != "ok" {
		t.Errorf("result %s", v.Result)
	}
	if !strings.Contains(words, answer) {
		t.Errorf("streamed %q", words)
	}
	// The peer's own count of tokens at the operator's prices: 1 and 3 dollars for a
	// million.
	const cost = 120 + 3*17 + 200 + 3*30
	if v.Spent != cost || v.Reserved != 0 || v.Budget != 500_000 || v.Estimate.Ceiling != v.Budget {
		t.Errorf("spent %d, reserved %d, budget %d, want %d spent", v.Spent, v.Reserved, v.Budget, cost)
	}
	spend, err := d.Spend(d.ctx())
	if err != nil || spend.Settled != cost || spend.Reserved != 0 || spend.CapMicro != 5_000_000 {
		t.Errorf("ledger %+v, %v", spend, err)
	}
	if !strings.Contains(v.Receipt, "llm.chat ×2") || !strings.Contains(v.Receipt, "files.read ×1") {
		t.Errorf("receipt %s", v.Receipt)
	}
	if again, err := d.Estimate(d.ctx(), "assistant", ""); err != nil || again.Runs != 1 || again.P50 != cost {
		t.Errorf("the next estimate %+v, %v", again, err)
	}
	d.verified()
	d.reservedMore(r.ID)

	t.Run("too small a ceiling", func(t *testing.T) {
		r, err := d.StartRun(d.ctx(), api.StartInput{Skill: "assistant", Input: json.RawMessage(`{"task":"read the plan"}`), MaxUSD: "0.000100"})
		if err != nil {
			t.Fatal(err)
		}
		v := d.finished(r.ID)
		if v.State != host.StateFailed || !strings.Contains(string(v.Result), "BUDGET") || v.Spent != 0 || v.Reserved != 0 {
			t.Errorf("the run %s: %s; spent %d, reserved %d", v.State, v.Result, v.Spent, v.Reserved)
		}
	})
	t.Run("model that is not granted", func(t *testing.T) {
		v := d.finished(d.start("assistant", `{"task":"read the plan","model":"acme/two"}`))
		if v.State != host.StateFailed || v.Spent != 0 {
			t.Errorf("the run %s: %s; spent %d", v.State, v.Result, v.Spent)
		}
	})

	// The key is in no file of the workspace, and in nothing that the daemon printed.
	d.stop()
	err = filepath.WalkDir(d.home, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(string(read(t, path)), key) {
			t.Errorf("%s holds the model's key", path)
		}
		return err
	})
	if err != nil || strings.Contains(d.said.String(), key) {
		t.Errorf("the key was printed, or %v", err)
	}
}

// reservedMore holds every call of a model to its decision: more was put aside for it than
// it cost in the end, and both were something.
func (d *daemon) reservedMore(id host.RunID) {
	d.t.Helper()
	v, err := d.Audit(d.ctx(), 0, 1000)
	if err != nil {
		d.t.Fatal(err)
	}
	reserved, calls := map[uint32]abi.MicroUSD{}, 0
	for _, leaf := range v.Leaves {
		l, err := audit.ParseLeaf(leaf.Body)
		if err != nil {
			d.t.Fatal(err)
		}
		if l.Run != id || l.Operation != "llm.chat" {
			continue
		}
		if l.Kind == audit.KindDecision {
			reserved[l.Call] = l.Reserved
		} else if calls++; l.Cost <= 0 || reserved[l.Call] <= l.Cost {
			d.t.Errorf("call %d: %s reserved, %s settled", l.Call, reserved[l.Call], l.Cost)
		}
	}
	if calls != 2 {
		d.t.Errorf("%d outcomes of calls of a model", calls)
	}
}

// TestPeerMailBySMTP lets the digest mail to a server that others wrote: once, after the
// yes, and the message that was approved.
func TestPeerMailBySMTP(t *testing.T) {
	web, address := peertest.Mailpit(t)
	d := compiled(t, "mail: {from: monroe@example.com, smtp: \""+address+"\", plain_text: true}\n")
	d.apply(d.config(digestGrants...))
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	delivered := func() (subjects []string) {
		t.Helper()
		resp, err := http.Get("http://" + web + "/api/v1/messages")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var list struct {
			Messages []struct{ Subject string } `json:"messages"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Messages {
			subjects = append(subjects, m.Subject)
		}
		return subjects
	}
	if got := delivered(); len(got) != 0 {
		t.Errorf("before the yes: %q", got)
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || !strings.Contains(v.Receipt, "mail.send ×1") {
		t.Errorf("the run %s: %s %s", v.State, v.Failure, v.Receipt)
	}
	if got := delivered(); len(got) != 1 || !strings.Contains(got[0], "Digest of docs") {
		t.Errorf("after it: %q", got)
	}
	d.verified()
}
