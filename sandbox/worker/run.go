package worker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox"
)

// errLink is wrapped by what ends a run because the host is gone or talks nonsense:
// there is nobody left to tell.
var errLink = errors.New("the host is gone")

// A run is the conversation about one run.
type run struct {
	*link
	past uint32 // recorded replies that the guest has not asked for yet
	seq  uint32 // of the next call, from 1
}

// run serves one run after Ready.
func (l *link) run(module sandbox.Module) error {
	start, input, err := l.open()
	if err != nil {
		return err
	}
	r := &run{link: l, past: start.Past, seq: 1}
	host := sandbox.NewHost(sandbox.Config{
		Limits: start.Limits, Seed: [32]byte(start.Seed), TimeNS: start.TimeNS, Input: input,
		Call: r.call, Log: r.log,
	})
	status, result, err := sandbox.Run(module, host)
	if errors.Is(err, errLink) {
		return err
	}
	if err != nil {
		return l.fail(err)
	}
	return l.send(wire.KindDone, binary.LittleEndian.AppendUint32(nil, uint32(status)), result)
}

// open reads what precedes the replies.
func (l *link) open() (start wire.Start, input []byte, err error) {
	_, p, err := l.r.Frame(wire.KindStart)
	if err != nil {
		return start, nil, err
	}
	if err := json.Unmarshal(p, &start); err != nil {
		return start, nil, fmt.Errorf("%w: the Start frame cannot be read: %w", wire.ErrProtocol, err)
	}
	if len(start.Seed) != 32 {
		return start, nil, fmt.Errorf("%w: a seed of %d bytes", wire.ErrProtocol, len(start.Seed))
	}
	_, input, err = l.r.Frame(wire.KindInput)
	return start, bytes.Clone(input), err
}

// call answers one request: from the past while there is one, then from the host.
func (r *run) call(request []byte) ([]byte, int64, error) {
	seq := r.seq
	r.seq++
	want := wire.KindReply
	if r.past > 0 {
		r.past--
		want = wire.KindPast
		// Pipelined: the host has pushed the reply ahead and checks later. When
		// the last one is answered the guest goes live, and the host must know.
		fingerprint := abi.Fingerprint(request)
		if err := r.put(wire.KindSeen, wire.AppendCall(nil, seq), fingerprint[:]); err != nil {
			return nil, 0, err
		}
	} else if err := r.put(wire.KindCall, wire.AppendCall(nil, seq), request); err != nil {
		return nil, 0, err
	}
	if r.past == 0 {
		if err := r.w.Flush(); err != nil {
			return nil, 0, fmt.Errorf("%w: %w", errLink, err)
		}
	}
	_, p, err := r.r.Frame(want)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errLink, err)
	}
	got, at, reply, err := wire.ParseReply(p)
	if err == nil && got != seq {
		err = fmt.Errorf("%w: a reply to call %d instead of %d", wire.ErrProtocol, got, seq)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errLink, err)
	}
	return reply, at, nil
}

// log forwards what the guest prints: at once when the run is live, so that it is
// not lost if the process is killed.
func (r *run) log(text []byte) {
	err := clipLog(text, func(b []byte) error { return r.put(wire.KindLog, b) })
	if err == nil && r.past == 0 {
		_ = r.w.Flush() // bufio keeps the error for the next call
	}
}

func (r *run) put(k wire.Kind, parts ...[]byte) error {
	if err := wire.WriteFrame(r.w, k, parts...); err != nil {
		return fmt.Errorf("%w: %w", errLink, err)
	}
	return nil
}
