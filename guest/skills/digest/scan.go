package main

import (
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// document is what one file says.
type document struct {
	path      string
	sum       string
	modified  time.Time
	title     string
	lines     int
	words     int
	longLines int
	headings  []heading
	questions []question
	links     []link
}

type heading struct {
	line, level int
	text        string
}

type question struct {
	line int
	text string
}

type link struct {
	line   int
	target string
}

// form is the kind of markup.
type form int

const (
	formNone form = iota
	formMarkdown
	formText // plain text; people write Markdown in it
	formRST
	formAsciiDoc
	formOrg
)

func formOf(p string) form {
	base := strings.ToLower(path.Base(p))
	switch path.Ext(base) {
	case ".md", ".markdown", ".mdown":
		return formMarkdown
	case ".txt", ".text":
		return formText
	case ".rst":
		return formRST
	case ".adoc", ".asciidoc":
		return formAsciiDoc
	case ".org":
		return formOrg
	case "":
		if base == "readme" {
			return formText
		}
	}
	return formNone
}

// longestLine is how much of a line is looked at.
const longestLine = 4000

var (
	atx      = regexp.MustCompile(`^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$`)
	asciidoc = regexp.MustCompile(`^(={1,6})[ \t]+(\S.*)$`)
	org      = regexp.MustCompile(`^(\*{1,6})[ \t]+(\S.*)$`)
	listItem = regexp.MustCompile(`^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+(.*)$`)
	fence    = regexp.MustCompile("^[ \t]*(```+|~~~+)[ \t]*([^`]*)$")
	openBox  = regexp.MustCompile(`^\[ \][ \t]+(.*)$`)
	doneBox  = regexp.MustCompile(`^\[[xX-]\][ \t]`)
	marker   = regexp.MustCompile(`\b(?:TODO|FIXME|XXX|TBD)\b`)
	codeSpan = regexp.MustCompile("``[^`]+``|`[^`]*`")
	openWord = regexp.MustCompile(`(?i)\bopen (?:question|issue|point)s?\b`)
)

// scanner walks the lines of one document.
type scanner struct {
	doc  *document
	form form

	fence    string // the opening fence, while inside
	comment  bool   // inside an HTML comment
	para     []string
	paraAt   int // line of para[0]
	openFrom int // level of the heading "Open questions" we are below, 0 if none
}

// scan reads one document.
func scan(p, text string) *document {
	s := &scanner{doc: &document{path: p}, form: formOf(p)}
	text = strings.TrimPrefix(text, "\ufeff")
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	lines := strings.Split(text, "\n")
	if n := len(lines); lines[n-1] == "" {
		lines = lines[:n-1] // the newline at the end of a file begins no line
	}
	s.doc.lines = len(lines)
	for i := s.frontMatter(lines); i < len(lines); i++ {
		line := lines[i]
		if len(line) > longestLine {
			s.doc.longLines++
			line = strings.ToValidUTF8(line[:longestLine], "")
		}
		s.line(i+1, line)
	}
	s.flush()
	if s.doc.title == "" && len(s.doc.headings) > 0 {
		s.doc.title = s.doc.headings[0].text
	}
	return s.doc
}

// frontMatter returns the index of the first line of the body.
func (s *scanner) frontMatter(lines []string) int {
	if len(lines) == 0 || s.form != formMarkdown && s.form != formText {
		return 0
	}
	open := strings.TrimRight(lines[0], " \t")
	if open != "---" && open != "+++" {
		return 0
	}
	for i := 1; i < len(lines) && i < 200; i++ {
		l := strings.TrimRight(lines[i], " \t")
		if l == open || open == "---" && l == "..." {
			return i + 1
		}
		key, value, ok := strings.Cut(l, map[string]string{"---": ":", "+++": "="}[open])
		if ok && strings.EqualFold(strings.TrimSpace(key), "title") && len(value) < 500 {
			s.doc.title = clean(strings.Trim(strings.TrimSpace(value), `"'`))
		}
	}
	s.doc.title = ""
	return 0 // never closed: a rule, not front matter
}

func (s *scanner) line(n int, raw string) {
	line := raw
	if s.form != formOrg {
		for t := strings.TrimLeft(line, " "); strings.HasPrefix(t, ">"); t = strings.TrimLeft(line, " ") {
			line = strings.TrimPrefix(t[1:], " ")
		}
	}
	if s.inFence(line) {
		s.flush()
		return
	}
	if strings.TrimSpace(line) == "" {
		s.flush()
		return
	}
	for word := range strings.FieldsSeq(line) {
		if strings.ContainsFunc(word, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			s.doc.words++
		}
	}
	inComment := s.comment
	s.trackComment(line)
	plain := codeSpan.ReplaceAllStringFunc(line, func(c string) string { return strings.Repeat(" ", len(c)) })
	s.findLinks(n, plain)
	if inComment {
		s.mark(n, plain, line)
		return
	}
	if level, text, ok := s.headingAt(line); ok {
		s.flush()
		s.heading(n, level, text)
		return
	}
	if level, ok := s.underline(line); ok {
		at, text := s.paraAt+len(s.para)-1, s.para[len(s.para)-1]
		s.para = s.para[:len(s.para)-1]
		s.flush()
		s.heading(at, level, text)
		return
	}
	if rule(line) {
		s.flush()
		return
	}
	if m := listItem.FindStringSubmatch(line); m != nil {
		s.flush()
		s.item(n, m[1], plain)
		return
	}
	if s.mark(n, plain, line) {
		s.flush()
		return
	}
	if len(s.para) == 0 {
		s.paraAt = n
	}
	s.para = append(s.para, line)
}

// inFence keeps track of code blocks and reports whether the line is in one.
func (s *scanner) inFence(line string) bool {
	t := strings.TrimSpace(line)
	if s.fence != "" {
		switch {
		case s.form == formOrg:
			if strings.HasPrefix(strings.ToUpper(t), "#+END_") {
				s.fence = ""
			}
		case s.form == formAsciiDoc && t == s.fence:
			s.fence = ""
		case strings.Trim(t, s.fence[:1]) == "" && len(t) >= len(s.fence) && s.form != formAsciiDoc:
			s.fence = ""
		}
		return true
	}
	switch {
	case s.form == formOrg:
		if strings.HasPrefix(strings.ToUpper(t), "#+BEGIN_") {
			s.fence = t
		}
	case s.form == formAsciiDoc && (len(t) >= 4 && (strings.Trim(t, "-") == "" || strings.Trim(t, ".") == "")):
		s.fence = t
	case s.form != formRST:
		if m := fence.FindStringSubmatch(line); m != nil {
			s.fence = m[1]
		}
	}
	return s.fence != ""
}

func (s *scanner) trackComment(line string) {
	if s.form == formOrg || s.form == formRST {
		return
	}
	open, end := strings.LastIndex(line, "<!--"), strings.LastIndex(line, "-->")
	if open > end {
		s.comment = true
	} else if end >= 0 {
		s.comment = false
	}
}

func (s *scanner) headingAt(line string) (level int, text string, ok bool) {
	re := atx
	switch s.form {
	case formAsciiDoc:
		re = asciidoc
	case formOrg:
		re = org
	case formRST:
		return 0, "", false
	case formNone, formMarkdown, formText:
	}
	m := re.FindStringSubmatch(line)
	if m == nil {
		return 0, "", false
	}
	return len(m[1]), m[2], true
}

// underline reports a line that makes the one before it a heading.
func (s *scanner) underline(line string) (level int, ok bool) {
	if len(s.para) == 0 || s.form == formAsciiDoc || s.form == formOrg {
		return 0, false
	}
	t := strings.TrimRight(line, " \t")
	indent := len(t) - len(strings.TrimLeft(t, " "))
	t = t[indent:]
	if t == "" || indent > 3 || strings.Trim(t, t[:1]) != "" {
		return 0, false
	}
	above := strings.TrimSpace(s.para[len(s.para)-1])
	marks := "=-"
	if s.form == formRST {
		marks = `=-~^"'*+#.`
		if len(t) < utf8.RuneCountInString(above) {
			return 0, false // reStructuredText wants a full underline
		}
	} else if strings.HasPrefix(above, "|") || s.form == formText && len(t) < 3 {
		return 0, false
	}
	i := strings.IndexByte(marks, t[0])
	return min(i+1, 6), i >= 0
}

// rule reports a line across the page, which is no list item: "- - -".
func rule(line string) bool {
	t := strings.Join(strings.Fields(line), "")
	return len(t) >= 3 && strings.ContainsRune("-*_", rune(t[0])) && strings.Trim(t, t[:1]) == ""
}

func (s *scanner) heading(n, level int, text string) {
	text = inline(text)
	if text == "" {
		return
	}
	if s.openFrom > 0 && level <= s.openFrom {
		s.openFrom = 0
	}
	if openWord.MatchString(text) {
		s.openFrom = level
	}
	s.doc.headings = append(s.doc.headings, heading{n, level, text})
	if s.doc.title == "" && level == 1 {
		s.doc.title = text
	}
}

// item handles a list item: a task box, or a question by its place or its form.
func (s *scanner) item(n int, text, plain string) {
	if m := openBox.FindStringSubmatch(text); m != nil {
		s.ask(n, "[ ] "+m[1])
		return
	}
	if doneBox.MatchString(text) {
		return
	}
	if s.mark(n, plain, text) {
		return
	}
	if s.openFrom > 0 {
		s.ask(n, text)
		return
	}
	s.para, s.paraAt = append(s.para, text), n
}

// mark records a line with a marker word, and reports whether it had one.
func (s *scanner) mark(n int, plain, text string) bool {
	if marker.MatchString(plain) || openWord.MatchString(plain) && strings.ContainsAny(plain, ":?") {
		s.ask(n, text)
		return true
	}
	return false
}

// flush ends a paragraph: its sentences that end in a question mark are asked.
// Only one at the end of the paragraph counts; "Why? Because …" is answered.
func (s *scanner) flush() {
	para := s.para
	s.para = nil
	if len(para) == 0 {
		return
	}
	last := strings.TrimRight(strings.TrimSpace(para[len(para)-1]), "*_\"')”’ ")
	if !strings.HasSuffix(last, "?") {
		return
	}
	if words := strings.Fields(last); strings.Contains(words[len(words)-1], "://") || len(words[len(words)-1]) < 2 {
		return
	}
	// The sentence may begin some lines above, but not on another page.
	text, line := "", s.paraAt
	for i := len(para) - 1; i >= max(0, len(para)-6); i-- {
		own := strings.TrimSpace(para[i])
		text = strings.TrimSpace(own + " " + text)
		line = s.paraAt + i
		if from := sentenceStart(text); from > 0 {
			if text = text[from:]; from > len(own) {
				line++
			}
			break
		}
	}
	s.ask(line, text)
}

// sentenceStart returns where the last sentence of text begins, 0 if it has one.
// A full stop counts only before a space and a capital: not in "e.g. this".
func sentenceStart(text string) int {
	body := strings.TrimRight(text, "?*_\"')”’ ")
	for end := len(body); ; {
		cut := strings.LastIndexAny(body[:end], ".!?:")
		if cut < 0 {
			return 0
		}
		if rest := strings.TrimLeft(body[cut+1:], "*_\"'(“‘ "); rest != "" && body[cut+1] == ' ' {
			if r, _ := utf8.DecodeRuneInString(rest); unicode.IsUpper(r) || unicode.IsDigit(r) {
				return cut + 2
			}
		}
		end = cut
	}
}

func (s *scanner) ask(n int, text string) {
	if text = inline(text); text != "" {
		s.doc.questions = append(s.doc.questions, question{n, text})
	}
}

var (
	linkText = regexp.MustCompile(`!?\[([^\]\[]*)\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+"[^"]*")?\)`)
	emphasis = strings.NewReplacer("**", "", "__", "", "`", "", "<!--", "", "-->", "")
)

// inline takes the markup out of a line that is shown by itself.
func inline(s string) string {
	return clip(clean(emphasis.Replace(linkText.ReplaceAllString(s, "$1"))), 200)
}

// clean makes foreign text safe to show on one line: no control characters, and
// no invisible ones that could reorder or hide words.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return strings.Join(strings.Fields(s), " ")
}

// clip shortens s to n characters.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	rs := []rune(s)
	return strings.TrimRight(string(rs[:n-1]), " ") + "…"
}
