package guesttest

import (
	"slices"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// exchange is one host call as a journal keeps it.
type exchange struct {
	request []byte
	reply   []byte
}

// Replay executes a guest again with the input and the recorded replies of the last
// run, as a host does after a wait. It fails the test where the guest does not make
// the same requests or does not end the same. Nothing that the guest does then has
// an effect.
//
// A guest that passes keeps nothing outside its run. Natively a map has another
// order and time.Now another value each time, which a host evens out for modules;
// a guest that passes here does not depend on that either.
func (h *Host) Replay(run func(*guest.Run) error) {
	h.t.Helper()
	again := &replay{h: h, past: h.journal}
	guest.Execute(again, run)
	switch {
	case again.diverged:
	case again.at != len(h.journal):
		h.t.Errorf("replay: the guest ended after %d of %d calls", again.at, len(h.journal))
	case string(again.result) != string(h.result):
		h.t.Errorf("replay: the result was\n%s\nand is\n%s", clip(h.result), clip(again.result))
	}
}

// replay is the host of a run that goes over its record.
type replay struct {
	h        *Host
	past     []exchange
	at       int
	diverged bool
	result   []byte
}

func (r *replay) Input() []byte      { return slices.Clone(r.h.input) }
func (r *replay) SetResult(b []byte) { r.result = slices.Clone(b) }

func (r *replay) Call(b []byte) []byte {
	stop := abi.Refuse(abi.Deny(abi.Internal, "the replay is over", "")).Encode()
	if r.diverged {
		return stop
	}
	if r.at == len(r.past) {
		r.diverged = true
		r.h.t.Errorf("replay: call %d was not made before: %s", r.at+1, clip(b))
		return stop
	}
	was := r.past[r.at]
	if abi.Fingerprint(was.request) != abi.Fingerprint(b) {
		r.diverged = true
		r.h.t.Errorf("replay: call %d was\n%s\nand is\n%s", r.at+1, clip(was.request), clip(b))
		return stop
	}
	r.at++
	return was.reply
}

// record answers a request and keeps both for Replay.
func (h *Host) record(b []byte) []byte {
	reply := h.answer(b).Encode()
	h.journal = append(h.journal, exchange{slices.Clone(b), slices.Clone(reply)})
	return reply
}
