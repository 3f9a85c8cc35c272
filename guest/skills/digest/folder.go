package main

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// largestFile is the largest document that is read.
const largestFile = 1 << 20

// library is a folder as it is now.
type library struct {
	docs  []*document     // by path
	all   map[string]bool // every path of the listing, and every folder on the way
	whole bool            // the listing was complete
	notes []string        // what was left out, and why
	// unread are documents that exist and were not read: neither new nor removed.
	unread map[string]bool
}

// state is what is remembered of a digest.
type state struct {
	AtMS  int64             `json:"at_ms"`
	Files map[string]string `json:"files"` // path → the first 32 hexadecimal digits of its SHA-256
}

func stateKey(folder string) string {
	key := "digest.v1:" + folder
	return key[:min(len(key), abi.MaxKVKey)]
}

// recall returns what the last digest told of.
func recall(r *guest.Run, folder string) (past state, first bool, err error) {
	found, err := r.KV().Get(stateKey(folder), &past)
	return past, !found, err
}

// state is what the next digest is compared with. What was not read now keeps
// what was known of it.
func (l *library) state(past state, now time.Time) state {
	s := state{AtMS: now.UnixMilli(), Files: map[string]string{}}
	for p, sum := range past.Files {
		if l.unread[p] || !l.whole && !l.all[p] {
			s.Files[p] = sum
		}
	}
	for _, d := range l.docs {
		s.Files[d.path] = d.sum
	}
	return s
}

func readFolder(r *guest.Run, in input) (*library, error) {
	folder := r.Files(in.Folder)
	listing, err := folder.List(".")
	if err != nil {
		return nil, err
	}
	l := &library{all: map[string]bool{".": true}, whole: !listing.Truncated, unread: map[string]bool{}}
	var picked []guest.Entry
	other := map[string]int{}
	for _, e := range listing.Entries {
		for p := e.Path; p != "." && p != "/" && !l.all[p]; p = path.Dir(p) {
			l.all[p] = true
		}
		switch {
		case hidden(e.Path):
		case formOf(e.Path) == formNone:
			other[kindOf(e.Path)]++
		case e.Size > largestFile:
			l.leaveOut(e.Path, fmt.Sprintf("is too large to read (%d KiB)", e.Size>>10))
		default:
			picked = append(picked, e)
		}
	}
	if listing.Truncated {
		l.note("The folder has more files than the listing shows: what was removed and which links are broken cannot be told.")
	}
	// The latest first: with too many files, the news is what matters.
	slices.SortFunc(picked, func(a, b guest.Entry) int {
		return cmp.Or(strings.Compare(b.Modified, a.Modified), strings.Compare(a.Path, b.Path))
	})
	if n := len(picked); n > in.MaxFiles {
		l.note("%s not read: the %d modified last were (max_files raises this).", count(n-in.MaxFiles, "document was", "documents were"), in.MaxFiles)
		for _, e := range picked[in.MaxFiles:] {
			l.unread[e.Path] = true
		}
		picked = picked[:in.MaxFiles]
	}
	if len(other) > 0 {
		l.note("Not documents, so not read: %s.", histogram(other))
	}
	r.Progress("Reading %s in %s", count(len(picked), "document", "documents"), in.Folder)
	for i, e := range picked {
		if err := l.read(folder, e); err != nil {
			return nil, err
		}
		if (i+1)%25 == 0 && i+1 < len(picked) {
			r.Progress("Read %d of %d documents", i+1, len(picked))
		}
	}
	slices.SortFunc(l.docs, func(a, b *document) int { return strings.Compare(a.path, b.path) })
	return l, nil
}

// read adds one file. A refusal of this file is noted and does not end the digest.
func (l *library) read(folder guest.Folder, e guest.Entry) error {
	f, err := folder.Read(e.Path)
	if d, ok := guest.Denied(err); ok {
		l.leaveOut(e.Path, fmt.Sprintf("could not be read: %s", clean(d.Reason)))
		return nil
	}
	if err != nil {
		return err
	}
	if !f.IsText() || strings.ContainsRune(f.Text, 0) {
		l.leaveOut(e.Path, "is not text in UTF-8")
		return nil
	}
	d := scan(e.Path, f.Text)
	d.sum = f.SHA256[:min(len(f.SHA256), 32)]
	d.modified, _ = time.Parse(time.RFC3339, e.Modified)
	if d.longLines > 0 {
		l.note("%s: %s read only at the beginning.", clip(clean(e.Path), 120), count(d.longLines, "very long line was", "very long lines were"))
	}
	l.docs = append(l.docs, d)
	return nil
}

func (l *library) leaveOut(p, why string) {
	l.unread[p] = true
	l.note("%s %s.", clip(clean(p), 120), why)
}

// note keeps the notes few: a folder of a thousand broken files is one problem.
func (l *library) note(format string, a ...any) {
	const most = 25
	switch {
	case len(l.notes) < most:
		l.notes = append(l.notes, fmt.Sprintf(format, a...))
	case len(l.notes) == most:
		l.notes = append(l.notes, "More was left out for reasons like these.")
	}
}

// hidden reports what nobody means by "the documents in this folder".
func hidden(p string) bool {
	for seg := range strings.SplitSeq(p, "/") {
		if strings.HasPrefix(seg, ".") || seg == "node_modules" {
			return true
		}
	}
	return false
}

func kindOf(p string) string {
	if ext := strings.ToLower(path.Ext(p)); ext != "" && len(ext) <= 12 {
		return clean(ext)
	}
	return "no extension"
}

func histogram(m map[string]int) string {
	type pair struct {
		kind string
		n    int
	}
	var ps []pair
	for k, n := range m {
		ps = append(ps, pair{k, n})
	}
	slices.SortFunc(ps, func(a, b pair) int { return cmp.Or(b.n-a.n, strings.Compare(a.kind, b.kind)) })
	var out []string
	rest := 0
	for i, p := range ps {
		if i < 8 {
			out = append(out, fmt.Sprintf("%d × %s", p.n, p.kind))
		} else {
			rest += p.n
		}
	}
	if rest > 0 {
		out = append(out, fmt.Sprintf("%d others", rest))
	}
	return strings.Join(out, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
