package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

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
