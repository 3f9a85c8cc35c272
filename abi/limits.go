package abi

import "time"

// Limits of one message or one run. They are fixed by the ABI: a guest may rely
// on them and a host enforces them (SPEC 7).
const (
	MaxRequest = 1 << 20   // bytes of one request
	MaxReply   = 8 << 20   // bytes of one reply, parked or not
	MaxInput   = 4 << 20   // bytes of a run's input
	MaxResult  = 1 << 20   // bytes of a run's result
	MaxLog     = 64 << 10  // bytes of standard output and error together; the rest is dropped
	MaxModule  = 16 << 20  // bytes of an uploaded module
	MaxHandles = 64        // replies parked at the same time
	MaxName    = 64        // bytes of an op's or operation's name
	MaxBatch   = 64        // requests of one batch
	MaxKVKey   = 256       // bytes of a key
	MaxKVValue = 256 << 10 // bytes of a value
	MaxKVKeys  = 1000      // keys of one kv.list
)

// Limits are those of one run: part of its START record, since a guest could
// behave differently under others. The zero value of a field means its default.
type Limits struct {
	MemoryPages uint32        `json:"memory_pages,omitempty"` // of 64 KiB
	Calls       uint32        `json:"calls,omitempty"`        // host calls
	Wall        time.Duration `json:"wall_ns,omitempty"`      // running time, waiting excluded
	CPU         time.Duration `json:"cpu_ns,omitempty"`       // processor time of one worker process, rounded up to seconds
}

// DefaultLimits are used where neither the manifest nor the operator says less.
func DefaultLimits() Limits {
	return Limits{MemoryPages: 4096, Calls: 50_000, Wall: 10 * time.Minute, CPU: 2 * time.Minute}
}

// Or fills the zero fields of l from d.
func (l Limits) Or(d Limits) Limits {
	if l.MemoryPages == 0 {
		l.MemoryPages = d.MemoryPages
	}
	if l.Calls == 0 {
		l.Calls = d.Calls
	}
	if l.Wall == 0 {
		l.Wall = d.Wall
	}
	if l.CPU == 0 {
		l.CPU = d.CPU
	}
	return l
}

// Min returns the stricter of each field.
func (l Limits) Min(m Limits) Limits {
	return Limits{
		MemoryPages: min(l.MemoryPages, m.MemoryPages), Calls: min(l.Calls, m.Calls),
		Wall: min(l.Wall, m.Wall), CPU: min(l.CPU, m.CPU),
	}
}
