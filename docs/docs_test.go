// Package docs holds documents, and tests that what they name exists.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages are the documents that are checked, relative to this folder.
func pages(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"*.md", "../*.md", "../abi/*.md", "../testdata/bench/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, found...)
	}
	if len(list) < 5 {
		t.Fatalf("only %v were found", list)
	}
	return list
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchor   = regexp.MustCompile(`(?m)^#+ (.+)$`)
	funcName = regexp.MustCompile("`func ([A-Za-z0-9_]+)`")
	declared = regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?([A-Za-z0-9_]+)[(\[]`)
	fence    = regexp.MustCompile("(?s)```.*?```")
)

// TestLinks follows every relative link, with its anchor.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
			target, part, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			to := page
			if target != "" {
				to = filepath.Join(filepath.Dir(page), target)
			}
			b, err := os.ReadFile(to)
			if err != nil {
				if st, serr := os.Stat(to); serr != nil || !st.IsDir() {
					t.Errorf("%s: %s leads nowhere", page, m[1])
				}
				continue
			}
			if part != "" && !hasAnchor(string(b), part) {
				t.Errorf("%s: %s: there is no such heading", page, m[1])
			}
		}
	}
}

func hasAnchor(text, want string) bool {
	drop := regexp.MustCompile(`[^a-z0-9 _-]`)
	for _, m := range anchor.FindAllStringSubmatch(text, -1) {
		if strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") == want {
			return true
		}
	}
	return false
}

// TestFunctions finds every function that a document names in the files that the
// same document links to.
func TestFunctions(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if !strings.HasSuffix(m[1], ".go") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(filepath.Dir(page), m[1]))
			if err != nil {
				continue // TestLinks says so
			}
			for _, d := range declared.FindAllStringSubmatch(string(b), -1) {
				known[d[1]] = true
			}
		}
		for _, m := range funcName.FindAllStringSubmatch(string(text), -1) {
			checked++
			if !known[m[1]] {
				t.Errorf("%s: no linked file has a func %s", page, m[1])
			}
		}
	}
	if checked == 0 {
		t.Error("no document names a function")
	}
}

// TestNamedTests finds every test that a comment or a document names: a law's test is its proof.
func TestNamedTests(t *testing.T) {
	declaredTest := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
	comment := regexp.MustCompile(`(?m)//.*$`)
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	known, cited := map[string]bool{}, map[string]string{}
	cite := func(where, text string) {
		for _, name := range named.FindAllString(text, -1) {
			cited[name] = where
		}
	}
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		cite(page, string(text))
	}
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && (path == "bin" || path == "out" || len(path) > 1 && path[0] == '.') {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			return err
		}
		for _, m := range declaredTest.FindAllStringSubmatch(string(text), -1) {
			known[m[1]] = true
		}
		cite(path, strings.Join(comment.FindAllString(string(text), -1), "\n"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(cited) < 20 {
		t.Errorf("only %d tests are named", len(cited))
	}
	for name, where := range cited {
		if !known[name] && !isPrefix(name, known) {
			t.Errorf("%s names %s, which does not exist", where, name)
		}
	}
}

// isPrefix: some comments name a group, as TestRoot.
func isPrefix(name string, of map[string]bool) bool {
	for known := range of {
		if strings.HasPrefix(known, name) {
			return true
		}
	}
	return false
}

// TestEveryPageIsLinked finds documents that nothing leads to.
func TestEveryPageIsLinked(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(os.DirFS("."), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") && !strings.Contains(string(readme), "docs/"+path) {
			t.Errorf("README.md has no link to docs/%s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
