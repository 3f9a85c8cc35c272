package wire_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

func kinds() []wire.Kind {
	var all []wire.Kind
	for k := wire.KindReady; k <= wire.KindCompiled; k++ {
		all = append(all, k)
	}
	return all
}

func TestFramesRoundTrip(t *testing.T) {
	for _, k := range kinds() {
		for _, payload := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("ab"), 18)} {
			var b bytes.Buffer
			if err := wire.WriteFrame(&b, k, payload[:len(payload)/2], payload[len(payload)/2:]); err != nil {
				t.Fatal(err)
			}
			written := bytes.Clone(b.Bytes())
			got, back, err := wire.ReadFrame(iotest.OneByteReader(&b), k)
			if err != nil || got != k || !bytes.Equal(back, payload) {
				t.Errorf("kind %d: got kind %d, %q, %v", k, got, back, err)
			}
			w := bufio.NewWriterSize(&b, 24) // some frames fit into it and some do not
			for range 3 {
				if err := wire.WriteFrame(w, k, payload); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Flush(); err != nil || !bytes.Equal(b.Bytes(), bytes.Repeat(written, 3)) {
				t.Errorf("kind %d: %x, three times %x was written, %v", k, b.Bytes(), written, err)
			}
		}
	}
}

// A Reader gives what ReadFrame gives, frame after frame, and small payloads cost it no
// memory of their own.
func TestAReaderSharesItsMemory(t *testing.T) {
	var b bytes.Buffer
	sizes := []int{0, 3, 100, 40 << 10, 1, 16 << 10, 0, 20}
	write := func() {
		for i, n := range sizes {
			if err := wire.WriteFrame(&b, wire.KindInput, bytes.Repeat([]byte{byte('a' + i)}, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	r := wire.NewReader(iotest.HalfReader(&b), 4096)
	for i, n := range sizes {
		k, p, err := r.Frame(wire.KindInput)
		if err != nil || k != wire.KindInput || !bytes.Equal(p, bytes.Repeat([]byte{byte('a' + i)}, n)) {
			t.Fatalf("frame %d: kind %d, %d bytes, %v", i, k, len(p), err)
		}
	}
	if _, _, err := r.Frame(wire.KindInput); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %v", err)
	}
	for range 20 {
		write()
	}
	if sizes, allocs := len(sizes), testing.AllocsPerRun(10, func() {
		for range sizes {
			if _, _, err := r.Frame(wire.KindInput); err != nil {
				t.Fatal(err)
			}
		}
	}); allocs != 1 { // for the large one
		t.Errorf("%d frames cost %v allocations", sizes, allocs)
	}
}

// TestHostilePeer sends what the protocol does not have. Nothing is allocated for a
// length that is only announced.
func TestHostilePeer(t *testing.T) {
	header := func(n uint32, k wire.Kind) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, n), byte(k))
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"nothing", nil, io.EOF},
		{"half a length", []byte{1, 0}, io.ErrUnexpectedEOF},
		{"no kind", []byte{1, 0, 0, 0}, io.ErrUnexpectedEOF},
		{"length 0", header(0, wire.KindSeen), wire.ErrTooLarge},
		{"4 GiB", header(1<<32-1, wire.KindSeen), wire.ErrTooLarge},
		{"one byte too many", header(36+2, wire.KindSeen), wire.ErrTooLarge},
		{"another kind", header(1, wire.KindDone), wire.ErrProtocol},
		{"kind 0", header(1, 0), wire.ErrProtocol},
		{"kind 255", header(1, 255), wire.ErrProtocol},
		{"half a payload", append(header(37, wire.KindSeen), 1, 2, 3), io.ErrUnexpectedEOF},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		k, p, err := wire.ReadFrame(bytes.NewReader(c.bytes), wire.KindSeen)
		k2, p2, err2 := wire.NewReader(bytes.NewReader(c.bytes), 64).Frame(wire.KindSeen)
		runtime.ReadMemStats(&after)
		if k2 != 0 || p2 != nil || !errors.Is(err2, c.want) {
			t.Errorf("%s: a Reader gives kind %d, %q, %v; want %v", c.name, k2, p2, err2, c.want)
		}
		if k != 0 || p != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: kind %d, %q, %v; want %v", c.name, k, p, err, c.want)
		}
		if grew := after.TotalAlloc - before.TotalAlloc; grew > 64<<10 {
			t.Errorf("%s: %d bytes allocated", c.name, grew)
		}
	}
}

// TestWriteRefuses what the other side would refuse, before a byte is written.
func TestWriteRefuses(t *testing.T) {
	for k, n := range map[wire.Kind]int{
		wire.KindSeen: 37, wire.KindCall: 5 + abi.MaxRequest, wire.KindReply: 13 + abi.MaxReply,
		wire.KindModule: abi.MaxModule + 1, wire.KindLog: wire.MaxLog + 1, 0: 0, 200: 0,
	} {
		var b bytes.Buffer
		if err := wire.WriteFrame(&b, k, make([]byte, n)); !errors.Is(err, wire.ErrTooLarge) || b.Len() > 0 {
			t.Errorf("kind %d with %d bytes: %v, %d bytes written", k, n, err, b.Len())
		}
	}
}

func TestPayloads(t *testing.T) {
	digest := abi.Fingerprint([]byte("x"))
	seq, got, err := wire.ParseSeen(append(wire.AppendCall(nil, 7), digest[:]...))
	if seq != 7 || got != digest || err != nil {
		t.Errorf("seen %d %v %v", seq, got, err)
	}
	seq, at, reply, err := wire.ParseReply(append(wire.AppendReply(nil, 8, -9), "ok"...))
	if seq != 8 || at != -9 || string(reply) != "ok" || err != nil {
		t.Errorf("reply %d %d %q %v", seq, at, reply, err)
	}
	seq, request, err := wire.ParseCall(append(wire.AppendCall(nil, 3), "req"...))
	if seq != 3 || string(request) != "req" || err != nil {
		t.Errorf("call %d %q %v", seq, request, err)
	}
	if status, result, err := wire.ParseDone([]byte{0xff, 0xff, 0xff, 0xff, 'r'}); status != -1 || string(result) != "r" || err != nil {
		t.Errorf("done %d %q %v", status, result, err)
	}
	for n := range 4 {
		short := make([]byte, n)
		_, _, e1 := wire.ParseSeen(short)
		_, _, _, e2 := wire.ParseReply(short)
		_, _, e3 := wire.ParseCall(short)
		_, _, e4 := wire.ParseDone(short)
		for i, err := range []error{e1, e2, e3, e4} {
			if !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("payload %d of %d bytes: %v", i, n, err)
			}
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, byte(wire.KindReady)})
	f.Add(append([]byte{37, 0, 0, 0, byte(wire.KindSeen)}, make([]byte, 36)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, byte(wire.KindModule)})
	f.Add([]byte{6, 0, 0, 0, byte(wire.KindDone), 1, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		k, p, err := wire.ReadFrame(r, kinds()...)
		if err != nil {
			if k != 0 || p != nil {
				t.Fatalf("kind %d and %q with %v", k, p, err)
			}
			return
		}
		var again bytes.Buffer
		if err := wire.WriteFrame(&again, k, p); err != nil {
			t.Fatal(err)
		}
		if read := in[:len(in)-r.Len()]; !bytes.Equal(again.Bytes(), read) {
			t.Fatalf("%x was read, %x written", read, again.Bytes())
		}
		_, _, _ = wire.ParseSeen(p)
		_, _, _, _ = wire.ParseReply(p)
		_, _, _ = wire.ParseCall(p)
		_, _, _ = wire.ParseDone(p)
	})
}
