package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// changes compares the folder with the last digest.
type changes struct {
	New       []string `json:"new"`
	Changed   []string `json:"changed"`
	Removed   []string `json:"removed"`
	Unchanged int      `json:"unchanged"`
}

func (c changes) any() bool { return len(c.New)+len(c.Changed)+len(c.Removed) > 0 }

// digest is what is to be told, before it is written down.
type digest struct {
	title     string
	folder    string
	now       time.Time
	last      time.Time // of the last digest
	since     time.Time // the input's, if any
	first     bool
	changes   changes
	titles    map[string]string // path → title of the document
	outline   []*document       // the documents to outline
	questions []finding
	links     linkTable
	notes     []string
}

func compose(in input, l *library, past state, first bool, since, now time.Time) *digest {
	d := &digest{
		title: in.Title, folder: clean(in.Folder), now: now, since: since, first: first,
		last: time.UnixMilli(past.AtMS).UTC(), titles: map[string]string{}, notes: l.notes,
	}
	d.changes = compare(l, past)
	fresh := map[string]bool{}
	for _, p := range slices.Concat(d.changes.New, d.changes.Changed) {
		fresh[p] = true
	}
	shown := func(doc *document) bool {
		if !since.IsZero() {
			return !doc.modified.Before(since)
		}
		return fresh[doc.path]
	}
	for _, doc := range l.docs {
		d.titles[doc.path] = doc.title
		if shown(doc) {
			d.outline = append(d.outline, doc)
		}
		for _, q := range doc.questions {
			d.questions = append(d.questions, finding{doc.path, q.line, q.text})
		}
	}
	d.links = tabulate(l, shown)
	return d
}

func compare(l *library, past state) changes {
	c := changes{New: []string{}, Changed: []string{}, Removed: []string{}}
	now := map[string]bool{}
	for _, d := range l.docs {
		now[d.path] = true
		switch sum, known := past.Files[d.path]; {
		case !known:
			c.New = append(c.New, d.path)
		case sum != d.sum:
			c.Changed = append(c.Changed, d.path)
		default:
			c.Unchanged++
		}
	}
	for p := range past.Files {
		if !now[p] && !l.unread[p] && l.whole {
			c.Removed = append(c.Removed, p)
		}
	}
	slices.Sort(c.Removed)
	return c
}

// subject is the mail's: the news in one line.
func (d *digest) subject() string {
	if d.first {
		return clip(fmt.Sprintf("%s: %s, first digest", d.title, count(len(d.changes.New), "document", "documents")), 150)
	}
	return clip(d.title+": "+d.changes.sentence(), 150)
}

func (c changes) sentence() string {
	if !c.any() {
		return "nothing changed"
	}
	var parts []string
	for _, x := range []struct {
		n    int
		what string
	}{{len(c.New), "new"}, {len(c.Changed), "changed"}, {len(c.Removed), "removed"}} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return strings.Join(parts, ", ")
}

func day(t time.Time) string { return t.Format("2 January 2006") }
