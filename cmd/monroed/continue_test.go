package main_test

import (
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// TestLinuxAFullJournalAndANewSegment runs a guest that asks for the time until its
// journal is full, continues, and returns what it began its second segment with.
func TestLinuxAFullJournalAndANewSegment(t *testing.T) {
	d := serve(t, "growth: {warn_records: 10, max_records: 30}\n")
	const now, next = `{"op":"time.now","v":1}`, `{"op":"run.continue","v":1,"args":{"state":{"left":7}}}`
	b, im := imports()
	b.Data(0, []byte(now))
	b.Data(256, []byte(next))
	ne, load8 := []byte{0x47}, []byte{0x2d, 0, 0}
	call := func(at int32, request string) []byte {
		return wt.Cat(wt.I32Const(at), wt.I32Const(int32(len(request))), wt.I32Const(8192), wt.I32Const(4096), wt.Call(im.Call), wt.Drop)
	}
	d.push(finish(b, "fills", `"run.continue"`, "",
		wt.I32Const(0), wt.I32Const(4096), wt.I32Const(64), wt.Call(im.Read), wt.Wrap, wt.LocalSet(0),
		wt.Block, wt.LocalGet(0), wt.I32Const(4), ne, wt.BrIf(0), // null: the first segment
		wt.Loop, call(0, now), wt.I32Const(8194), load8, wt.I32Const('e'), ne, wt.BrIf(0), wt.End, // until {"error"
		call(256, next), wt.End,
		wt.I32Const(1), wt.I32Const(4096), wt.LocalGet(0), wt.Call(im.Write), wt.Drop, wt.I32Const(0)))
	v := d.finished(d.start("fills", ""))
	if v.State != host.StateSucceeded || string(v.Result) != `{"left":7}` {
		t.Fatalf("the run %s: %s, result %s", v.State, v.Failure, v.Result)
	}
	if len(v.Segments) != 2 || v.Segments[0].Calls != 32 || !strings.Contains(v.Receipt, "1 refused") || !strings.Contains(v.Receipt, "2 segments") {
		t.Errorf("%+v\n%s", v.Segments, v.Receipt)
	}
	warned := 0
	err := d.Watch(d.ctx(), v.ID, 0, func(e host.Event) error {
		if e.Kind == host.EventWarning {
			warned++
		}
		return nil
	})
	if err != nil || warned != 1 {
		t.Errorf("%d warnings, %v", warned, err)
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "runs", "show", string(v.ID)); status != 0 || !strings.Contains(out, "segment 2 since") {
		t.Errorf("status %d\n%s", status, out)
	}
	d.verified()
}
