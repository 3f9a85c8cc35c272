package main_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/getmonroe/monroe/host"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// web is a server of ours on loopback that notes which paths were asked for.
type web struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newWeb(t *testing.T) *web {
	t.Helper()
	w := &web{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r.URL.Path)
		w.mu.Unlock()
		if r.URL.Path == "/open/away" {
			http.Redirect(rw, r, "/closed/page", http.StatusFound)
			return
		}
		_, _ = fmt.Fprint(rw, "the page "+r.URL.Path)
	}))
	t.Cleanup(w.Close)
	return w
}

// asked are the paths since the last time.
func (w *web) asked() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.seen = nil }()
	return strings.Join(w.seen, " ")
}

// reads is a guest that makes requests one after the other, and whose result is the
// last answer.
func reads(name string, requests ...string) []byte {
	b, im := imports()
	var code [][]byte
	for i, r := range requests {
		at := int32(i * 1024)
		b.Data(at, []byte(r))
		code = append(code, wt.I32Const(at), wt.I32Const(int32(len(r))), wt.I32Const(32768), wt.I32Const(16384), wt.Call(im.Call), wt.Wrap, wt.LocalSet(0))
	}
	b.Memory(1)
	b.Export("memory", wt.KindMemory, 0)
	b.Custom("monroe.manifest", fmt.Appendf(nil, `{"abi":1,"name":%q,"version":"1.0.0","description":"reads","ops":["http.fetch","tool.call"],"operations":[{"operation":"http.fetch","effect":"read","resource":"http:**"},{"operation":"files.read","effect":"read","resource":"files:**"}]}`, name))
	code = append(code, wt.I32Const(1), wt.I32Const(32768), wt.LocalGet(0), wt.Call(im.Write), wt.Drop, wt.I32Const(0))
	b.Export("monroe_run", wt.KindFunc, b.Func("", "i", 2, code...))
	return b.Bytes()
}

func fetch(url string) string { return fmt.Sprintf(`{"args":{"url":%q},"op":"http.fetch","v":1}`, url) }

// TestLinuxPagesOfTheWeb: a page within the grant is fetched, and nothing else is: not a
// page beside it, not where a redirect leads, not an address inside that nobody opened, not
// one that would read what the run holds.
func TestLinuxPagesOfTheWeb(t *testing.T) {
	open, inside := newWeb(t), newWeb(t)
	d := serve(t, fmt.Sprintf("http: {private: [%q]}\n", strings.TrimPrefix(open.URL, "http://")))
	const readPlan = `{"args":{"args":{"folder":"docs","path":"plan.md"},"operation":"files.read"},"op":"tool.call","v":1}`
	guests := map[string][]string{
		"granted":  {fetch(open.URL + "/open/page")},
		"beside":   {fetch(open.URL + "/closed/page")},
		"redirect": {fetch(open.URL + "/open/away")},
		"climbing": {fetch(open.URL + "/open/../closed/page")},
		"inside":   {fetch(inside.URL + "/open/page")},
		"holding":  {readPlan, fetch(open.URL + "/open/page?q=friday")},
	}
	var grants []string
	for name, requests := range guests {
		d.push(reads(name, requests...))
		for _, w := range []*web{open, inside} {
			grants = append(grants, fmt.Sprintf(`skill: %s, operation: http.fetch, resource: "%s/open/**"`, name, w.URL))
		}
		grants = append(grants, fmt.Sprintf(`skill: %s, operation: files.read, resource: "files:docs/**"`, name))
	}
	d.apply(d.config(grants...))
	named := fmt.Sprintf(`{"pages":[%q,%q]}`, open.URL, inside.URL) // by the person: these hosts may read it
	for _, c := range []struct{ name, says, asked string }{
		{"granted", "the page /open/page", "/open/page"},
		{"beside", `"code":"SCOPE"`, ""},
		{"redirect", `/closed/page`, "/open/away"}, // it is told where to, and has to ask again
		{"climbing", `dot segments are refused`, ""},
		{"inside", "it is not a public one", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := d.finished(d.start(c.name, named))
			if v.State != host.StateSucceeded || !strings.Contains(string(v.Result), c.says) {
				t.Errorf("the run %s %s: %s, want %s", v.State, v.Failure, v.Result, c.says)
			}
			if got := open.asked() + inside.asked(); got != c.asked {
				t.Errorf("the servers were asked for %q, want %q", got, c.asked)
			}
		})
	}
	a := d.asked(d.start("holding", named))
	if got := open.asked(); a.Operation != "http.fetch" || got != "" {
		t.Errorf("after a read: %s was asked for %q before the answer", a.Operation, got)
	}
	d.verified()
}
