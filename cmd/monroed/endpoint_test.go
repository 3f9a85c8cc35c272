package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxALostAnswerIsSentAgainWithTheSameKey takes the answer away from a keyed
// call, and kills the daemon in the middle of a second one.
func TestLinuxALostAnswerIsSentAgainWithTheSameKey(t *testing.T) {
	t.Parallel() // most of it is waiting
	var mu sync.Mutex
	keys := map[string][]string{} // by body
	arrived := make(chan struct{}, 4)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		mu.Lock()
		keys[string(body)] = append(keys[string(body)], r.Header.Get("Idempotency-Key"))
		first := len(keys[string(body)]) == 1
		mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer a-token-of-the-operator" {
			t.Errorf("credential %q", r.Header.Get("Authorization"))
		}
		if first {
			arrived <- struct{}{}
			if string(body) == "killed" {
				<-r.Context().Done() // until the daemon is dead
			}
			panic(http.ErrAbortHandler) // the connection breaks
		}
	}))
	defer s.Close()
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "a-token-of-the-operator\n")
	address := strings.TrimPrefix(s.URL, "http://")
	more := fmt.Sprintf("http:\n  private: [%q]\n  endpoints:\n", address)
	for _, e := range []string{
		"name: keyed, effect: write, replay: keyed, window: 1h, timeout: 4s, token_file: " + token,
		"name: conditional, effect: write, replay: conditional", "name: blind", "name: late", "name: metered, effect: metered", // the guest's manifest asks for them
	} {
		more += fmt.Sprintf("    - {%s, url: \"http://%s/**\"}\n", e, address)
	}
	d := newDaemon(t, more)
	d.up()
	d.push(sender(t))
	d.apply(d.config(`skill: sender, operation: http.keyed, resource: "http:**"`))
	for _, how := range []string{"lost", "killed"} {
		id := d.start("sender", fmt.Sprintf(`{"steps":[{"operation":"http.keyed","args":{"url":"%s/x","body":%q,"content_type":"text/plain"}}]}`, s.URL, how))
		a := d.asked(id)
		if !strings.Contains(fmt.Sprint(a.Preview), "Idempotency-Key") {
			t.Errorf("whoever approves does not see the key: %+v", a.Preview)
		}
		if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
			t.Fatal(err)
		}
		<-arrived
		if how == "killed" {
			d.kill()
			d.up()
		}
		v := d.finished(id)
		var out struct {
			Results []struct {
				Status   int  `json:"status"`
				Repeated bool `json:"repeated"`
			} `json:"results"`
		}
		if err := json.Unmarshal(v.Result, &out); err != nil || v.State != host.StateSucceeded || len(out.Results) != 1 || out.Results[0].Status != 200 || !out.Results[0].Repeated {
			t.Errorf("%s: the run %s: %s %s", how, v.State, v.Failure, v.Result)
		}
		mu.Lock()
		if got := keys[how]; len(got) != 2 || got[0] != got[1] || len(got[0]) != 32 {
			t.Errorf("%s: keys %q", how, got)
		}
		mu.Unlock()
	}
	if keys["lost"][0] == keys["killed"][0] {
		t.Error("two calls share a key")
	}
	d.verified()
}

// TestLinuxAPricedSendIsShownAndPaid calls what the operator has put a price on, whose
// effect is no money's: before the run the ceiling is shown that it then has, and the
// price is booked.
func TestLinuxAPricedSendIsShownAndPaid(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	address := strings.TrimPrefix(s.URL, "http://")
	d := serve(t, fmt.Sprintf("http:\n  private: [%q]\n  endpoints: [{name: pager, url: \"http://%s/**\", price_usd: \"0.02\"}]\n", address, address))
	d.push(does("caller", `"send"`, []abi.OperationUse{{Operation: "http.pager", Effect: abi.EffectSend, Resource: "http:**"}},
		fmt.Sprintf(`{"op":"send","v":1,"args":{"operation":"http.pager","args":{"url":"%s/alert","body":"x","content_type":"text/plain"}}}`, s.URL)))
	d.apply(d.config(`skill: caller, operation: http.pager, resource: "http:**"`))
	runs := []struct {
		args, shown string
		budget      abi.MicroUSD
	}{
		{"", "estimate: at most $1.00; there is no earlier run", abi.USD},
		{"--max-usd=50", "estimate: $0.02, rarely more than $0.02 (from 1 earlier runs of this module); at most $50.00", 50 * abi.USD},
		{"--max-usd=0.01", "estimate: $0.01, rarely more than $0.01 (from 2 earlier runs of this module); at most $0.01", abi.USD / 100},
	}
	for _, r := range runs {
		args := []string{"--home", d.home, "-w", "team", "run", "caller"}
		if r.args != "" {
			args = append(args, r.args)
		}
		out, status := cli(t, args...)
		id := host.RunID(regexp.MustCompile(`run_[0-9a-z]{26}`).FindString(out))
		if status != 0 || !strings.Contains(out, r.shown) || id == "" {
			t.Fatalf("%s: status %d, want %q in\n%s", r.args, status, r.shown, out)
		}
		if v := d.run(id); v.Budget != r.budget || v.Estimate.Ceiling != r.budget {
			t.Errorf("%s: the budget is %s, the ceiling %s", r.args, v.Budget, v.Estimate.Ceiling)
		}
		if r.budget < abi.USD/50 {
			if a := answers(t, d.finished(id)); len(a) != 1 || a[0].Error == nil || a[0].Error.Code != abi.Budget {
				t.Errorf("over its ceiling: %+v", a)
			}
			continue
		}
		a := d.asked(id)
		if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
			t.Fatal(err)
		}
		v := d.finished(id)
		if a := answers(t, v); len(a) != 1 || a[0].Error != nil || v.Spent != abi.USD/50 {
			t.Errorf("%s: %+v, spent %s", r.args, a, v.Spent)
		}
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "run", "caller", "--max-usd", "much"); status != 1 || !strings.Contains(out, "MAX_USD") || strings.Contains(out, "estimate") {
		t.Errorf("no amount: status %d\n%s", status, out)
	}
	d.verified()
}

// TestLinuxATargetThatChangedIsLeftAlone changes a page between the yes to what is
// written over it and the send: the other side refuses, and nothing says otherwise. The
// twin, whose page is as it was, is written.
func TestLinuxATargetThatChangedIsLeftAlone(t *testing.T) {
	var etag atomic.Value
	var written atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-Match") != etag.Load() {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		written.Add(1)
	}))
	defer s.Close()
	address := strings.TrimPrefix(s.URL, "http://")
	d := serve(t, fmt.Sprintf("http:\n  private: [%q]\n  endpoints: [{name: page, method: PUT, effect: write, replay: conditional, price_usd: \"0.02\", url: \"http://%s/**\"}]\n", address, address))
	d.push(does("author", `"send"`, []abi.OperationUse{{Operation: "http.page", Effect: abi.EffectWrite, Resource: "http:**"}},
		fmt.Sprintf(`{"op":"send","v":1,"args":{"operation":"http.page","args":{"url":"%s/plan","body":"x","content_type":"text/plain","if_match":"\"1\""}}}`, s.URL)))
	d.apply(d.config(`skill: author, operation: http.page, resource: "http:**"`))
	for _, changed := range []bool{true, false} {
		etag.Store(`"1"`)
		id := d.start("author", "")
		a := d.asked(id)
		if changed {
			etag.Store(`"2"`) // by somebody else
		}
		if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
			t.Fatal(err)
		}
		v := d.finished(id)
		r := answers(t, v)
		if len(r) != 1 || (r[0].Error != nil) != changed || (v.Spent == 0) != changed || strings.Contains(v.Receipt, "http.page ×1") == changed {
			t.Fatalf("changed %v: %+v, spent %s\n%s", changed, r, v.Spent, v.Receipt)
		}
		if !changed {
			continue
		}
		if e := r[0].Error; e.Code != abi.Upstream || e.Effect != abi.OutcomeNone || !strings.Contains(e.Reason, "412") || !strings.Contains(e.Remedy, "read it again") {
			t.Errorf("%+v", e)
		}
		refused := false
		for _, l := range d.leaves(id) {
			refused = refused || l.Call == 1 && l.Verdict == "refused" && l.Code == abi.Upstream && l.Cost == 0
		}
		if !refused || !strings.Contains(v.Receipt, "1 refused") || v.Log[0].Outcome == "ok" {
			t.Errorf("leaves %+v\n%s\n%+v", d.leaves(id), v.Receipt, v.Log)
		}
	}
	if written.Load() != 1 {
		t.Errorf("written %d times", written.Load())
	}
	d.verified()
}

// sender is testdata/guests/sender, built once.
func sender(t *testing.T) []byte {
	t.Helper()
	senderOnce.Do(func() {
		senderErr = goTool("run", "github.com/getmonroe/monroe/guest/build", "-o", program("guests"), "./testdata/guests/sender")
	})
	if senderErr != nil {
		t.Fatal(senderErr)
	}
	return guestModule(t, "sender")
}

var (
	senderOnce sync.Once
	senderErr  error
)
