package egress

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

// Preview is what a person sees before deciding. It is made from the frozen bytes
// alone and leaves nothing out.
type Preview struct {
	Renderer connectors.Renderer `json:"renderer"`
	// Digest is the action digest that an approval covers.
	Digest abi.Digest `json:"-"`
	// Fields are shown in this order; their values are made visible.
	Fields []Field `json:"fields"`
	// Body is the content, made visible. Raw says that no renderer covers it, so
	// that it is shown as it is on the wire or in hexadecimal.
	Body string `json:"body,omitempty"`
	Raw  bool   `json:"raw,omitempty"`
	// Links are the hosts that links in the content really lead to, sorted.
	Links []string `json:"links,omitempty"`
	// Warnings are sentences about what could deceive.
	Warnings []string `json:"warnings,omitempty"`
}

// Field is one line of a preview.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Render shows a plan by the renderer that its operation names. Where that one does
// not fit the frozen kind, or cannot read all of it, the raw bytes are shown and
// flagged.
func Render(p connectors.Plan, op connectors.Operation) Preview {
	v := &Preview{Renderer: op.Renderer}
	if d, err := p.Digest(); err == nil {
		v.Digest = d
	} else {
		v.warn("the bytes are not well formed and will not be sent")
	}
	v.field("Operation", fmt.Sprintf("%s (%s)", op.Name, op.Effect))
	v.field("Destination", p.Destination)
	if p.Account != "" {
		v.field("Account", p.Account)
	}
	covered := false
	switch f := p.Frozen; {
	case f.HTTP != nil && op.Renderer == connectors.RenderHTTP:
		covered = v.http(f.HTTP)
	case f.SMTP != nil && op.Renderer == connectors.RenderMail:
		covered = v.mail(f.SMTP.From, f.SMTP.To, f.SMTP.Data)
	case f.Maildir != nil && op.Renderer == connectors.RenderMail:
		covered = v.mail(f.Maildir.From, f.Maildir.To, f.Maildir.Data)
	case f.FileRead != nil && op.Renderer == connectors.RenderFile:
		v.field("Read file", f.FileRead.Folder+"/"+f.FileRead.Path)
		covered = true
	case f.FileList != nil && op.Renderer == connectors.RenderFile:
		v.field("List files", f.FileList.Folder+"/"+f.FileList.Path)
		covered = true
	}
	if !covered {
		v.Renderer, v.Raw = connectors.RenderRaw, true
		v.warn("no renderer covers these bytes; they are shown as they leave")
		v.raw(p.Frozen)
	}
	if p.Ceiling > 0 {
		v.field("Costs at most", p.Ceiling.String())
	}
	slices.Sort(v.Warnings)
	v.Warnings = slices.Compact(v.Warnings)
	return *v
}

func (v *Preview) warn(s string) { v.Warnings = append(v.Warnings, s) }

func (v *Preview) field(name, value string) {
	shown, found := visible(value)
	for _, f := range found {
		v.warn(name + ": " + f)
	}
	v.Fields = append(v.Fields, Field{name, shown})
}

func (v *Preview) body(s string) {
	shown, found := visible(s)
	for _, f := range found {
		v.warn("Content: " + f)
	}
	if v.Body != "" {
		v.Body += "\n"
	}
	v.Body += shown
	v.links(s)
}

func (v *Preview) http(f *connectors.HTTPRequest) bool {
	v.field("Method", f.Method)
	v.field("URL", f.URL)
	if u, err := url.Parse(f.URL); err == nil {
		v.host(u.Hostname())
	}
	for _, h := range f.Header {
		v.field(h.Name, h.Value)
	}
	if c := f.Credential; c != nil {
		v.field(c.Header, c.Prefix+"(credential of "+c.Connection+", added when it is sent)")
	}
	if len(f.Body) == 0 {
		return true
	}
	if !utf8.Valid(f.Body) {
		return false
	}
	v.body(string(f.Body))
	return true
}

// raw shows what the other renderers could not. Fields that they added stay.
func (v *Preview) raw(f connectors.Frozen) {
	v.Body = ""
	v.field("Kind", f.Kind())
	switch {
	case f.HTTP != nil:
		if v.lacks("URL") {
			v.field("Method", f.HTTP.Method)
			v.field("URL", f.HTTP.URL)
			for _, h := range f.HTTP.Header {
				v.field(h.Name, h.Value)
			}
		}
		v.bytes(f.HTTP.Body)
	case f.SMTP != nil:
		v.envelope(f.SMTP.From, f.SMTP.To)
		v.bytes(f.SMTP.Data)
	case f.Maildir != nil:
		v.envelope(f.Maildir.From, f.Maildir.To)
		v.bytes(f.Maildir.Data)
	case f.FileRead != nil:
		v.field("Read file", f.FileRead.Folder+"/"+f.FileRead.Path)
	case f.FileList != nil:
		v.field("List files", f.FileList.Folder+"/"+f.FileList.Path)
	}
}

func (v *Preview) lacks(name string) bool {
	return !slices.ContainsFunc(v.Fields, func(f Field) bool { return f.Name == name })
}

func (v *Preview) bytes(b []byte) {
	if utf8.Valid(b) {
		v.body(string(b))
		return
	}
	v.body(hex.Dump(b))
}

var linkForm = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^\s<>"'\x60]+|\bwww\.[^\s<>"'\x60]+`)

// links lists where the links of a text lead. A link whose host a reader could
// mistake for another is a warning.
func (v *Preview) links(text string) {
	for _, l := range linkForm.FindAllString(text, -1) {
		if !strings.Contains(l, "://") {
			l = "https://" + l
		}
		u, err := url.Parse(l)
		if err != nil || u.Host == "" {
			v.warn("Content: a link whose host cannot be read")
			continue
		}
		if u.User != nil {
			v.warn("Content: a link with a name before its host, which looks like another host: it leads to " + u.Host)
		}
		v.host(u.Hostname())
		shown, _ := visible(u.Host)
		if ascii, err := idna.Lookup.ToASCII(u.Hostname()); err == nil && ascii != u.Hostname() && !strings.EqualFold(ascii, u.Hostname()) {
			shown += " (" + ascii + ")"
		}
		v.lead(shown)
	}
}

// host warns of names that are not what they look like.
func (v *Preview) host(name string) {
	uni, err := idna.ToUnicode(name)
	if err != nil {
		uni = name
	}
	if ascii, err := idna.ToASCII(name); err == nil && ascii != uni {
		shown, _ := visible(uni)
		v.warn(fmt.Sprintf("the host %s is written with other letters than a-z: %s", ascii, shown))
	}
	words, _ := mixedWords(uni)
	for _, w := range words {
		v.warn(fmt.Sprintf("the host name part %q mixes alphabets that look alike", w))
	}
}
