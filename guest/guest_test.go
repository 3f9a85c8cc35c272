package guest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
	"github.com/getmonroe/monroe/guest/guesttest"
)

const everything = `{"abi":1,"name":"t","version":"1",
	"ops":["time.sleep","random.bytes","kv.get","kv.put","kv.delete","kv.list","tool.list","tool.call","send","http.fetch","llm.chat","batch","skill.call"],
	"operations":[
		{"operation":"files.list","effect":"read","resource":"files:docs/**"},
		{"operation":"files.read","effect":"read","resource":"files:docs/**"},
		{"operation":"mail.send","effect":"send","resource":"mail:ann@example.com"},
		{"operation":"http.fetch","effect":"read","resource":"https://example.com/**"},
		{"operation":"llm.chat","effect":"metered","resource":"model:**"},
		{"operation":"other.thing","effect":"write","resource":"other:**"}]}`

// in runs f as a guest with everything granted; what f returns as an error fails
// the test.
func in(t *testing.T, h *guesttest.Host, f func(*guest.Run) error) {
	t.Helper()
	if out := h.Run(f, nil); out.Status != guest.StatusOK {
		t.Errorf("status %d: %s", out.Status, out.Result)
	}
}

func code(err error) abi.Code {
	d, ok := guest.Denied(err)
	if !ok {
		return ""
	}
	return d.Code
}

func TestEveryTypedCall(t *testing.T) {
	h := guesttest.New(t, []byte(everything))
	h.Folder("docs", fstest.MapFS{"a/b.md": {Data: []byte("text <&>")}, "bin": {Data: []byte{0xff}}})
	h.Page("https://example.com/x", guest.Page{Status: 200, ContentType: "text/plain", Text: "page"})
	h.Model(guest.ChatReply{Message: guest.Message{Role: "assistant", Content: "hi"}, CostMicroUSD: 3})
	h.Answer("other.thing", func(args json.RawMessage) abi.Reply { return abi.Reply{OK: args} })
	in(t, h, func(r *guest.Run) error {
		host, err := r.Describe()
		check(t, err, host.ABI == 1 && host.Owner == "owner@example.com")
		list, err := r.Files("docs").List(".")
		check(t, err, len(list.Entries) == 2 && list.Entries[0].Path == "a/b.md")
		f, err := r.Files("docs").Read("a/b.md")
		check(t, err, f.Text == "text <&>" && f.IsText() && len(f.SHA256) == 64)
		f, err = r.Files("docs").Read("bin")
		b, _ := f.Bytes()
		check(t, err, !f.IsText() && string(b) == "\xff")
		p, err := r.Fetch("https://example.com/x")
		check(t, err, p.Text == "page")
		m, err := r.Mail(guest.Mail{To: []string{"ann@example.com"}, Subject: "s", Text: "t"})
		check(t, err, m.MessageID != "")
		c, err := r.Chat(guest.ChatArgs{Messages: []guest.Message{{Role: "user", Content: "x"}}})
		check(t, err, c.Message.Content == "hi" && c.CostMicroUSD == 3)
		kv := r.KV()
		var v struct{ N int }
		found, err := kv.Get("k", &v)
		check(t, err, !found)
		check(t, kv.Put("k", map[string]int{"N": 7}), true)
		found, err = kv.Get("k", &v)
		check(t, err, found && v.N == 7)
		keys, err := kv.Keys("k")
		check(t, err, len(keys) == 1)
		check(t, kv.Delete("k"), true)
		now, err := r.Now()
		check(t, err, now.Year() == 2026)
		check(t, r.Sleep(time.Hour), true)
		later, err := r.Now()
		check(t, err, later.Sub(now) == time.Hour)
		random, err := r.Random(16)
		check(t, err, len(random) == 16)
		tools, err := r.Tools()
		check(t, err, len(tools) == 5) // llm.chat is not a tool
		var echo struct{ A string }
		check(t, r.Send("other.thing", map[string]string{"A": "x"}, &echo), echo.A == "x")
		replies, err := r.Batch(abi.Request{Op: abi.OpTimeNow, V: 1}, abi.Request{Op: "nope", V: 1})
		check(t, err, len(replies) == 2 && replies[0].Error == nil && replies[1].Error.Code == abi.Unsupported)
		return nil
	})
}

func check(t *testing.T, err error, ok bool) {
	t.Helper()
	if err != nil || !ok {
		t.Errorf("err %v, as expected: %v", err, ok)
	}
}

func TestWhatTheHostRefuses(t *testing.T) {
	h := guesttest.New(t, []byte(everything))
	h.Folder("docs", fstest.MapFS{"a.md": {Data: []byte("x")}})
	h.Folder("private", fstest.MapFS{"a.md": {Data: []byte("x")}})
	in(t, h, func(r *guest.Run) error {
		for want, err := range map[abi.Code][]error{
			abi.Scope: {
				second(r.Files("private").Read("a.md")),
				second(r.Mail(guest.Mail{To: []string{"ann@example.com", "eve@example.com"}, Subject: "s", Text: "t"})),
				second(r.Fetch("https://example.com.evil/")),
				r.Tool("calendar.list", struct{}{}, nil),
			},
			abi.NotFound: {second(r.Files("docs").Read("b.md"))},
			abi.Invalid: {
				second(r.Files("docs").Read("../a.md")),
				r.Send(guest.FilesRead, guest.FilesArgs{Folder: "docs", Path: "a.md"}, nil), // a read by send
				r.Tool(guest.MailSend, guest.Mail{}, nil),                                   // an effect by tool.call
				r.Tool(guest.FilesRead, map[string]string{"folder": "docs", "Path": "a.md"}, nil),
				r.KV().Put("", 1),
				second(r.Random(0)),
			},
			abi.Unsupported: {r.Call(abi.OpSkillCall, struct{}{}, nil), r.Call("new.op", struct{}{}, nil)},
			abi.TooLarge:    {r.KV().Put("k", strings.Repeat("x", abi.MaxKVValue))},
		} {
			for i, e := range err {
				if code(e) != want {
					t.Errorf("%s %d: %v", want, i, e)
				}
			}
		}
		return nil
	})
}

func TestCallSkill(t *testing.T) {
	h := guesttest.New(t, []byte(everything))
	h.Answer(string(abi.OpSkillCall), func(args json.RawMessage) abi.Reply {
		switch string(args) {
		case `{"budget_micro_usd":0,"input":{"n":1},"skill":"digest"}`:
			return abi.OK(abi.SkillResult{Result: json.RawMessage(`{"n":2}`)})
		case `{"input":null,"skill":"digest"}`:
			return abi.Refuse(abi.Deny(abi.Budget, "none left", ""))
		}
		return abi.Refuse(abi.Deny(abi.Invalid, string(args), ""))
	})
	in(t, h, func(r *guest.Run) error {
		var out struct{ N int }
		if err := r.CallSkill("digest", 0, map[string]int{"n": 1}, &out); err != nil || out.N != 2 {
			t.Errorf("%+v, %v", out, err)
		}
		if err := r.CallSkill("digest", -1, nil, nil); code(err) != abi.Budget {
			t.Error(err)
		}
		return nil
	})
}

func second[T any](_ T, err error) error { return err }

func TestManifestIsEnforced(t *testing.T) {
	h := guesttest.New(t, []byte(`{"abi":1,"name":"t","version":"1","ops":["tool.call"]}`))
	in(t, h, func(r *guest.Run) error {
		r.Progress("free")
		for _, err := range []error{r.KV().Put("k", 1), r.Sleep(1), second(r.Tools()), second(r.Files("docs").List("."))} {
			if code(err) != abi.Scope {
				t.Errorf("not listed, yet %v", err)
			}
		}
		return nil
	})
}

func TestResultsAndErrors(t *testing.T) {
	h := guesttest.New(t, []byte(everything))
	var got struct{ A int }
	h.Run(func(r *guest.Run) error {
		return errors.Join(r.Result(map[string]int{"A": 1}), r.Result(map[string]int{"A": 2}))
	}, nil).Decode(t, &got)
	if got.A != 2 {
		t.Errorf("the last result does not count: %+v", got)
	}
	out := h.Run(func(*guest.Run) error { return nil }, nil)
	if out.Status != guest.StatusOK || out.Result != nil {
		t.Errorf("without a result: %+v", out)
	}
	f := h.Run(func(r *guest.Run) error {
		return fmt.Errorf("while working: %w", abi.Deny(abi.Budget, "empty", "fill it"))
	}, nil).Failure(t)
	if f.Error.Code != abi.Budget || f.Error.Remedy != "fill it" || !strings.HasPrefix(f.Error.Reason, "while working: BUDGET") {
		t.Errorf("failure %+v", f)
	}
	h.Run(func(r *guest.Run) error {
		if err := r.Result(strings.Repeat("x", abi.MaxResult)); code(err) != abi.TooLarge {
			t.Errorf("a large result: %v", err)
		}
		if err := r.Result(func() {}); err == nil {
			t.Error("a function as result")
		}
		return nil
	}, nil)
}

func TestInput(t *testing.T) {
	type input struct {
		N int `json:"n"`
	}
	h := guesttest.New(t, []byte(everything))
	for text, ok := range map[string]bool{
		``: true, `{}`: true, `{"n":3}`: true, `{"N":3}`: false, `{"n":3,"m":1}`: false, `{"n":1.5}`: false, `{"n":1,"n":2}`: false, `[]`: false, `x`: false,
	} {
		h.Run(func(r *guest.Run) error {
			var in input
			if err := r.Input(&in); (err == nil) != ok {
				t.Errorf("%q: %v", text, err)
			}
			if string(r.InputBytes()) != text {
				t.Errorf("%q came as %q", text, r.InputBytes())
			}
			return nil
		}, []byte(text))
	}
}

// brokenHost answers what no host may.
type brokenHost struct{ reply string }

func (b brokenHost) Call([]byte) []byte { return []byte(b.reply) }
func (b brokenHost) Input() []byte      { return nil }
func (b brokenHost) SetResult([]byte)   {}

func TestBrokenReplies(t *testing.T) {
	for _, reply := range []string{``, `{}`, `[]`, `{"ok":`, `{"ok":[]}`, `{"ok":{"unix_ms":"x"}}`} {
		guest.Execute(brokenHost{reply}, func(r *guest.Run) error {
			if _, err := r.Now(); err == nil || code(err) != "" {
				t.Errorf("%q: %v", reply, err)
			}
			return nil
		})
	}
}
