package runner_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/workspace"
)

// FuzzWorker lets a worker say anything at all, after a run has begun with it, and then
// close its descriptor or leave it open. Its own run ends, a run beside it ends well, and
// the workspace answers.
func FuzzWorker(f *testing.F) {
	frame := func(k wire.Kind, parts ...[]byte) []byte {
		var b bytes.Buffer
		_ = wire.WriteFrame(&b, k, parts...)
		return b.Bytes()
	}
	ask := frame(wire.KindCall, wire.AppendCall(nil, 1), []byte(now))
	end := frame(wire.KindDone, binary.LittleEndian.AppendUint32(nil, 0), []byte(`"well"`))
	for _, seed := range [][]byte{
		nil, ask, end, append(ask, end...), append(append(ask, ask...), end...), end[:len(end)-1],
		frame(wire.KindLog, []byte("\x1b[31mred\n")), frame(wire.KindFault, []byte(`{"code":"TRAP","message":"x"}`)),
		frame(wire.KindSeen, make([]byte, 36)),
		{0xff, 0xff, 0xff, 0xff, byte(wire.KindDone)},
		[]byte("panic: runtime error"),
		frame(wire.KindCall, wire.AppendCall(nil, 1), []byte(`{"op":"time.sleep","v":1,"args":{"ms":1}}`)),
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	type worker struct {
		said           []byte
		stays          bool
		begun, release chan struct{} // of the run beside it
	}
	var current atomic.Pointer[worker]
	b := benchWith(f, &fakeSpawner{scripts: []script{func(c net.Conn) {
		w := current.Load()
		_, _, _ = wire.ReadFrame(c, wire.KindStart)
		if _, input, _ := wire.ReadFrame(c, wire.KindInput); string(input) == beside {
			close(w.begun)
			<-w.release
			done(c)
			return
		}
		heard := make(chan struct{})
		go func() { // it hears what it is told, and does not care
			defer close(heard)
			_, _ = io.Copy(io.Discard, c)
		}()
		_, _ = c.Write(w.said)
		if !w.stays {
			_ = c.Close()
		}
		<-heard
	}}}, func(c *workspace.Config) { c.Operator.Workers = 2 })
	b.push(f, `{"abi":1,"name":"short","version":"1","limits":{"wall_ns":300000000}}`)
	f.Fuzz(func(t *testing.T, said []byte, stays bool) {
		w := &worker{said, stays, make(chan struct{}), make(chan struct{})}
		current.Store(w)
		other, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture", Input: []byte(beside)})
		if err != nil {
			t.Fatal(err)
		}
		<-w.begun
		r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "short"})
		if err != nil {
			t.Fatal(err)
		}
		b.await(t, r.ID, func(s host.RunState) bool { return s == host.StateWaiting })
		v := b.view(t, r.ID)
		switch v.State {
		case host.StateWaiting: // it asked for a long sleep
			if err := b.CancelRun(t.Context(), b.caller, r.ID); err != nil {
				t.Fatal(err)
			}
		case host.StateFailed, host.StateDiverged: // one that takes up a run and asks again what is recorded has diverged
		case host.StateSucceeded:
			if !ends(said) {
				t.Errorf("it succeeded without an end: %q", said)
			}
		default:
			t.Errorf("the run %s: %s", v.State, v.Failure)
		}
		close(w.release)
		b.await(t, other.ID, func(host.RunState) bool { return false })
		if v := b.view(t, other.ID); v.State != host.StateSucceeded || string(v.Result) != `"well"` {
			t.Errorf("the run beside it %s: %s %s", v.State, v.Failure, v.Result)
		}
	})
}

// beside is the input of the run that has nothing to do with it.
const beside = `"beside"`

// ends says that the frames of a worker come to an end that is well.
func ends(said []byte) bool {
	for r := bytes.NewReader(said); ; {
		k, payload, err := wire.ReadFrame(r, wire.KindSeen, wire.KindCall, wire.KindLog, wire.KindDone, wire.KindFault)
		switch {
		case err != nil || k == wire.KindFault:
			return false
		case k == wire.KindDone:
			return len(payload) >= 4 && binary.LittleEndian.Uint32(payload) == 0
		}
	}
}
