package egress_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
)

func field(v egress.Preview, name string) string {
	var all []string
	for _, f := range v.Fields {
		if f.Name == name {
			all = append(all, f.Value)
		}
	}
	return strings.Join(all, "|")
}

func mailPlan(data string) connectors.Plan {
	p := letter("a@example.com", "b@xn--80ak6aa92e.com")
	p.Frozen.SMTP.Data = []byte(strings.ReplaceAll(data, "\n", "\r\n"))
	return p
}

func warned(v egress.Preview, part string) bool {
	return strings.Contains(strings.Join(v.Warnings, "\n"), part)
}

func TestMailPreviewIsTheEnvelopeAndTheDecodedText(t *testing.T) {
	op := operation(abi.EffectSend)
	op.Renderer = connectors.RenderMail
	v := egress.Render(mailPlan("From: monroe@example.com\nTo: a@example.com, c@example.com\nSubject: =?utf-8?B?R3LDvMOfZQ==?=\nX-Extra: y\n"+
		"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"+
		"Hi =E2=80=AE evil\u200b =F3=A0=81=81 p=D0=B0ypal\nhttps://bank.example@evil.example/x and http://p\u0430ypal.com/\n"), op)
	if field(v, "From") != "monroe@example.com" || field(v, "To") != "a@example.com|b@xn--80ak6aa92e.com" || field(v, "Subject") != "Grüße" || field(v, "X-Extra") != "y" || v.Raw {
		t.Errorf("%+v", v)
	}
	for _, want := range []string{"⟦U+202E⟧", "⟦U+200B⟧", "⟦U+E0041⟧", "p⟦\u0430 U+0430⟧ypal"} {
		if !strings.Contains(v.Body, want) {
			t.Errorf("%s is not visible in %q", want, v.Body)
		}
	}
	for _, want := range []string{
		"direction", "width", "tag characters", "mixes alphabets", "leads to evil.example", "also goes to b@xn--80ak6aa92e.com",
		"shows c@example.com, who does not get it", "xn--80ak6aa92e.com is written with other letters",
	} {
		if !warned(v, want) {
			t.Errorf("no warning of %q in %q", want, v.Warnings)
		}
	}
	if strings.Join(v.Links, " ") != "evil.example p⟦\u0430 U+0430⟧ypal.com (xn--pypal-4ve.com)" {
		t.Errorf("links %q", v.Links)
	}
	d, _ := mailPlan("").Digest()
	if v.Digest == d || v.Digest == (abi.Digest{}) {
		t.Error("the digest is not that of the plan")
	}
}

func TestWhatNoRendererCoversIsRaw(t *testing.T) {
	op := operation(abi.EffectSend)
	op.Renderer = connectors.RenderMail
	for name, p := range map[string]connectors.Plan{
		"html":         mailPlan("From: monroe@example.com\nContent-Type: text/html\n\n<b>x</b>\n"),
		"no header":    mailPlan("not a message"),
		"charset":      mailPlan("Content-Type: text/plain; charset=utf-7\n\n+ADw-\n"),
		"encoding":     mailPlan("Content-Transfer-Encoding: x-odd\n\nx\n"),
		"other kind":   httpPlan("POST", "https://example.com/"),
		"two subjects": mailPlan("Subject: a\nSubject: b\n\nx\n"),
	} {
		v := egress.Render(p, op)
		if !v.Raw || v.Renderer != connectors.RenderRaw || !warned(v, "no renderer") {
			t.Errorf("%s: %+v", name, v)
		}
		if p.Frozen.SMTP != nil && (field(v, "To") != "a@example.com|b@xn--80ak6aa92e.com" || strings.ReplaceAll(v.Body, "\n", "\r\n") != string(p.Frozen.SMTP.Data)) {
			t.Errorf("%s: %q", name, v.Body)
		}
	}
}

func TestHTTPPreviewShowsAllOfIt(t *testing.T) {
	p := httpPlan("POST", "https://xn--80ak6aa92e.com/a?b=c")
	p.Account = "con_1"
	p.Frozen.HTTP.Header = []connectors.Header{{Name: "X-One", Value: "a\u202eb"}}
	p.Frozen.HTTP.Credential = &connectors.Slot{Connection: "con_1", Header: "Authorization", Prefix: "Bearer "}
	p.Frozen.HTTP.Body = []byte(strings.Repeat("x", 100_000) + "end")
	p.Ceiling = 12_500
	v := egress.Render(p, operation(abi.EffectWrite))
	if v.Raw || field(v, "X-One") != "a⟦U+202E⟧b" || !strings.HasSuffix(v.Body, "xend") || len(v.Body) != 100_003 || field(v, "Costs at most") != "$0.0125" {
		t.Errorf("%+v", v.Fields)
	}
	if !strings.Contains(field(v, "Authorization"), "con_1") || !warned(v, "written with other letters") || !warned(v, "X-One: ") {
		t.Errorf("%q %q", field(v, "Authorization"), v.Warnings)
	}
	p.Frozen.HTTP.Body = []byte{0xff, 0x00}
	if v := egress.Render(p, operation(abi.EffectWrite)); !v.Raw || !strings.Contains(v.Body, "ff 00") || field(v, "URL") != p.Frozen.HTTP.URL {
		t.Errorf("%+v", v)
	}
}

const multi = "From: monroe@example.com\nTo: a@example.com\nSubject: x\nContent-Type: multipart/mixed; boundary=B\n\n" +
	"--B\nContent-Type: multipart/alternative; boundary=\"C\"\n\n--C\n\nplain words\n--C\nContent-Type: text/html; charset=utf-8\n\n" +
	"<a href=\"https&#58;//evil.example/x\">https://bank.example/</a>\n--C--\n\n" +
	"--B\nContent-Type: application/pdf\nContent-Disposition: attachment; filename=\"pay\u202e.pdf\"\nX-Odd: seen\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n--B--\n"

// Law 5: MIME is decoded, every part and every header of one is shown, attachments
// are listed by what they are.
func TestMailOfSeveralPartsShowsEachOfThem(t *testing.T) {
	op := operation(abi.EffectSend)
	op.Renderer = connectors.RenderMail
	v := egress.Render(mailPlan(multi), op)
	if v.Raw || !strings.Contains(v.Body, "plain words") || !strings.Contains(v.Body, "<a href=") || strings.Contains(v.Body, "aGVsbG8") {
		t.Fatalf("%+v", v)
	}
	const sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of hello
	if got := field(v, "Attachment"); !strings.Contains(got, "application/pdf, 5 bytes, SHA-256 "+sum) || strings.Contains(got, "\u202e") {
		t.Errorf("attachment %q", got)
	}
	if field(v, "Part 2, X-Odd") != "seen" || !strings.Contains(field(v, "Part 1.2, Content-Type"), "text/html") {
		t.Errorf("%+v", v.Fields)
	}
	if strings.Join(v.Links, " ") != "bank.example evil.example" {
		t.Errorf("links %q", v.Links)
	}
	for _, want := range []string{"HTML", "attachment", "direction"} {
		if !warned(v, want) {
			t.Errorf("no warning of %q in %q", want, v.Warnings)
		}
	}
}

// Wherever HTML leads is listed or warned of, also where no scheme, no link and no host
// is spelled out.
func TestHiddenDestinationsOfHTMLAreShown(t *testing.T) {
	op := operation(abi.EffectSend)
	op.Renderer = connectors.RenderMail
	for markup, want := range map[string]struct{ link, warning string }{
		`<p>hello</p>`:                                                          {"", ""},
		`<a href="//evil.example/x">here</a>`:                                   {"evil.example", "without a scheme"},
		`<a href='//evil.example'>here</a>`:                                     {"evil.example", "without a scheme"},
		`<a href=//evil.example>here</a>`:                                       {"evil.example", "without a scheme"},
		`<a/href=//evil.example>here</a>`:                                       {"evil.example", "without a scheme"},
		`<a href="\\evil.example">here</a>`:                                     {"evil.example", "without a scheme"},
		`<a href="/\evil.example">here</a>`:                                     {"evil.example", "without a scheme"},
		"<a href=\" /\n/evil.example\">here</a>":                                {"evil.example", "without a scheme"},
		`<a href="https:evil.example">here</a>`:                                 {"evil.example", ""},
		`<a href="https:/evil.example">here</a>`:                                {"evil.example", ""},
		`<a href="&#47;&#47;evil.example">here</a>`:                             {"evil.example", "without a scheme"},
		"<a href=\"ht\ntps://evil.example\">here</a>":                           {"evil.example", ""},
		`<img srcset="//evil.example/a 1x, b 2x">`:                              {"evil.example", "without a scheme"},
		`<table background=//evil.example/p.gif>`:                               {"evil.example", "without a scheme"},
		`<p style="background:url(//evil.example/p)">`:                          {"evil.example", "without a scheme"},
		`<style>@import '//evil.example/s.css';</style>`:                        {"evil.example", "without a scheme"},
		`<p style="background:u\72l(x)">`:                                       {"", "escapes"},
		`<meta http-equiv=refresh content="0;url=//evil.example">`:              {"evil.example", "moves on by itself"},
		`<svg><a xlink:href="//evil.example">x</a></svg>`:                       {"evil.example", "without a scheme"},
		`<!--[if mso]><a href="//evil.example">x</a><![endif]-->`:               {"evil.example", "a comment holds HTML"},
		`<base href="//evil.example/"><a href="x">here</a>`:                     {"evil.example", "<base>"},
		`<form action="//evil.example"><input name=password></form>`:            {"evil.example", "a form"},
		`<a href="javascript:alert(1)">here</a>`:                                {"", "javascript:"},
		`<a href="data:text/html,x">here</a>`:                                   {"", "data:"},
		`<a href="mailto:eve@evil.example?body=x">here</a>`:                     {"mailto:eve@evil.example", ""},
		`<a href="odd:thing">here</a>`:                                          {"", "unknown kind"},
		`<p onclick="x()">here</p>`:                                             {"", "a script in an attribute"},
		`<iframe srcdoc="<a href=//evil.example>x</a>"></iframe>`:               {"evil.example", "<iframe>"},
		`<a href="https://evil.example/">https://www.bank.example/</a>`:         {"evil.example", "names www.bank.example leads to evil.example"},
		`<a href="https://www.bank.example/login">see https://bank.example</a>`: {"www.bank.example", ""},
		`<p data-x="//evil.example/x">here</p>`:                                 {"evil.example", "without a scheme"},
		`<a href="//">here</a>`:                                                 {"", "cannot be read"},
	} {
		head := "From: monroe@example.com\nTo: a@example.com\nSubject: x\nContent-Type: multipart/alternative; boundary=B\n\n--B\n\nplain\n--B\nContent-Type: text/html\n\n"
		v := egress.Render(mailPlan(head+markup+"\n--B--\n"), op)
		if v.Raw {
			t.Errorf("%s: raw", markup)
		}
		if want.link == "" && len(v.Links) > 0 || want.link != "" && !slices.Contains(v.Links, want.link) {
			t.Errorf("%s: leads to %q", markup, v.Links)
		}
		if want.warning != "" && !warned(v, want.warning) || want.warning == "" && len(v.Warnings) != 3 { // as for any HTML to these people
			t.Errorf("%s: warned of %q", markup, v.Warnings)
		}
	}
}

// Nothing hides in a message of several parts: what is not shown makes it raw.
func TestWhatHidesBetweenPartsMakesAMessageRaw(t *testing.T) {
	op := operation(abi.EffectSend)
	op.Renderer = connectors.RenderMail
	for name, change := range map[string][2]string{
		"before the first boundary": {"boundary=B\n\n--B\n", "boundary=B\n\nhidden\n--B\n"},
		"after the last":            {"--B--\n", "--B--\nhidden\n"},
		"an early end":              {"--B\nContent-Type: application", "--B--\n--B\nContent-Type: application"},
		"no end":                    {"--B--\n", ""},
		"broken base64":             {"aGVsbG8=", "aGVsbG8=!hidden"},
		"after the padding":         {"aGVsbG8=", "aGVsbG8=aGVsbG8="},
		"odd encoding":              {"Encoding: base64", "Encoding: x-odd"},
		"two types":                 {"X-Odd: seen", "Content-Type: text/plain"},
		"broken type":               {"Content-Type: application/pdf", "Content-Type: application/pdf; ="},
		"broken disposition":        {"attachment; filename", "attachment; ; ="},
		"no boundary":               {"boundary=B", "b=B"},
	} {
		if !strings.Contains(multi, change[0]) {
			t.Fatalf("%s: nothing to change", name)
		}
		v := egress.Render(mailPlan(strings.Replace(multi, change[0], change[1], 1)), op)
		if !v.Raw || strings.Contains(change[1], "hidden") && !strings.Contains(v.Body, "hidden") {
			t.Errorf("%s: %+v", name, v)
		}
	}
	deep := "Content-Type: text/plain\n\nx\n"
	for i := range 6 {
		b := string(rune('a' + i))
		deep = "Content-Type: multipart/mixed; boundary=" + b + "\n\n--" + b + "\n" + deep + "--" + b + "--\n"
	}
	if v := egress.Render(mailPlan(deep), op); !v.Raw {
		t.Error("six levels of parts were opened")
	}
}
