package conformance

import (
	"encoding/binary"
	"fmt"

	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

const wasi = "wasi_snapshot_preview1"

// A step is one call of a WASI function, its arguments i32 but where an int64 is given.
type step struct {
	name string
	args []any
}

func do(name string, args ...any) step { return step{name, args} }

// shim is a guest that makes the steps, writes the first n bytes of its memory as the
// result and returns the error number of the last step.
func shim(data []byte, n int32, steps ...step) func() []byte {
	return build(func(b *w.Builder, im w.Imports) []byte {
		b.Data(0, data)
		var code []byte
		index := map[string]uint32{}
		for _, s := range steps {
			params := ""
			var push []byte
			for _, a := range s.args {
				if v, wide := a.(int64); wide {
					params, push = params+"I", append(push, w.I64Const(v)...)
				} else {
					params, push = params+"i", append(push, w.I32Const(int32(a.(int)))...)
				}
			}
			f, known := index[s.name]
			if s.name == "call" {
				f, known = im.Call, true
			}
			if !known {
				f = b.Import(wasi, s.name, params, "i")
				index[s.name] = f
			}
			code = w.Cat(code, push, w.Call(f))
			if s.name == "call" {
				code = w.Cat(code, w.Wrap)
			}
			code = w.Cat(code, w.LocalSet(0))
		}
		return w.Cat(code, write(im, 1, 0, n), w.Drop, w.LocalGet(0))
	})
}

func le64(values ...uint64) string {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return fmt.Sprintf("%q", b)
}

// timer is a poll_oneoff request of 48 bytes: a clock, a time and whether it is absolute.
func timer(user uint64, clock uint32, ns uint64, absolute byte) []byte {
	b := make([]byte, 48)
	binary.LittleEndian.PutUint64(b, user)
	binary.LittleEndian.PutUint32(b[16:], clock)
	binary.LittleEndian.PutUint64(b[24:], ns)
	b[40] = absolute
	return b
}

func wasiVectors() []Vector {
	const (
		badF, fault, notSup, sPipe = 8, 21, 58, 70
		far                        = page - 2
		start, second              = 5_000_000, 1_000_000_000
	)
	ff := []byte("\xff\xff\xff\xff\xff\xff\xff\xff")
	errno := func(n int) []string { return []string{fmt.Sprintf(`done %d ""`, n)} }
	v := []Vector{
		{Name: "wasi: one argument", Clauses: "8.1", Module: shim(nil, 8, do("args_sizes_get", 0, 4)), Want: []string{`done 0 "\x01\x00\x00\x00\x06\x00\x00\x00"`}},
		{Name: "wasi: it is guest", Clauses: "8.1", Module: shim(nil, 14, do("args_get", 0, 8)), Want: []string{`done 0 "\b\x00\x00\x00\x00\x00\x00\x00guest\x00"`}},
		{Name: "wasi: no environment", Clauses: "8.1 8.2", Module: shim(ff, 8, do("environ_get", 16, 16), do("environ_sizes_get", 0, 4)), Want: []string{"done 0 " + le64(0)}},
		{Name: "wasi: resolution of clocks", Clauses: "8.1", Module: shim(ff, 8, do("clock_res_get", 0, 0)), Want: []string{"done 0 " + le64(1000)}},
		{
			Name: "wasi: a clock counts its readings", Clauses: "8.1 6.4 8.2", TimeNS: start,
			Module: shim(nil, 16, do("clock_time_get", 0, int64(0), 0), do("clock_time_get", 0, int64(0), 8)),
			Want:   []string{"done 0 " + le64(start+1000, start+2000)},
		},
		{
			Name: "wasi: other clocks count from one second", Clauses: "8.1", TimeNS: start,
			Module: shim(nil, 16, do("clock_time_get", 1, int64(0), 0), do("clock_time_get", 2, int64(0), 8)),
			Want:   []string{"done 0 " + le64(second+1000, second+2000)},
		},
		{
			Name: "wasi: a reply moves the clock", Clauses: "8.1 6.4", TimeNS: start,
			Module: shim(nil, 8, do("call", 0, 8, 64, 64), do("clock_time_get", 0, int64(0), 0)),
			Answer: func(int, []byte) Answer { return Answer{`{"ok":{}}`, 9_000_000} },
			Want:   []string{"call *", "done 0 " + le64(9_001_000)},
		},
		{
			Name: "wasi: an old reply does not move it back", Clauses: "8.1 6.4", TimeNS: start,
			Module: shim(nil, 8, do("call", 0, 8, 64, 64), do("clock_time_get", 0, int64(0), 0)),
			Answer: func(int, []byte) Answer { return Answer{`{"ok":{}}`, 1} },
			Want:   []string{"call *", "done 0 " + le64(start+1000)},
		},
		{
			Name: "wasi: a sleep passes at once and moves the clock", Clauses: "8.1", TimeNS: start,
			Module: shim(append(timer(7, 1, 3_000_000, 0), timer(8, 1, 2_000_000, 0)...), 8, do("poll_oneoff", 0, 128, 2, 256), do("clock_time_get", 0, int64(0), 0)),
			Want:   []string{"done 0 " + le64(start+2_001_000)},
		},
		{
			Name: "wasi: the event names the earliest timer", Clauses: "8.1", TimeNS: start,
			Module: shim(append(timer(7, 1, 3_000_000, 0), timer(8, 1, 2_000_000, 0)...), 8, do("poll_oneoff", 0, 0, 2, 256)),
			Want:   []string{"done 0 " + le64(8)},
		},
		{
			Name: "wasi: a timer that is past", Clauses: "8.1", TimeNS: start,
			Module: shim(timer(7, 0, 1, 1), 8, do("poll_oneoff", 0, 128, 1, 256), do("clock_time_get", 0, int64(0), 0)),
			Want:   []string{"done 0 " + le64(start+1000)},
		},
		{Name: "wasi: a poll without a timer", Clauses: "8.1", Module: shim(append(make([]byte, 8), 1), 0, do("poll_oneoff", 0, 128, 1, 256)), Want: errno(notSup)},
		{Name: "wasi: randomness is seeded", Clauses: "8.1 6.4", Module: shim(nil, 32, do("random_get", 0, 16), do("random_get", 16, 16)), Want: []string{"done 0 *"}, Again: true},
		{Name: "wasi: sched_yield", Clauses: "8.1", Module: shim(nil, 0, do("sched_yield")), Want: errno(0)},
		{
			Name: "wasi: proc_exit ends the run with a fault", Clauses: "8.1 2.12",
			Module: build(func(b *w.Builder, _ w.Imports) []byte {
				return w.Cat(w.I32Const(0), w.Call(b.Import(wasi, "proc_exit", "i", "")), ok)
			}), Want: []string{"fault EXIT"},
		},
		{
			Name: "wasi: what is printed is a log", Clauses: "8.1",
			Module: shim([]byte("\x10\x00\x00\x00\x03\x00\x00\x00\x13\x00\x00\x00\x02\x00\x00\x00hello"), 4, do("fd_write", 1, 0, 1, 64), do("fd_write", 2, 0, 2, 0)),
			Want:   []string{`log "helhello"`, `done 0 "\x05\x00\x00\x00"`},
		},
		{Name: "wasi: a flood of logs is cut, and the guest not told", Clauses: "7.1 8.1", Module: flood, Want: []string{"log 65536 bytes de2f2560", `done 32768 ""`}},
		{Name: "wasi: standard input is at its end", Clauses: "8.1", Module: shim(ff, 4, do("fd_read", 0, 16, 1, 0)), Want: []string{`done 0 "\x00\x00\x00\x00"`}},
		{
			Name: "wasi: a standard stream is a character device", Clauses: "8.1", Module: shim(ff, 24, do("fd_fdstat_get", 1, 0)),
			Want: []string{`done 0 "\x02` + zeroes(23) + `"`},
		},
		{Name: "wasi: fd_fdstat_set_flags", Clauses: "8.1", Module: shim(nil, 0, do("fd_fdstat_set_flags", 1, 4)), Want: errno(0)},
		{Name: "wasi: closing a standard stream", Clauses: "8.1", Module: shim(nil, 0, do("fd_close", 2)), Want: errno(0)},
		{Name: "wasi: fd_seek", Clauses: "8.1", Module: shim(nil, 0, do("fd_seek", 1, int64(0), 0, 8)), Want: errno(sPipe)},
	}
	for _, s := range []step{
		do("fd_write", 3, 0, 1, 64), do("fd_write", 0, 0, 1, 64), do("fd_read", 1, 0, 1, 64), do("fd_close", 3), do("fd_fdstat_get", 3, 64),
		do("fd_prestat_get", 3, 64), do("fd_prestat_dir_name", 3, 64, 4),
	} {
		v = append(v, Vector{Name: fmt.Sprint("wasi: EBADF of ", s.name, s.args), Clauses: "8.1 8.2", Module: shim(nil, 0, s), Want: errno(badF)})
	}
	for _, s := range []step{
		do("args_sizes_get", far, 0), do("args_get", 0, far), do("environ_sizes_get", 0, far), do("clock_time_get", 0, int64(0), far),
		do("clock_res_get", 0, far), do("random_get", far, 8), do("random_get", 0, huge), do("random_get", -4, 8),
		do("fd_write", 1, far, 1, 0), do("fd_write", 1, 0, 1, far), do("fd_read", 0, 0, 1, far), do("fd_fdstat_get", 1, far),
		do("poll_oneoff", far, 0, 1, 256), do("poll_oneoff", 0, far, 1, 256), do("poll_oneoff", 0, 128, 1, far),
	} {
		v = append(v, Vector{Name: fmt.Sprint("wasi: EFAULT of ", s.name, s.args), Clauses: "8.1", Module: shim(nil, 0, s), Want: errno(fault)})
	}
	return v
}

func zeroes(n int) (s string) {
	for range n {
		s += `\x00`
	}
	return s
}

// flood prints 100 times 32 KiB and returns the length that it was told.
func flood() []byte {
	b, _ := w.Guest()
	print := b.Import(wasi, "fd_write", "iiii", "i")
	b.Data(0, binary.LittleEndian.AppendUint32([]byte{16, 0, 0, 0}, 32<<10))
	return w.Run(b, w.Repeat(100, w.I32Const(1), w.I32Const(0), w.I32Const(1), w.I32Const(page-8), w.Call(print), w.Drop), w.I32Const(page-8), load32)
}
