package sandbox

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// Results of monroe_v1 functions, their upper 32 bits.
const (
	resultHere   = 0 // the lower half counts the bytes at the guest's buffer
	resultParked = 1 // the lower half is a handle to read
)

// Handles that every run has; parked replies follow.
const (
	handleInput  = 0
	handleResult = 1
	firstParked  = 2
)

// MaxParked is how many bytes may be parked at the same time, in all handles.
const MaxParked = 64 << 20

// A Config is one run as the host side of a guest sees it.
type Config struct {
	Limits abi.Limits // zero fields mean their defaults
	Seed   [32]byte   // of the stream behind WASI randomness
	TimeNS int64      // the WASI clock at the start, since 1970
	Input  []byte     // the run's input; not copied, not changed
	// Call answers one request, which is the callee's to keep. The reply is only valid
	// until the next call; at moves the WASI clock. An error ends the guest; a refusal is a
	// reply, not an error.
	Call func(request []byte) (reply []byte, at int64, err error)
	// Log takes what the guest prints, abi.MaxLog bytes in total; text is only
	// valid during the call. Nil drops it.
	Log func(text []byte)
}

// A Host is the engine-neutral host side of one instance. It serves one guest call
// at a time and is used for one run.
type Host struct {
	cfg    Config
	mem    func() []byte // the guest's memory now; a slice of it never outlives a host function
	live   bool          // monroe_run is running: host calls are allowed
	input  []byte        // what is still to be read
	result []byte
	calls  uint32
	parked map[uint32]*parked
	held   int // bytes in parked
	next   uint32
	logged int
	fault  error // the first one
	clock  uint64
	origin uint64
	random *rand.ChaCha8
}

// A parked reply did not fit the guest's buffer. It counts in full until it is
// closed, however much of it was read.
type parked struct {
	rest []byte
	size int
}

// NewHost returns the host side of one run.
func NewHost(cfg Config) *Host {
	cfg.Limits = cfg.Limits.Or(abi.DefaultLimits())
	at := uint64(max(cfg.TimeNS, 0))
	return &Host{
		cfg: cfg, input: cfg.Input, parked: map[uint32]*parked{}, next: firstParked,
		clock: at, origin: at, random: rand.NewChaCha8(cfg.Seed),
	}
}

// serve calls a host function for an engine. It never panics, and the first error
// is kept: engines wrap or flatten what passes through them.
func (h *Host) serve(f hostFunc, stack []uint64) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fault(wire.FaultInternal, "the host function %s failed: %v", f.name, e)
		}
		if err != nil && h.fault == nil {
			h.fault = err
		}
	}()
	if h.fault != nil {
		return h.fault // a guest that survives its own trap gets nothing more
	}
	return f.fn(h, stack)
}

// span is guest memory [ptr, ptr+n). Both are 32-bit numbers, so that the 64-bit
// sum cannot wrap.
func (h *Host) span(ptr, n uint64) ([]byte, error) {
	m := h.mem()
	p, n := uint64(uint32(ptr)), uint64(uint32(n))
	if p+n > uint64(len(m)) {
		return nil, fault(wire.FaultMemory, "the guest named %d bytes at %d; its memory has %d bytes", n, p, len(m))
	}
	return m[p : p+n : p+n], nil
}

func (h *Host) started(name string) error {
	if !h.live {
		return fault(wire.FaultInit, "the guest called %s.%s before monroe_run; a start-up may not call the host", abi.ImportModule, name)
	}
	return nil
}

func pack(result, n uint32) uint64 { return uint64(result)<<32 | uint64(n) }

func (h *Host) call(st []uint64) error {
	if err := h.started("call"); err != nil {
		return err
	}
	in, err := h.span(st[0], st[1])
	if err != nil {
		return err
	}
	if _, err = h.span(st[2], st[3]); err != nil {
		return err // before the effect, not after it
	}
	if h.calls >= h.cfg.Limits.Calls {
		return fault(wire.FaultLimit, "the run made its %d host calls; ask for less, in batches, or raise the limit calls", h.cfg.Limits.Calls)
	}
	h.calls++
	reply, err := h.answer(in)
	if err != nil {
		return err
	}
	out, err := h.span(st[2], st[3]) // anew: the engine may have moved the memory
	if err != nil {
		return err
	}
	if len(reply) <= len(out) {
		st[0] = pack(resultHere, uint32(copy(out, reply)))
		return nil
	}
	id, err := h.park(reply)
	st[0] = pack(resultParked, id)
	return err
}

// answer copies the request once and decides on the copy. Only a request of
// acceptable size leaves the process.
func (h *Host) answer(in []byte) ([]byte, error) {
	if len(in) > abi.MaxRequest {
		return abi.Refuse(abi.Deny(abi.TooLarge, fmt.Sprintf("the request has %d bytes, at most %d are allowed", len(in), abi.MaxRequest), "send less in one call")).Encode(), nil
	}
	reply, at, err := h.cfg.Call(append([]byte(nil), in...))
	if err != nil {
		return nil, err
	}
	if len(reply) > abi.MaxReply {
		return nil, fault(wire.FaultInternal, "a reply has %d bytes, at most %d are allowed", len(reply), abi.MaxReply)
	}
	// Never backwards, even if the guest has slept past the reply.
	h.clock = max(h.clock, uint64(max(at, 0)))
	return reply, nil
}

func (h *Host) park(reply []byte) (uint32, error) {
	if len(h.parked) >= abi.MaxHandles {
		return 0, fault(wire.FaultLimit, "%d replies are parked, which is the most; read and close them, or use a larger buffer", abi.MaxHandles)
	}
	if h.held+len(reply) > MaxParked {
		return 0, fault(wire.FaultLimit, "the parked replies have more than %d bytes; read and close them", MaxParked)
	}
	id := h.next
	h.next++ // at most Limits.Calls times, so it cannot wrap
	h.parked[id] = &parked{rest: bytes.Clone(reply), size: len(reply)}
	h.held += len(reply)
	return id, nil
}

func (h *Host) read(st []uint64) error {
	if err := h.started("read"); err != nil {
		return err
	}
	out, err := h.span(st[1], st[2])
	if err != nil {
		return err
	}
	id, n := uint32(st[0]), 0
	switch src, ok := h.parked[id]; {
	case id == handleInput:
		n = copy(out, h.input)
		h.input = h.input[n:]
	case ok:
		n = copy(out, src.rest)
		src.rest = src.rest[n:]
	default:
		return fault(wire.FaultMemory, "the guest read from handle %d, which is not open for reading", id)
	}
	st[0] = pack(resultHere, uint32(n))
	return nil
}

func (h *Host) write(st []uint64) error {
	if err := h.started("write"); err != nil {
		return err
	}
	in, err := h.span(st[1], st[2])
	if err != nil {
		return err
	}
	if id := uint32(st[0]); id != handleResult {
		return fault(wire.FaultMemory, "the guest wrote to handle %d, which is not open for writing; 1 is the result", id)
	}
	if len(h.result)+len(in) > abi.MaxResult {
		return fault(wire.FaultLimit, "the result has more than %d bytes; store large data elsewhere and return a reference", abi.MaxResult)
	}
	h.result = append(h.result, in...)
	st[0] = pack(resultHere, uint32(len(in)))
	return nil
}

func (h *Host) close(st []uint64) error {
	if err := h.started("close"); err != nil {
		return err
	}
	id := uint32(st[0])
	p, ok := h.parked[id]
	if !ok {
		return fault(wire.FaultMemory, "the guest closed handle %d, which is not a parked reply or was closed before", id)
	}
	h.held -= p.size
	delete(h.parked, id)
	st[0] = 0
	return nil
}
