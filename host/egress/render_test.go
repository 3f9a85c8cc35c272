package egress_test

import (
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
	for _, want := range []string{"⟦U+202E⟧", "⟦U+200B⟧", "⟦U+E0041⟧"} {
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
	if strings.Join(v.Links, " ") != "evil.example pаypal.com (xn--pypal-4ve.com)" {
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
