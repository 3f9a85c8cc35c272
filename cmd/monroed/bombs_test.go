package main_test

import (
	"bytes"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// bombTime is how long a hostile upload may take once it has arrived.
const bombTime = 20 * time.Second

// manyFunctions returns a good guest's imports and n functions with the same body.
func manyFunctions(n int, body []byte) []byte {
	return with(func(b *wt.Builder) {
		typ := b.Type("", "")
		for range n {
			b.FuncRaw(typ, body)
		}
	})
}

// TestLinuxCompileBombs: modules that would keep a compiler busy for minutes, or fill the
// memory, are refused through the upload door in time, each with its code. Meanwhile
// another run goes on, and the daemon does not grow.
func TestLinuxCompileBombs(t *testing.T) {
	d := digest(t)
	d.push(with(func(*wt.Builder) {}))
	unharmed := d.beside()
	locals := func(n uint32) []byte { return wt.Cat(wt.U32(1), wt.U32(n), []byte{wt.I32}) }
	var moves bytes.Buffer // every loop carries every local
	for i := range uint32(2000) {
		moves.Write(wt.Cat(wt.LocalGet((i+1)%2000), wt.LocalSet(i)))
	}
	for name, c := range map[string]struct {
		module     []byte
		code, says string
	}{
		"nested blocks":          {with(func(b *wt.Builder) { b.Func("", "", 0, wt.Repeat(50_000, wt.Block), wt.Repeat(50_000, wt.End)) }), "MODULE_TOO_LARGE", "nests"},
		"nested loops":           {with(func(b *wt.Builder) { b.Func("", "", 0, wt.Repeat(50_000, wt.Loop), wt.Repeat(50_000, wt.End)) }), "MODULE_TOO_LARGE", "nests"},
		"loops by locals":        {with(func(b *wt.Builder) { b.Func("", "", 500, wt.Repeat(20_000, wt.Loop, wt.End)) }), "MODULE_TOO_LARGE", "loops"},
		"functions by locals":    {manyFunctions(1000, wt.Cat(locals(50_000), []byte{0x0b})), "MODULE_TOO_LARGE", "locals"},
		"locals that wrap":       {manyFunctions(1, wt.Cat(wt.U32(2), wt.U32(1<<32-1), []byte{wt.I32}, wt.U32(2), []byte{wt.I32, 0x0b})), "MODULE_TOO_LARGE", "locals"},
		"empty functions":        {manyFunctions(500_000, []byte{0, 0x0b}), "MODULE_TOO_LARGE", "functions"},
		"a table of 100 million": {with(func(b *wt.Builder) { b.Table(100_000_000) }), "MODULE_TOO_LARGE", "table"},
		"a memory of 4 GiB":      {with(func(b *wt.Builder) { b.Raw(5, wt.Cat([]byte{1, 0}, wt.U32(65536))) }), "MODULE_TOO_LARGE", "memory"},
		// Each of its functions is admitted; together they keep the compiler busy for minutes.
		"work within all limits": {manyFunctions(1000, wt.Cat(locals(2000), wt.Repeat(25, wt.Loop), moves.Bytes(), wt.Repeat(25, wt.LocalGet(0), wt.BrIf(0), wt.End), []byte{0x0b})), "MODULE_TOO_LARGE", "takes longer than 18s"},
	} {
		t.Run(name, func(t *testing.T) {
			var arrived atomic.Int64
			arrived.Store(time.Now().UnixNano()) // where it is refused before it is read
			ctx := httptrace.WithClientTrace(d.ctx(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { arrived.Store(time.Now().UnixNano()) }})
			var took time.Duration
			pushed := make(chan error, 1)
			go func() {
				_, err := d.PushSkill(ctx, c.module)
				took = time.Duration(time.Now().UnixNano() - arrived.Load())
				pushed <- err
			}()
			if v := d.finished(d.start("fixture", "")); v.State != host.StateSucceeded {
				t.Errorf("a run meanwhile %s: %s", v.State, v.Failure)
			}
			err := <-pushed
			status := map[string]int{"MODULE": 422, "MODULE_TOO_LARGE": 413}[c.code]
			if p := refused(t, err, status, c.code); !strings.Contains(p.Detail, c.says) || p.Remedy == "" {
				t.Errorf("%q (%s) does not tell of %q", p.Detail, p.Remedy, c.says)
			}
			if took > bombTime {
				t.Errorf("it took %v", took)
			}
			t.Logf("%d bytes: refused after %v", len(c.module), took.Round(time.Millisecond))
		})
	}
	unharmed()
}
