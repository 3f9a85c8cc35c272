package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	if err := wire.WriteFrame(&b, wire.KindCall, wire.AppendCall(nil, 7), []byte("request")); err != nil {
		t.Fatal(err)
	}
	if err := wire.WriteFrame(&b, wire.KindReply, wire.AppendReply(nil, 7, -5), []byte("reply")); err != nil {
		t.Fatal(err)
	}
	k, p, err := wire.ReadFrame(&b, wire.KindLog, wire.KindCall)
	if err != nil || k != wire.KindCall {
		t.Fatalf("kind %d, %v", k, err)
	}
	if seq, request, err := wire.ParseCall(p); err != nil || seq != 7 || string(request) != "request" {
		t.Errorf("call %d %q %v", seq, request, err)
	}
	_, p, err = wire.ReadFrame(&b, wire.KindReply)
	if err != nil {
		t.Fatal(err)
	}
	if seq, at, reply, err := wire.ParseReply(p); err != nil || seq != 7 || at != -5 || string(reply) != "reply" {
		t.Errorf("reply %d %d %q %v", seq, at, reply, err)
	}
	if _, _, err := wire.ReadFrame(&b, wire.KindReply); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// frame builds a frame by hand, right or wrong.
func frame(n uint32, k wire.Kind, payload string) []byte {
	return append(append(binary.LittleEndian.AppendUint32(nil, n), byte(k)), payload...)
}

func TestReadFrameRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"an unexpected kind":     {frame(1, wire.KindStart, ""), wire.ErrProtocol},
		"kind 0":                 {frame(1, 0, ""), wire.ErrProtocol},
		"no kind":                {frame(0, wire.KindLog, ""), wire.ErrTooLarge},
		"more than its kind may": {frame(wire.MaxLog+2, wire.KindLog, ""), wire.ErrTooLarge},
		"4 GiB":                  {frame(1<<32-1, wire.KindLog, ""), wire.ErrTooLarge},
		"a cut header":           {[]byte{1, 0}, io.ErrUnexpectedEOF},
		"a cut payload":          {frame(5, wire.KindLog, "ab"), io.ErrUnexpectedEOF},
	} {
		if _, p, err := wire.ReadFrame(bytes.NewReader(c.in), wire.KindLog); !errors.Is(err, c.want) {
			t.Errorf("%s: %q, %v", name, p, err)
		}
	}
}

func TestWriteFrameRefuses(t *testing.T) {
	for k, n := range map[wire.Kind]int{wire.KindLog: wire.MaxLog + 1, wire.KindSeen: 37, 0: 0, 99: 0} {
		if err := wire.WriteFrame(io.Discard, k, make([]byte, n)); !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("kind %d with %d bytes: %v", k, n, err)
		}
	}
}

func TestParsersRefuseShortPayloads(t *testing.T) {
	if _, _, err := wire.ParseCall(make([]byte, 3)); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("call: %v", err)
	}
	if _, _, err := wire.ParseSeen(make([]byte, 35)); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("seen: %v", err)
	}
	if _, _, _, err := wire.ParseReply(make([]byte, 11)); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("reply: %v", err)
	}
	if _, _, err := wire.ParseDone(nil); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("done: %v", err)
	}
	want := abi.Digest{1, 2, 3}
	if seq, got, err := wire.ParseSeen(append(wire.AppendCall(nil, 9), want[:]...)); err != nil || seq != 9 || got != want {
		t.Errorf("seen: %d %s %v", seq, got, err)
	}
}

// FuzzReadFrame: whatever a peer sends, a frame is read whole or refused, and what
// was read is written the same.
func FuzzReadFrame(f *testing.F) {
	f.Add(frame(3, wire.KindLog, "ab"))
	f.Add(frame(1<<31, wire.KindCall, ""))
	f.Add(frame(5, wire.KindDone, "\x00\x00\x00\x00"))
	all := []wire.Kind{wire.KindReady, wire.KindSeen, wire.KindCall, wire.KindLog, wire.KindDone, wire.KindFault, wire.KindCompiled}
	f.Fuzz(func(t *testing.T, in []byte) {
		k, p, err := wire.ReadFrame(bytes.NewReader(in), all...)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := wire.WriteFrame(&out, k, p); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("%q was read and is written as %q, %v", in, out.Bytes(), err)
		}
	})
}
