package egress

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

// maxComments bounds how deep HTML in conditional comments is opened.
const maxComments = 4

// destinations finds where a mail program would go for a piece of HTML, or let its
// reader go, beyond the links that are spelled out: links without a scheme, addresses
// in styles, forms, scripts, a base. Each is listed or warned of. What a browser
// forgives (spaces, backslashes, missing slashes) is forgiven here.
func (v *Preview) destinations(source string) { v.markup(source, 0) }

func (v *Preview) markup(source string, depth int) {
	if depth > maxComments {
		v.warn("Content: comments of comments, which may hold links")
		return
	}
	z := html.NewTokenizer(strings.NewReader(source))
	style, anchor := false, ""
	for {
		switch z.Next() {
		case html.ErrorToken:
			return
		case html.TextToken:
			text := string(z.Text())
			if style {
				v.css(text)
			}
			if anchor != "" {
				v.pretends(text, anchor)
			}
		case html.CommentToken: // some mail programs read what is in a conditional one
			if text := string(z.Text()); strings.Contains(text, "<") {
				v.warn("Content: a comment holds HTML, which some mail programs show")
				v.markup(text, depth+1)
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			style = style && string(name) != "style"
			if string(name) == "a" {
				anchor = ""
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			t := z.Token()
			style = t.Data == "style"
			switch t.Data {
			case "base":
				v.warn("Content: a <base> changes where the links that follow lead")
			case "form", "input", "button", "textarea":
				v.warn("Content: a form; what its reader types is sent")
			case "script", "iframe", "object", "embed", "link", "frame":
				v.warn(fmt.Sprintf("Content: a <%s>, which fetches or runs something", t.Data))
			}
			for _, a := range t.Attr {
				to := v.attribute(a.Key, a.Val)
				if t.Data == "a" && a.Key == "href" {
					anchor = to
				}
			}
		case html.DoctypeToken:
		}
	}
}

// leads are the attributes whose value is an address.
var leads = []string{
	"href", "xlink:href", "src", "srcset", "imagesrcset", "action", "formaction", "background", "poster", "data", "cite", "ping", "longdesc", "lowsrc", "dynsrc", "manifest", "codebase",
}

var (
	refresh = regexp.MustCompile(`(?i)url\s*=\s*['"]?([^'"]+)`)
	cssURL  = regexp.MustCompile(`(?i)url\(\s*['"]?([^'")]*)|@import\s+['"]([^'"]*)`)
	schemes = regexp.MustCompile(`^(?i)([a-z][a-z0-9+.-]*):`)
)

// attribute looks at one value, whatever its name is, and returns the host that it
// leads to.
func (v *Preview) attribute(name, value string) (host string) {
	switch {
	case name == "style":
		v.css(value)
	case name == "content":
		for _, m := range refresh.FindAllStringSubmatch(value, -1) {
			v.warn("Content: a page that moves on by itself")
			v.address(m[1], true)
		}
	case name == "srcdoc":
		v.markup(value, 1)
	case strings.HasPrefix(name, "on"):
		v.warn("Content: a script in an attribute")
	case name == "srcset", name == "imagesrcset", name == "ping":
		for _, part := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
			v.address(part, true)
		}
	default:
		return v.address(value, slices.Contains(leads, name))
	}
	return ""
}

func (v *Preview) css(text string) {
	if strings.Contains(text, `\`) {
		v.warn("Content: a style with escapes, which may hide an address")
	}
	for _, m := range cssURL.FindAllStringSubmatch(text, -1) {
		v.address(m[1]+m[2], true)
	}
}

// address lists where a value leads. sure says that a mail program takes it for an
// address; otherwise it has to look like one.
func (v *Preview) address(value string, sure bool) (host string) {
	value = strings.Map(func(r rune) rune { // as browsers do
		switch r {
		case '\t', '\n', '\r':
			return -1
		case '\\':
			return '/'
		}
		return r
	}, strings.TrimFunc(value, func(r rune) bool { return r <= ' ' }))
	scheme := ""
	if m := schemes.FindStringSubmatch(value); m != nil {
		scheme, value = strings.ToLower(m[1]), value[len(m[0]):]
	}
	switch scheme {
	case "":
		if !strings.HasPrefix(value, "//") {
			return "" // inside the message, or relative to a base that is warned of
		}
		v.warn("Content: a link without a scheme")
	case "http", "https", "ftp", "ws", "wss":
	case "mailto", "tel", "sms":
		shown, _ := visible(scheme + ":" + strings.SplitN(value, "?", 2)[0])
		v.lead(shown)
		return ""
	case "javascript", "vbscript", "data", "file", "blob":
		v.warn(fmt.Sprintf("Content: an address of the kind %s:, which holds or runs something itself", scheme))
		return ""
	case "cid":
		return ""
	default:
		if sure {
			v.warn(fmt.Sprintf("Content: an address of the unknown kind %.20q", scheme))
		}
		return ""
	}
	u, err := url.Parse("https://" + strings.TrimLeft(value, "/"))
	if err != nil || u.Host == "" {
		v.warn("Content: a link whose host cannot be read")
		return ""
	}
	v.links(u.String())
	return u.Hostname()
}

func (v *Preview) lead(shown string) {
	if !slices.Contains(v.Links, shown) {
		v.Links = append(v.Links, shown)
		slices.Sort(v.Links)
	}
}

// pretends warns of a link whose words name another host than it leads to.
func (v *Preview) pretends(text, host string) {
	for _, l := range linkForm.FindAllString(text, -1) {
		if !strings.Contains(l, "://") {
			l = "https://" + l
		}
		if u, err := url.Parse(l); err == nil && u.Host != "" && !strings.EqualFold(strings.TrimPrefix(u.Hostname(), "www."), strings.TrimPrefix(host, "www.")) {
			named, _ := visible(u.Hostname())
			shown, _ := visible(host)
			v.warn(fmt.Sprintf("Content: a link that names %s leads to %s", named, shown))
		}
	}
}
