package egress

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// visible makes text safe to show to a person who decides by it. What cannot be
// seen, what changes the order of what can, and bytes that are no text are written
// out, such as ⟦U+202E⟧; a letter that stands in a word for its look-alike is followed by
// its number. Line ends and tabs stay. It says what was found.
func visible(s string) (string, []string) {
	var b strings.Builder
	found := map[string]bool{}
	words, foreign := mixedWords(s)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, "⟦%02X⟧", s[i])
			found["bytes that are not text"] = true
		case r == '\r' && strings.HasPrefix(s[i:], "\r\n"):
			// shown as the line end that it is
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case hidden(r) != "":
			fmt.Fprintf(&b, "⟦U+%04X⟧", r)
			found[hidden(r)] = true
		case foreign[i]:
			fmt.Fprintf(&b, "⟦%c U+%04X⟧", r, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	for _, w := range words {
		found[fmt.Sprintf("the word %q mixes alphabets that look alike", w)] = true
	}
	var warnings []string
	for w := range found {
		warnings = append(warnings, w)
	}
	slices.Sort(warnings)
	return b.String(), warnings
}

// hidden names why a character cannot be shown as it is; it is empty for those
// that can.
func hidden(r rune) string {
	switch {
	case r >= 0xe0000 && r <= 0xe007f:
		return "tag characters, which hide text"
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x061c, r == 0x200e, r == 0x200f:
		return "characters that turn the direction of text"
	case r >= 0x200b && r <= 0x200d, r >= 0x2060 && r <= 0x2065, r == 0xfeff, r == 0x00ad, r == 0x180e:
		return "characters without width"
	case r >= 0xfe00 && r <= 0xfe0f, r >= 0xe0100 && r <= 0xe01ef:
		return "variation selectors, which can hide data"
	case r == 0x115f, r == 0x1160, r == 0x3164, r == 0xffa0, r == 0x2800:
		return "blank letters"
	case unicode.IsControl(r), r == 0x2028, r == 0x2029:
		return "control characters"
	case unicode.In(r, unicode.Co, unicode.Cs, unicode.Cf):
		return "characters without a picture"
	case r != ' ' && unicode.Is(unicode.Zs, r):
		return "spaces of unusual width"
	}
	return ""
}

// mixedWords lists the words that mix Latin letters with those of alphabets that look
// like them, the usual form of a false name, and where in s the letters are that are not
// Latin.
func mixedWords(s string) (words []string, foreign map[int]bool) {
	foreign = map[int]bool{}
	begin, latin, others := 0, false, []int(nil)
	end := func(at int) {
		if w := s[begin:at]; latin && len(others) > 0 {
			if !slices.Contains(words, w) {
				words = append(words, w)
			}
			for _, i := range others {
				foreign[i] = true
			}
		}
		latin, others = false, nil
	}
	for i, r := range s {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			end(i)
			_, n := utf8.DecodeRuneInString(s[i:]) // a byte that is no text is one
			begin = i + n
		case unicode.In(r, unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee) || r >= 0xff01 && r <= 0xff5e || r >= 0x1d400 && r <= 0x1d7ff:
			others = append(others, i)
		case unicode.Is(unicode.Latin, r):
			latin = true
		}
	}
	end(len(s))
	return words, foreign
}
