package main

import (
	"fmt"
	"strings"
	"testing"
)

// show gives what a document says in one line each.
func show(d *document) string {
	var b strings.Builder
	for _, h := range d.headings {
		fmt.Fprintf(&b, "%d h%d %s\n", h.line, h.level, h.text)
	}
	for _, q := range d.questions {
		fmt.Fprintf(&b, "%d ? %s\n", q.line, q.text)
	}
	for _, l := range d.links {
		fmt.Fprintf(&b, "%d -> %s\n", l.line, l.target)
	}
	return b.String()
}

func TestScan(t *testing.T) {
	for _, c := range []struct{ name, path, text, want string }{
		{"atx", "a.md", "# One #\n#none\n##\tTwo\n    # code\n####### seven\n#\n", "1 h1 One\n3 h2 Two\n"},
		{"setext", "a.md", "One\n===\n\nTwo\n---\n\n---\n- item\n---\n| a |\n|---|\n", "1 h1 One\n4 h2 Two\n8 h2 item\n"},
		{"setext after a wrapped paragraph", "a.md", "words\nOne\n===\n", "2 h1 One\n"},
		{"crlf and bom", "a.md", "\ufeff# One\r\n\r\nWhy so?\r\n", "1 h1 One\n3 ? Why so?\n"},
		{"fences", "a.md", "```sh\n# not\nTODO not? [x](y)\n~~~\n```\n# yes\n~~~~\n~~~\n# not\n~~~~~\n## yes\n", "6 h1 yes\n11 h2 yes\n"},
		{"a fence in a list and in a quote", "a.md", "- x\n  ```\n  # not\n  ```\n> ```\n> # not\n> ```\n> # quoted\n", "8 h1 quoted\n"},
		{"a fence that never closes", "a.md", "# yes\n```\n# not\nTODO\n", "1 h1 yes\n"},
		{"backticks in a line are no fence", "a.md", "``` a ``` b\n# yes\n", "2 h1 yes\n"},
		{"front matter", "a.md", "---\ntitle: \"X\"\nq: why?\n---\n# One\n", "5 h1 One\n"},
		{"front matter never closed", "a.md", "---\n# One\n", "2 h1 One\n"},
		{"comments", "a.md", "<!-- # not\n# not\nTODO: write it -->\n# yes\n<!-- x -->\n# too\n", "4 h1 yes\n6 h1 too\n3 ? TODO: write it\n"},
		{"boxes", "a.md", "- [ ] one\n1. [ ] two `code`\n* [x] done TODO\n- [ ]\n- [link](u)\n", "1 ? [ ] one\n2 ? [ ] two code\n5 -> u\n"},
		{"markers", "a.md", "TODO: a\nno todos here\nmethodTODOs\n`TODO` in code\n(FIXME) b\n", "1 ? TODO: a\n5 ? (FIXME) b\n"},
		{
			"questions", "a.md", "Is this? Yes.\n\nIs that?\n\n**Really?**\n\nSee https://x.y/?\n\nDone. Shall we\ngo on?\n\nUse e.g. this one?\n\n?\n",
			"3 ? Is that?\n5 ? Really?\n9 ? Shall we go on?\n12 ? Use e.g. this one?\n7 -> https://x.y/\n",
		},
		{"a sentence that begins on the second line", "a.md", "First it was done.\nWhat comes then?\n", "2 ? What comes then?\n"},
		{"under a heading", "a.md", "# Open questions\n- cap per day\n## Sub\n- too\n# Next\n- not\n", "1 h1 Open questions\n3 h2 Sub\n5 h1 Next\n2 ? cap per day\n4 ? too\n"},
		{"headings ask nothing", "a.md", "# What is it?\nIt is this.\n", "1 h1 What is it?\n"},
		{
			"links", "a.md", "[a](b.md \"t\") ![i](i.png) [w](https://e.x/A_(b)) <https://f.x/> https://g.x/p).\n[id]: <ref.md>\n[^1]: note\n`[no](no)`\n[s](<with space.md>)\n",
			"1 -> b.md\n1 -> i.png\n1 -> https://e.x/A_(b)\n1 -> https://f.x/\n1 -> https://g.x/p\n2 -> ref.md\n5 -> with space.md\n",
		},
		{"markup is taken out", "a.md", "# **Bold** [link](u) `c`\n", "1 h1 Bold link c\n1 -> u\n"},
		{"rst", "a.rst", "Title\n=====\n\nSub\n~~~\n\nshort\n--\n\n# not\n", "1 h1 Title\n4 h3 Sub\n"},
		{"asciidoc", "a.adoc", "= Title\n\n----\n== not\n----\n\n== Yes\n", "1 h1 Title\n7 h2 Yes\n"},
		{"org", "a.org", "* TODO Head\n** Sub\n#+begin_src sh\n* not\n#+end_src\n- [ ] box\n", "1 h1 TODO Head\n2 h2 Sub\n6 ? [ ] box\n"},
		{"cr only", "a.txt", "# One\rWhy?\r", "1 h1 One\n2 ? Why?\n"},
		{"empty", "a.md", "", ""},
		{"hostile", "a.md", "](](](\n[[[[[\n>>>>>\n- - - -\n====\n", ""},
	} {
		if got := show(scan(c.path, c.text)); got != c.want {
			t.Errorf("%s:\ngot\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func TestFormOf(t *testing.T) {
	for p, want := range map[string]form{
		"a/README": formText, "readme.MD": formMarkdown, "x.go": formNone, "Makefile": formNone, "n.org": formOrg, "t.TXT": formText, ".md": formMarkdown,
	} {
		if got := formOf(p); got != want {
			t.Errorf("formOf(%q) = %d, want %d", p, got, want)
		}
	}
}

// FuzzScan: nothing that a folder can hold stops the digest or leaves its line.
func FuzzScan(f *testing.F) {
	f.Add("# a\n\n- [ ] b?\n```\nx\n")
	f.Add("---\ntitle: x\n---\n[a](b \"c\")\r\n===\n")
	f.Add("?\n\x00\u202e.\n? ?")
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.Contains(text, "\n") && len(text) > 1<<16 {
			return
		}
		for _, p := range []string{"a.md", "a.rst", "a.adoc", "a.org", "a.txt"} {
			d := scan(p, text)
			for _, q := range d.questions {
				if q.line < 1 || q.line > d.lines || q.text != clean(q.text) {
					t.Errorf("%s: question %+v of %d lines", p, q, d.lines)
				}
			}
			for _, h := range d.headings {
				if h.line < 1 || h.line > d.lines || h.text != clean(h.text) {
					t.Errorf("%s: heading %+v of %d lines", p, h, d.lines)
				}
			}
		}
	})
}
