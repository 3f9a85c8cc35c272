package main

import (
	_ "embed"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
	"github.com/getmonroe/monroe/guest/guesttest"
)

//go:embed manifest.json
var manifest []byte

func TestFindsTheWord(t *testing.T) {
	h := guesttest.New(t, manifest)
	h.Folder("docs", fstest.MapFS{"a.md": {Data: []byte("Hello!")}, "b.md": {Data: []byte("Bye.")}})
	var out struct{ Found []string }
	h.Run(run, map[string]string{"folder": "docs", "word": "hello"}).Decode(t, &out)
	if !slices.Equal(out.Found, []string{"a.md"}) {
		t.Errorf("found %q", out.Found)
	}
	h.Replay(run) // a run can be interrupted and continued
	h.Deny(guest.FilesRead, abi.Deny(abi.Scope, "no", "ask"))
	h.Run(run, map[string]string{"folder": "docs", "word": "hello"}).Decode(t, &out)
	if len(out.Found) != 0 {
		t.Errorf("found %q without leave to read", out.Found)
	}
}
