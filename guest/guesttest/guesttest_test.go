package guesttest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
	"github.com/getmonroe/monroe/guest/guesttest"
)

// watcher is a testing.TB that keeps what a test would be told.
type watcher struct {
	testing.TB
	errors []string
}

func (w *watcher) Helper()             {}
func (w *watcher) Logf(string, ...any) {}
func (w *watcher) Errorf(format string, a ...any) {
	w.errors = append(w.errors, fmt.Sprintf(format, a...))
}

const manifest = `{"abi":1,"name":"t","version":"1","ops":["llm.chat","kv.put"],
	"operations":[{"operation":"llm.chat","effect":"metered","resource":"model:**"}]}`

func TestReplayFindsWhatDiffers(t *testing.T) {
	for name, c := range map[string]struct {
		run  func(n *int) func(*guest.Run) error
		want string
	}{
		"the same": {func(*int) func(*guest.Run) error {
			return func(r *guest.Run) error { r.Progress("a"); return r.Result(1) }
		}, ""},
		"another request": {func(n *int) func(*guest.Run) error {
			return func(r *guest.Run) error { *n++; r.Progress("%d", *n); return nil }
		}, "call 1 was"},
		"one call more": {func(n *int) func(*guest.Run) error {
			return func(r *guest.Run) error {
				*n++
				for range *n {
					r.Progress("a")
				}
				return nil
			}
		}, "call 2 was not made before"},
		"one call less": {func(n *int) func(*guest.Run) error {
			return func(r *guest.Run) error {
				*n++
				if *n == 1 {
					r.Progress("a")
				}
				return nil
			}
		}, "after 0 of 1"},
		"another result": {func(n *int) func(*guest.Run) error {
			return func(r *guest.Run) error { *n++; return r.Result(*n) }
		}, "the result was"},
	} {
		w := &watcher{TB: t}
		h := guesttest.New(w, []byte(manifest))
		n := 0
		run := c.run(&n)
		h.Run(run, nil)
		h.Replay(run)
		if got := strings.Join(w.errors, "\n"); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: the test is told %q, want %q", name, got, c.want)
		}
	}
}

func TestMistakesFailTheTest(t *testing.T) {
	for name, c := range map[string]struct {
		run  func(*guest.Run) error
		want string
	}{
		"a fraction":                  {func(r *guest.Run) error { return r.KV().Put("k", 1.5) }, "integer"},
		"a model beyond its script":   {func(r *guest.Run) error { return chat(r, guest.Message{Role: "user", Content: "x"}) }, "more often than the script"},
		"an answer to no call":        {func(r *guest.Run) error { return chat(r, guest.Message{Role: "tool", ToolCallID: "x", Content: "x"}) }, "answers no call"},
		"an empty user":               {func(r *guest.Run) error { return chat(r, guest.Message{Role: "user"}) }, "has content"},
		"a role of another kind":      {func(r *guest.Run) error { return chat(r, guest.Message{Role: "developer", Content: "x"}) }, "not known"},
		"a call that has no answer":   {func(r *guest.Run) error { return chat(r, call("a"), guest.Message{Role: "user", Content: "x"}) }, "have no answer"},
		"two calls with the same id":  {func(r *guest.Run) error { return chat(r, call("a", "a")) }, "id of its own"},
		"a call without an id at all": {func(r *guest.Run) error { return chat(r, call("")) }, "id of its own"},
	} {
		w := &watcher{TB: t}
		h := guesttest.New(w, []byte(manifest))
		if strings.Contains(c.want, "have") || strings.Contains(c.want, "id of") || strings.Contains(c.want, "no call") {
			h.Model(guest.ChatReply{Message: guest.Message{Content: "unused"}})
		} else if c.want != "more often than the script" {
			h.Model(guest.ChatReply{})
		}
		if out := h.Run(c.run, nil); out.Status != guest.StatusFailed {
			t.Errorf("%s: status %d", name, out.Status)
		}
		if got := strings.Join(w.errors, "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%s: the test is told %q, want %q", name, got, c.want)
		}
	}
}

func chat(r *guest.Run, messages ...guest.Message) error {
	_, err := r.Chat(guest.ChatArgs{Messages: messages})
	return err
}

func call(ids ...string) guest.Message {
	m := guest.Message{Role: "assistant"}
	for _, id := range ids {
		m.ToolCalls = append(m.ToolCalls, guest.ToolCall{ID: id, Name: "t", Arguments: "{}"})
	}
	return m
}

func TestDenyAndAllow(t *testing.T) {
	h := guesttest.New(t, []byte(manifest))
	h.Deny(string(abi.OpKVPut), abi.Deny(abi.Budget, "full", ""))
	put := func(r *guest.Run) error { return r.KV().Put("k", 1) }
	if f := h.Run(put, nil).Failure(t); f.Error.Code != abi.Budget {
		t.Errorf("%+v", f)
	}
	h.Allow(string(abi.OpKVPut))
	if out := h.Run(put, nil); out.Status != guest.StatusOK || string(h.KV["k"]) != "1" {
		t.Errorf("%+v, kv %s", out, h.KV)
	}
}

// A guest that continues is begun anew, with its state for an input.
func TestAGuestThatContinues(t *testing.T) {
	h := guesttest.New(t, []byte(`{"abi":1,"name":"steps","version":"1","description":"","ops":["run.continue","run.progress","host.describe"]}`))
	out := h.Run(func(r *guest.Run) error {
		var s struct {
			Left []string `json:"left"`
			Done int      `json:"done"`
		}
		if err := r.Input(&s); err != nil {
			return err
		}
		if len(s.Left) == 0 {
			return r.Result(s.Done)
		}
		r.Progress("%s", s.Left[0])
		s.Left, s.Done = s.Left[1:], s.Done+1
		return r.Continue(s)
	}, map[string]any{"left": []string{"a", "b", "c"}})
	var done int
	out.Decode(t, &done)
	if done != 3 || h.Segments() != 4 {
		t.Errorf("%d done in %d segments", done, h.Segments())
	}
}
