package sandbox

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// WASI error numbers that the shim answers with.
const (
	errnoBadF   = 8
	errnoFault  = 21
	errnoInval  = 28
	errnoNotSup = 58
	errnoSPipe  = 70
)

const (
	clockTick     = 1000          // ns that one reading of a clock adds
	monotonicZero = 1_000_000_000 // ns; a reading of zero upsets some runtimes
	clockEnd      = math.MaxInt64 // ns; a guest that sleeps beyond stays here
	argument      = "guest\x00"   // the only argument
	maxVectors    = 1024          // entries of one fd_write or poll_oneoff
	charDevice    = 2             // file type of the three standard streams
	pollEvent     = 32            // bytes
	pollRequest   = 48            // bytes
	absoluteTime  = 1             // flag of a clock request
	realtime      = 0             // clock id
	eventClock    = 0             // kind of a poll request
	fdstatSize    = 24            // bytes
	stdout        = 1
	stderr        = 2
)

// wasiFuncs is the subset of WASI preview 1 that guests of Go, C, Rust and QuickJS
// import: no files, no sockets, no ambient authority; time and randomness are
// functions of the run. A bad pointer is EFAULT here, not a trap.
func wasiFuncs() []hostFunc {
	ok := func(*Host, []uint64) (uint64, error) { return 0, nil }
	badF := func(*Host, []uint64) (uint64, error) { return errnoBadF, nil }
	return []hostFunc{
		errnoFunc("sched_yield", "", ok),
		{wasiModule, "proc_exit", signature{"i", ""}, func(_ *Host, st []uint64) error {
			return fault(wire.FaultExit, "the guest exited with status %d; return from monroe_run instead", uint32(st[0]))
		}},
		errnoFunc("args_sizes_get", "ii", func(h *Host, st []uint64) (uint64, error) {
			return 0, errors.Join(h.put32(st[0], 1), h.put32(st[1], uint32(len(argument))))
		}),
		errnoFunc("args_get", "ii", (*Host).argsGet),
		errnoFunc("environ_sizes_get", "ii", func(h *Host, st []uint64) (uint64, error) {
			return 0, errors.Join(h.put32(st[0], 0), h.put32(st[1], 0))
		}),
		errnoFunc("environ_get", "ii", ok),
		errnoFunc("clock_res_get", "ii", func(h *Host, st []uint64) (uint64, error) {
			return 0, h.put64(st[1], clockTick)
		}),
		errnoFunc("clock_time_get", "iIi", func(h *Host, st []uint64) (uint64, error) {
			h.advance(clockTick)
			if uint32(st[0]) == realtime {
				return 0, h.put64(st[2], h.clock)
			}
			return 0, h.put64(st[2], h.monotonic())
		}),
		errnoFunc("random_get", "ii", func(h *Host, st []uint64) (uint64, error) {
			b, err := h.span(st[0], st[1])
			if err == nil {
				_, err = h.random.Read(b)
			}
			return 0, err
		}),
		errnoFunc("poll_oneoff", "iiii", (*Host).poll),
		errnoFunc("fd_write", "iiii", (*Host).fdWrite),
		errnoFunc("fd_read", "iiii", func(h *Host, st []uint64) (uint64, error) {
			if uint32(st[0]) != 0 {
				return errnoBadF, nil
			}
			return 0, h.put32(st[3], 0) // standard input is empty
		}),
		errnoFunc("fd_close", "i", func(_ *Host, st []uint64) (uint64, error) {
			if uint32(st[0]) > stderr {
				return errnoBadF, nil
			}
			return 0, nil
		}),
		errnoFunc("fd_seek", "iIii", func(*Host, []uint64) (uint64, error) { return errnoSPipe, nil }),
		errnoFunc("fd_fdstat_get", "ii", func(h *Host, st []uint64) (uint64, error) {
			if uint32(st[0]) > stderr {
				return errnoBadF, nil
			}
			b, err := h.span(st[1], fdstatSize)
			if err == nil {
				clear(b)
				b[0] = charDevice
			}
			return 0, err
		}),
		errnoFunc("fd_fdstat_set_flags", "ii", ok),
		errnoFunc("fd_prestat_get", "ii", badF),
		errnoFunc("fd_prestat_dir_name", "iii", badF),
	}
}

// errnoFunc is a function whose result is an error number.
func errnoFunc(name, params string, fn func(*Host, []uint64) (uint64, error)) hostFunc {
	return hostFunc{wasiModule, name, signature{params, "i"}, func(h *Host, st []uint64) error {
		n, err := fn(h, st)
		var f *Fault
		if errors.As(err, &f) && f.Code == wire.FaultMemory {
			n, err = errnoFault, nil
		}
		// A stack without parameters still has room for the result.
		st[0] = n
		return err
	}}
}

// advance moves the clock; it saturates.
func (h *Host) advance(ns uint64) {
	h.clock = min(h.clock, clockEnd)
	h.clock += min(ns, clockEnd-h.clock)
}

func (h *Host) monotonic() uint64 { return h.clock - h.origin + monotonicZero }

func (h *Host) put32(ptr uint64, v uint32) error {
	b, err := h.span(ptr, 4)
	if err == nil {
		binary.LittleEndian.PutUint32(b, v)
	}
	return err
}

func (h *Host) put64(ptr, v uint64) error {
	b, err := h.span(ptr, 8)
	if err == nil {
		binary.LittleEndian.PutUint64(b, v)
	}
	return err
}

func (h *Host) argsGet(st []uint64) (uint64, error) {
	b, err := h.span(st[1], uint64(len(argument)))
	if err != nil {
		return 0, err
	}
	copy(b, argument)
	return 0, h.put32(st[0], uint32(st[1]))
}

// poll answers the earliest timer at once and moves the clock to it: nothing else
// can ever become ready.
func (h *Host) poll(st []uint64) (uint64, error) {
	n := uint64(uint32(st[2]))
	if n == 0 || n > maxVectors {
		return errnoInval, nil
	}
	subs, err := h.span(st[0], n*pollRequest)
	if err != nil {
		return 0, err
	}
	best, found := uint64(0), -1
	for i := range int(n) {
		s := subs[i*pollRequest : (i+1)*pollRequest]
		if s[8] != eventClock {
			continue
		}
		wait := binary.LittleEndian.Uint64(s[24:])
		if s[40]&absoluteTime != 0 {
			now := h.monotonic()
			if binary.LittleEndian.Uint32(s[16:]) == realtime {
				now = h.clock
			}
			wait -= min(wait, now)
		}
		if found < 0 || wait < best {
			best, found = wait, i
		}
	}
	if found < 0 {
		return errnoNotSup, nil
	}
	user := [8]byte(subs[found*pollRequest:]) // before the output may overwrite it
	out, err := h.span(st[1], pollEvent)
	if err != nil {
		return 0, err
	}
	if _, err := h.span(st[3], 4); err != nil {
		return 0, err
	}
	clear(out)
	copy(out, user[:])
	h.advance(best)
	return 0, h.put32(st[3], 1)
}

func (h *Host) fdWrite(st []uint64) (uint64, error) {
	if fd := uint32(st[0]); fd != stdout && fd != stderr {
		return errnoBadF, nil
	}
	n := uint64(uint32(st[2]))
	if n > maxVectors {
		return errnoInval, nil
	}
	iov, err := h.span(st[1], n*8)
	if err != nil {
		return 0, err
	}
	var total uint32
	for ; len(iov) > 0; iov = iov[8:] {
		b, err := h.span(uint64(binary.LittleEndian.Uint32(iov)), uint64(binary.LittleEndian.Uint32(iov[4:])))
		if err != nil {
			return 0, err
		}
		if uint64(total)+uint64(len(b)) > math.MaxInt32 {
			return errnoInval, nil
		}
		total += uint32(len(b))
		h.log(b)
	}
	return 0, h.put32(st[3], total)
}

// log forwards what still fits the run's allowance. The guest is told that all
// was written, as what it prints may not change what it does.
func (h *Host) log(b []byte) {
	b = b[:min(len(b), abi.MaxLog-h.logged)]
	h.logged += len(b)
	if len(b) > 0 && h.cfg.Log != nil {
		h.cfg.Log(b)
	}
}
