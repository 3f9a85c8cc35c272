package runner_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// FuzzWorker lets a worker say anything at all, after a run has begun with it. Its own
// run ends, and the workspace answers.
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
		f.Add(seed)
	}
	s := &fakeSpawner{scripts: []script{nil}}
	b := newBench(f, s)
	f.Fuzz(func(t *testing.T, said []byte) {
		s.mu.Lock()
		s.scripts[0] = func(c net.Conn) {
			open(c)
			heard := make(chan struct{})
			go func() { // it hears what it is told, and does not care
				defer close(heard)
				_, _ = io.Copy(io.Discard, c)
			}()
			_, _ = c.Write(said)
			_ = c.Close()
			<-heard
		}
		s.mu.Unlock()
		r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
		if err != nil {
			t.Fatal(err)
		}
		b.await(t, r.ID, func(s host.RunState) bool { return s == host.StateWaiting })
		v := b.view(t, r.ID)
		if v.State == host.StateWaiting { // it asked for a long sleep
			if err := b.CancelRun(t.Context(), b.caller, r.ID); err != nil {
				t.Fatal(err)
			}
			return
		}
		// A worker that takes up a run and asks again what is recorded has diverged.
		if v.State != host.StateFailed && v.State != host.StateSucceeded && v.State != host.StateDiverged {
			t.Errorf("the run %s: %s", v.State, v.Failure)
		}
		if ended := bytes.Contains(said, end[4:5]); v.State == host.StateSucceeded && !ended {
			t.Errorf("it succeeded without an end: %q", said)
		}
	})
}
