package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// How much a digest shows. A mail that nobody reads to its end helps nobody; what
// is left out is counted.
const (
	mostChanges   = 40
	mostQuestions = 40
	mostOutline   = 100 // lines
	mostPerFile   = 12  // headings of one document
	mostHosts     = 15
	mostPerHost   = 5
	mostBroken    = 30
	mostText      = 32 << 10
)

// page collects the text of a digest.
type page struct{ strings.Builder }

func (p *page) line(format string, a ...any) {
	fmt.Fprintf(p, format, a...)
	p.WriteByte('\n')
}

func (p *page) section(format string, a ...any) {
	p.WriteByte('\n')
	title := fmt.Sprintf(format, a...)
	p.line("%s", title)
	p.line("%s", strings.Repeat("-", utf8.RuneCountInString(title)))
}

// rest tells how much of a list was left out.
func (p *page) rest(total, shown int, what string) {
	if total > shown {
		p.line("  … and %d more %s", total-shown, what)
	}
}

// render writes the digest as plain text. Equal folders give equal text.
func (d *digest) render() string {
	p := &page{}
	p.line("%s", d.title)
	p.line("%s", strings.Repeat("=", utf8.RuneCountInString(d.title)))
	p.line("%s", d.opening())
	d.renderChanges(p)
	d.renderQuestions(p)
	d.renderOutline(p)
	d.renderLinks(p)
	if len(d.notes) > 0 {
		p.section("Left out")
		for _, n := range d.notes {
			p.line("  - %s", n)
		}
	}
	return cut(p.String(), mostText)
}

func (d *digest) opening() string {
	c := d.changes
	known := len(c.New) + len(c.Changed) + c.Unchanged
	switch {
	case known == 0 && len(c.Removed) == 0:
		return fmt.Sprintf("%s: the folder %s holds no documents that could be read.", day(d.now), d.folder)
	case d.first:
		return fmt.Sprintf("%s: the first digest of %s, so all of it is new: %s.", day(d.now), d.folder, count(known, "document", "documents"))
	case !c.any():
		return fmt.Sprintf("%s: nothing changed in %s since the digest of %s. It holds %s.", day(d.now), d.folder, day(d.last), count(known, "document", "documents"))
	}
	return fmt.Sprintf("%s: %s in %s since the digest of %s. %s as before.", day(d.now), c.sentence(), d.folder, day(d.last), count(c.Unchanged, "document is", "documents are"))
}

func (d *digest) renderChanges(p *page) {
	if d.first || !d.changes.any() {
		return
	}
	p.section("What changed")
	shown := 0
	for _, g := range []struct {
		what  string
		paths []string
	}{{"new", d.changes.New}, {"changed", d.changes.Changed}, {"removed", d.changes.Removed}} {
		for _, path := range g.paths {
			if shown == mostChanges {
				break
			}
			shown++
			p.line("  %-8s %s", g.what, d.name(path))
		}
	}
	p.rest(len(d.changes.New)+len(d.changes.Changed)+len(d.changes.Removed), shown, "files")
}

// name is a path with the document's title, where that says more.
func (d *digest) name(path string) string {
	shown := clip(clean(path), 120)
	if t := clip(d.titles[path], 80); t != "" {
		shown += "  (" + t + ")"
	}
	return shown
}

func (d *digest) renderQuestions(p *page) {
	if len(d.questions) == 0 {
		return
	}
	p.section("Open questions (%d)", len(d.questions))
	findings(p, d.questions, mostQuestions)
	p.rest(len(d.questions), mostQuestions, "open questions")
}

func findings(p *page, fs []finding, most int) {
	for _, f := range fs[:min(len(fs), most)] {
		p.line("  %s:%d  %s", clip(clean(f.Path), 120), f.Line, f.Text)
	}
}

func (d *digest) renderOutline(p *page) {
	if len(d.outline) == 0 {
		return
	}
	switch {
	case !d.since.IsZero():
		p.section("Outline of what was modified since %s", day(d.since))
	case d.first:
		p.section("Outline")
	default:
		p.section("Outline of what is new or changed")
	}
	lines := 0
	for i, doc := range d.outline {
		if lines >= mostOutline {
			p.rest(len(d.outline), i, "documents")
			return
		}
		p.line("  %s  (%s, %s)", clip(clean(doc.path), 120), count(doc.lines, "line", "lines"), count(doc.words, "word", "words"))
		lines++
		top := 6
		for _, h := range doc.headings {
			top = min(top, h.level)
		}
		shown := min(len(doc.headings), mostPerFile)
		for _, h := range doc.headings[:shown] {
			p.line("  %5d  %s%s", h.line, strings.Repeat("  ", h.level-top), h.text)
			lines++
		}
		if more := len(doc.headings) - shown; more > 0 {
			p.line("         … and %s", count(more, "more heading", "more headings"))
			lines++
		}
	}
}

func (d *digest) renderLinks(p *page) {
	if n := len(d.links.broken); n > 0 {
		p.section("Links that lead nowhere (%d)", n)
		findings(p, d.links.broken, mostBroken)
		p.rest(n, mostBroken, "links that lead nowhere")
	}
	if len(d.links.hosts) == 0 {
		return
	}
	p.section("Links, by host")
	for _, h := range d.links.hosts[:min(len(d.links.hosts), mostHosts)] {
		p.line("  %s (%s)", clip(h.host, 120), count(h.times, "link", "links"))
		for _, f := range h.links[:min(len(h.links), mostPerHost)] {
			p.line("    %s  %s:%d", f.Text, clip(clean(f.Path), 120), f.Line)
		}
		p.rest(len(h.links), mostPerHost, "pages of this host")
	}
	p.rest(len(d.links.hosts), mostHosts, "hosts")
}

// cut bounds the whole text at the end of a line.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const note = "\n[The digest is cut here: it was longer than a mail should be.]\n"
	s = s[:most-len(note)]
	return s[:strings.LastIndexByte(s, '\n')+1] + note
}
