package main

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	// One level of brackets inside the target: wiki pages are called that.
	inlineLink = regexp.MustCompile(`\]\(\s*(?:<([^<>]+)>|([^()\s<]*(?:\([^()\s]*\)[^()\s]*)*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)`)
	definition = regexp.MustCompile(`^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?`)
	bareURL    = regexp.MustCompile(`https?://[^\s<>"'` + "`" + `|\\^{}\[\]]+`)
)

// findLinks collects the links of one line, code spans taken out.
func (s *scanner) findLinks(n int, plain string) {
	seen := map[string]bool{}
	add := func(target string) {
		if target != "" && !seen[target] && len(s.doc.links) < 2000 {
			seen[target] = true
			s.doc.links = append(s.doc.links, link{n, target})
		}
	}
	if s.form == formMarkdown || s.form == formText {
		for _, m := range inlineLink.FindAllStringSubmatch(plain, -1) {
			add(m[1] + m[2])
		}
		plain = inlineLink.ReplaceAllString(plain, "]")
		if m := definition.FindStringSubmatch(plain); m != nil && !strings.HasPrefix(strings.TrimSpace(plain), "[^") {
			add(m[1])
			return
		}
	}
	for _, u := range bareURL.FindAllString(plain, -1) {
		u = strings.TrimRight(u, ".,;:!?*_")
		for extra := strings.Count(u, ")") - strings.Count(u, "("); extra > 0 && strings.HasSuffix(u, ")"); extra-- {
			u = strings.TrimRight(u[:len(u)-1], ".,;:!?*_")
		}
		add(u)
	}
}

// linkTable is what the digest tells about links.
type linkTable struct {
	total  int
	hosts  []hostLinks
	broken []finding
}

// hostLinks are the links to one host, the most linked host first.
type hostLinks struct {
	host  string
	links []finding // Text is the URL; each URL once, at its first place
	times int
}

func (t linkTable) counts() linkCounts {
	c := linkCounts{Total: t.total, Hosts: []string{}, Broken: bounded(t.broken, 100)}
	for _, h := range t.hosts {
		if len(c.Hosts) < 100 {
			c.Hosts = append(c.Hosts, h.host)
		}
	}
	return c
}

// tabulate sorts the links of the documents by host, and checks those that stay
// inside the folder. Links to other places are never followed.
func tabulate(l *library, shown func(*document) bool) linkTable {
	var t linkTable
	byHost := map[string]*hostLinks{}
	first := map[string]bool{}
	for _, d := range l.docs {
		for _, k := range d.links {
			t.total++
			host, inside := placeOf(k.target)
			if inside {
				if l.whole {
					if why := l.check(d.path, k.target); why != "" {
						t.broken = append(t.broken, finding{d.path, k.line, clip(clean(k.target), 120) + why})
					}
				}
				continue
			}
			if host == "" || !shown(d) {
				continue
			}
			h := byHost[host]
			if h == nil {
				h = &hostLinks{host: host}
				byHost[host] = h
			}
			h.times++
			if u := clip(clean(k.target), 200); !first[u] {
				first[u] = true
				h.links = append(h.links, finding{d.path, k.line, u})
			}
		}
	}
	for _, h := range byHost {
		t.hosts = append(t.hosts, *h)
	}
	slices.SortFunc(t.hosts, func(a, b hostLinks) int {
		if a.times != b.times {
			return b.times - a.times
		}
		return strings.Compare(a.host, b.host)
	})
	return t
}

// placeOf returns the host of an absolute link, or that it stays inside the
// folder. Neither: nothing that a reader of the digest would follow.
func placeOf(target string) (host string, inside bool) {
	u, err := url.Parse(target)
	if err != nil {
		return "", false
	}
	switch {
	case u.Scheme == "http" || u.Scheme == "https":
		return strings.ToLower(clean(u.Hostname())), false
	case u.Scheme == "mailto":
		return "mail addresses", false
	case u.Scheme != "" || u.Host != "":
		return "", false
	}
	return "", u.Path != "" // a fragment alone points into the same document
}

// check says why a relative link is broken, or nothing.
func (l *library) check(from, target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	p := u.Path
	if strings.HasPrefix(p, "/") {
		p = path.Clean(p)[1:] // from the top of the folder, as sites built from it do
	} else {
		p = path.Join(path.Dir(from), p)
	}
	switch {
	case p == ".." || strings.HasPrefix(p, "../"):
		return " (leads out of the folder)"
	case p == "" || l.all[p]:
		return ""
	}
	return " (no such file)"
}
