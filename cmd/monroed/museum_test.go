package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// repeats returns a guest that makes requests, one after the other, and writes the
// last answer as its result.
func repeats(requests []string) []byte {
	b, im := imports()
	var code [][]byte
	at := int32(0)
	for _, r := range requests {
		b.Data(at, []byte(r))
		code = append(code, wt.I32Const(at), wt.I32Const(int32(len(r))), wt.I32Const(32768), wt.I32Const(16384), wt.Call(im.Call), wt.Wrap, wt.LocalSet(0))
		at += int32(len(r))
	}
	code = append(code, wt.I32Const(1), wt.I32Const(32768), wt.LocalGet(0), wt.Call(im.Write), wt.Drop, wt.I32Const(0))
	return finish(b, "museum", "", "", code...)
}

// TestLinuxTheMuseumIsReplayedByGuests feeds every journal of every release to a guest
// on a real worker: it asks what is recorded, gets what is recorded, and makes no live
// call.
func TestLinuxTheMuseumIsReplayedByGuests(t *testing.T) {
	s, err := spawn.New(program("monroe-worker"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := filepath.Glob("../../testdata/journals/*/*.json")
	if err != nil || len(list) < 9 {
		t.Fatalf("%d journals, %v", len(list), err)
	}
	for _, path := range list {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var x struct {
				Keyset            json.RawMessage
				Row               store.Run
				Module, Image     abi.Digest
				Records           []store.Record
				Requests, Replies []string
			}
			if err := json.Unmarshal(read(t, path), &x); err != nil {
				t.Fatal(err)
			}
			x.Row.Module, x.Row.Image = x.Module, x.Image
			keyset := filepath.Join(t.TempDir(), "keys")
			if err := os.WriteFile(keyset, x.Keyset, 0o600); err != nil {
				t.Fatal(err)
			}
			keys, err := vault.OpenKeyset(keyset, "acme")
			if err != nil {
				t.Fatal(err)
			}
			key, err := keys.OpenRunKey(x.Row.ID, x.Row.Key)
			if err != nil {
				t.Fatal(err)
			}
			log, err := journal.Open(&x.Row, key, x.Records)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if _, err := s.Compile(t.Context(), repeats(x.Requests), dir); err != nil {
				t.Fatal(err)
			}
			p, err := s.Spawn(t.Context(), spawn.ModeRun, dir, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			play := spawntest.Script{Limits: abi.DefaultLimits(), Input: []byte("null")}
			for _, a := range log.Answered() {
				play.Past = append(play.Past, spawntest.Reply{Body: a.Reply, At: a.At.UnixNano()})
			}
			out, err := spawntest.Play(p, play)
			if err != nil || out.Fault != nil {
				t.Fatalf("%v %+v", err, out.Fault)
			}
			if len(out.Seen) != len(x.Requests) || len(out.Calls) != 0 || string(out.Result) != x.Replies[len(x.Replies)-1] {
				t.Errorf("%d of %d were replayed, %d were live; the result is %s", len(out.Seen), len(x.Requests), len(out.Calls), out.Result)
			}
			base := uint32(0) // the worker counts from the segment's beginning
			if seg := log.Segment(); seg != nil {
				base = seg.Call
			}
			for i, fp := range out.Seen {
				if _, err := log.Recall(base+uint32(i)+1, fp); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
