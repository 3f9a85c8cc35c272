package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// TestArguments: a wrong use is told apart from a worker that cannot be confined, and
// neither gets as far as reading a frame.
func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "started by monroed"},
		{[]string{"run"}, 2, "started by monroed"},
		{[]string{"--no-such-flag", "run", "/x"}, 2, "no-such-flag"},
		{[]string{"fly", "/x"}, 1, `"fly" is unknown`},
	} {
		var stderr bytes.Buffer
		if code := run(c.args, io.Discard, &stderr); code != c.code || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%v: code %d, %s", c.args, code, stderr.String())
		}
	}
}
