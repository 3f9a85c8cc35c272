package canon

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPath is the longest path and maxSegment its longest part, in bytes.
const (
	MaxPath    = 1024
	maxSegment = 255
)

// ErrPath is wrapped by every error of Path.
var ErrPath = errors.New("path")

// Path checks a path relative to a folder and returns it unchanged. It never
// repairs: what two readers could understand differently (dot segments, empty
// segments, backslashes, drive letters, control and invisible characters) is
// refused. The empty path and "." are the folder itself and come back as ".".
func Path(p string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w %q: %s", ErrPath, p, why)
	}
	switch {
	case p == "" || p == ".":
		return ".", nil
	case len(p) > MaxPath:
		return "", fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrPath, len(p), MaxPath)
	case strings.HasPrefix(p, "/"):
		return bad("it is absolute; leave out the slash at its start")
	case !utf8.ValidString(p):
		return bad("it is not UTF-8")
	}
	for _, r := range p {
		switch {
		case r == '\\':
			return bad("it holds a backslash; separate with /")
		case r == '*' || r == ':':
			return bad("the characters * and : are not allowed")
		case !unicode.IsPrint(r):
			return bad("it holds a control or an invisible character")
		}
	}
	for seg := range strings.SplitSeq(p, "/") {
		switch {
		case seg == "":
			return bad("it has an empty part; leave out the extra slash")
		case strings.Trim(seg, ".") == "" && len(seg) <= 2:
			return bad("dot segments are refused; name the file from the top of the folder")
		case len(seg) > maxSegment:
			return bad(fmt.Sprintf("one part has more than %d bytes", maxSegment))
		}
	}
	return p, nil
}
