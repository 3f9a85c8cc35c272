package canon_test

import (
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors/canon"
)

func refusedURLs() []string {
	return []string{
		"", "example.com", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "https:/example.com", "https:example.com",
		"https://", "https:///x", "https://?q", "https://user@example.com/", "https://user:pw@example.com/", "https://example.com@evil.example/",
		"https://example.com/#x", "https://example.com\\@evil.example/", "https://exa mple.com/", "https://example.com/a b",
		"https://example.com/\r\nX: y", "https://example.com/\x00", "https://example.com/\u202ex", "https://example.com/\u200b",
		"https://example.com/..", "https://example.com/a/../b", "https://example.com/./a", "https://example.com/%2e%2e/b",
		"https://example.com/.%2E/b", "https://example.com/..;/b", "https://example.com/a%2Fb", "https://example.com/a%5cb",
		"https://example.com/%00", "https://example.com/%0d%0a", "https://example.com/%252e%252e/", "https://example.com/%c0%ae%c0%ae/",
		"https://example.com/%zz", "https://example.com/%2", "https://example.com:0/", "https://example.com:99999/", "https://example.com:080/",
		"https://example.com:/", "https://example.com:+80/", "https://2130706433/", "https://0x7f000001/", "https://127.1/", "https://0177.0.0.1/",
		"https://1.2.3/", "https://1.2.3.4.5/", "https://[::1", "https://[fe80::1%25eth0]/", "https://[127.0.0.1]/", "https://ex%61mple.com/",
		"https://example..com/", "https://.example.com/", "https://example.com./", "https://-a.example/", "https://a_b.example/",
		"https://example.com/" + strings.Repeat("a", canon.MaxURL),
	}
}

// Law 1.
func TestRefusesAndDoesNotRepair(t *testing.T) {
	for _, s := range refusedURLs() {
		if got, err := canon.URL(s); err == nil {
			t.Errorf("URL %q was accepted as %q", s, got.URL)
		}
	}
	for _, s := range refusedPaths() {
		if got, err := canon.Path(s); err == nil {
			t.Errorf("path %q was accepted as %q", s, got)
		}
	}
	for _, s := range refusedAddresses() {
		if got, err := canon.Address(s); err == nil {
			t.Errorf("address %q was accepted as %q", s, got)
		}
	}
}

func TestURLForms(t *testing.T) {
	for in, want := range map[string]string{
		"HTTPS://Example.COM":              "https://example.com/",
		"https://example.com:443/a":        "https://example.com/a",
		"http://example.com:80":            "http://example.com/",
		"http://example.com:443/":          "http://example.com:443/",
		"https://example.com?":             "https://example.com/",
		"https://example.com?a=b":          "https://example.com/?a=b",
		"https://example.com/%41%7e%2d":    "https://example.com/A~-",
		"https://example.com/%c3%a9":       "https://example.com/%C3%A9",
		"https://example.com/é":            "https://example.com/%C3%A9",
		"https://bücher.example/":          "https://xn--bcher-kva.example/",
		"https://example.com/a*b":          "https://example.com/a%2Ab",
		"https://example.com/?u=http://x/": "https://example.com/?u=http://x/",
		"https://example.com/a;b=c,d":      "https://example.com/a;b=c,d",
		"https://example.com/?a=%2B+%26":   "https://example.com/?a=%2B+%26",
		"https://[2001:DB8:0::1]:8443/":    "https://[2001:db8::1]:8443/",
		"http://192.0.2.1/x":               "http://192.0.2.1/x",
	} {
		got, err := canon.URL(in)
		if err != nil || got.URL != want {
			t.Errorf("%q: %q %v, want %q", in, got.URL, err, want)
		}
	}
}

func refusedPaths() []string {
	return []string{
		"/", "/etc/passwd", "..", "../x", "a/..", "a/../b", "a/./b", "./a", "a//b", "a/", "//a", `a\b`, `..\x`, "C:/x", "a:b", "a*b", "a/**",
		"a\x00b", "a\nb", "a\u202eb", "a\u200bb", "a\U000e0041b", "a\ufeffb", "\xff", strings.Repeat("a", 256), strings.Repeat("a/", 600) + "a",
	}
}

func refusedAddresses() []string {
	return []string{
		"", "ann", "@example.com", "ann@", "ann@host", "Ann <ann@example.com>", "<ann@example.com>", "ann@example.com, bob@example.com",
		"ann@example.com bob@example.com", "a@b@example.com", `"ann"@example.com`, `"a b"@example.com`, "ann(comment)@example.com", "group:ann@example.com;",
		"ann@[192.0.2.1]", "ann@192.0.2.1", "ann.@example.com", ".ann@example.com", "a..b@example.com", "ann@example..com", "ann@-x.example", "ann@x-.example",
		"ann@example.com\r\nBcc: eve@example.com", "ann\n@example.com", "ann@exa mple.com", "ann@example.com>", "änn@example.com", "ann@exämple.com",
		"ann@еxample.com", "ann%evil.example@example.com", "evil!ann@example.com", "@relay:ann@example.com", "ann@xn--.com", "a*b@example.com", "a/b@example.com",
		"ann@example.com\x00", strings.Repeat("a", 65) + "@example.com", "ann@" + strings.Repeat("a.", 130) + "com", "|sh@example.com", "ann@example_x.com",
	}
}

func TestAddressForms(t *testing.T) {
	for in, want := range map[string]string{
		"Ann@Example.COM": "ann@example.com", "a.b+c@x-y.example": "a.b+c@x-y.example", "ann@xn--bcher-kva.example": "ann@xn--bcher-kva.example",
	} {
		if got, err := canon.Address(in); err != nil || got != want {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
}

// Law 2, and 3 for URLs: what the library writes is the form, and the resource is
// one that grants can cover.
func TestAFormIsItsOwnForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkURL(t, rapid.SampledFrom([]string{"http", "https", "HTTPS"}).Draw(t, "scheme")+"://"+
			rapid.StringMatching(`[a-zA-Z0-9é.-]{1,20}(:[0-9]{1,5})?`).Draw(t, "host")+
			rapid.StringMatching(`(/[a-zA-Z0-9.%;~*é!$&'()+,=:@|"\[\] -]{0,12}){0,5}`).Draw(t, "path")+
			rapid.StringMatching(`(\?[a-z0-9%&=/?*+é -]{0,20})?`).Draw(t, "query"))
	})
}

func checkURL(t interface {
	Fatalf(string, ...any)
	Helper()
}, raw string,
) {
	t.Helper()
	a, err := canon.URL(raw)
	if err != nil {
		return
	}
	b, err := canon.URL(a.URL)
	if err != nil || a != b {
		t.Fatalf("%q: %+v, again %+v %v", raw, a, b, err)
	}
	req, err := http.NewRequest(http.MethodGet, a.URL, nil)
	if err != nil || req.URL.String() != a.URL || req.URL.Host != a.Host {
		t.Fatalf("%q: the library reads %v %v", raw, req, err)
	}
	if got := a.Origin + req.URL.RequestURI(); got != a.URL {
		t.Fatalf("%q: the library writes %q", raw, got)
	}
	if !strings.HasPrefix(a.URL, a.Resource) || !strings.HasPrefix(a.Resource, a.Origin+"/") || strings.Contains(a.Resource, "?") {
		t.Fatalf("%q: %+v", raw, a)
	}
	if err := abi.CheckResource(a.Resource); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	// Nothing climbs: a server that decodes and resolves the path stays where the
	// grant said.
	plain, err := url.PathUnescape(strings.TrimPrefix(a.Resource, a.Origin))
	if err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	for seg := range strings.SplitSeq(plain, "/") {
		if seg == ".." || seg == "." {
			t.Fatalf("%q: dot segment in %q", raw, plain)
		}
	}
}

// Law 3 for paths.
func TestAPathStaysBelowItsFolder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkPath(t, rapid.StringMatching(`[a-zé./\\ :*~-]{0,30}`).Draw(t, "path"))
	})
}

func checkPath(t interface {
	Fatalf(string, ...any)
	Helper()
}, raw string,
) {
	t.Helper()
	p, err := canon.Path(raw)
	if err != nil {
		return
	}
	if again, err := canon.Path(p); err != nil || again != p {
		t.Fatalf("%q: %q, again %q %v", raw, p, again, err)
	}
	if path.Clean(p) != p || !filepath.IsLocal(filepath.FromSlash(p)) {
		t.Fatalf("%q: %q is not local", raw, p)
	}
	if err := abi.CheckResource("files:docs/" + p); err != nil && p != "." {
		t.Fatalf("%q: %v", raw, err)
	}
}

func checkAddress(t interface {
	Fatalf(string, ...any)
	Helper()
}, raw string,
) {
	t.Helper()
	a, err := canon.Address(raw)
	if err != nil {
		return
	}
	if again, err := canon.Address(a); err != nil || again != a || !strings.EqualFold(a, raw) {
		t.Fatalf("%q: %q, again %q %v", raw, a, again, err)
	}
	if strings.ContainsAny(a, " <>,;:\"()[]\\\r\n\t") {
		t.Fatalf("%q: %q", raw, a)
	}
	if err := abi.CheckResource("mail:" + a); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
}

func FuzzURL(f *testing.F) {
	for _, s := range refusedURLs() {
		f.Add(s)
	}
	f.Add("https://example.com/%41;b?c=d*")
	f.Fuzz(func(t *testing.T, s string) { checkURL(t, s) })
}

func FuzzPath(f *testing.F) {
	for _, s := range refusedPaths() {
		f.Add(s)
	}
	f.Add("a/b c/d.md")
	f.Fuzz(func(t *testing.T, s string) { checkPath(t, s) })
}

func FuzzAddress(f *testing.F) {
	for _, s := range refusedAddresses() {
		f.Add(s)
	}
	f.Add("a.b+c@x-y.example")
	f.Fuzz(func(t *testing.T, s string) { checkAddress(t, s) })
}
