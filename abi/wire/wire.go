// Package wire frames what monroed and monroe-worker say to each other over the
// one descriptor that a worker inherits.
//
// It knows frames: a length, a kind, a payload, and how large each kind may be
// in each direction. A frame carries no run id and no token: the descriptor
// identifies the run.
//
// It must not know what the payloads mean for policy. Both ends treat the other
// as hostile: a length is checked before anything is allocated.
//
// # Layout
//
// A frame is a little-endian uint32 that counts the kind byte and the payload,
// the kind byte, and the payload. Integers in payloads are little-endian. A sequence
// is the number of a host call of the run, counted from 1; recorded ones are counted,
// too.
//
// # A run
//
//	worker → host  Ready     the confinement stands and the module is loaded (or Fault)
//	host → worker  Start     limits, seed, time, how many replies are recorded
//	host → worker  Input     the run's input
//	host → worker  Past × n  recorded replies, in order, pushed ahead
//	worker → host  Seen × n  the fingerprint of each request answered from the past
//	worker → host  Call      a live request
//	host → worker  Reply     its answer
//	worker → host  Log       what the guest printed
//	worker → host  Done | Fault
//
// The host lets no live call through until every recorded reply was seen with the
// fingerprint it was recorded for. The worker reads a Past only when its call is
// made, and collects Seen and Log frames meanwhile: the host has to read while it
// is still writing.
//
// # A compilation
//
//	worker → host  Ready
//	host → worker  Module
//	worker → host  Compiled | Fault
//
// Ahead of both goes the hand-over, one byte; see HandoverListener.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
)

// FD is the descriptor that a worker inherits.
const FD = 3

// ProgramFD is the descriptor of the program that a plugin's launcher becomes.
const ProgramFD = 4

// ExitUnconfined is the exit status of a worker that refused to start since the kernel
// lacks a part of the minimum; what it printed says which.
const ExitUnconfined = 3

// The hand-over: before its first frame a worker sends one of these bytes, the
// first with the descriptor that reports forbidden system calls (SCM_RIGHTS).
const (
	HandoverNone     byte = 0 // nothing is reported; only a host in --insecure-dev accepts it
	HandoverListener byte = 1
)

// Version of the protocol; Ready announces it and the two must be equal.
const Version = 1

// Kind says what a frame is.
type Kind byte

const (
	KindReady    Kind = 1  // worker: Ready as JSON
	KindStart    Kind = 2  // host: Start as JSON
	KindInput    Kind = 3  // host: the input
	KindPast     Kind = 4  // host: like Reply, for a call of the past
	KindSeen     Kind = 5  // worker: uint32 sequence, 32 bytes fingerprint
	KindCall     Kind = 6  // worker: uint32 sequence, request
	KindReply    Kind = 7  // host: uint32 sequence, uint64 time in ns since 1970, reply
	KindLog      Kind = 8  // worker: text of the guest, any bytes
	KindDone     Kind = 9  // worker: int32 status of monroe_run, result
	KindFault    Kind = 10 // worker: Fault as JSON
	KindModule   Kind = 11 // host: the module to compile
	KindCompiled Kind = 12 // worker: Compiled as JSON
)

// limit is the largest payload of each kind. It is the only list of kinds: what
// is not in it is refused.
var limit = map[Kind]int{
	KindReady: 4 << 10, KindStart: 16 << 10, KindInput: abi.MaxInput, KindPast: 12 + abi.MaxReply,
	KindSeen: 36, KindCall: 4 + abi.MaxRequest, KindReply: 12 + abi.MaxReply, KindLog: 8 << 10,
	KindDone: 4 + abi.MaxResult, KindFault: 8 << 10, KindModule: abi.MaxModule, KindCompiled: 256 << 10,
}

// MaxLog is the largest payload of one Log frame.
const MaxLog = 8 << 10

var (
	// ErrProtocol is wrapped when the peer sends what the protocol does not have.
	ErrProtocol = errors.New("wire protocol")
	// ErrTooLarge is wrapped when a frame exceeds the limit of its kind.
	ErrTooLarge = errors.New("frame too large")
)

// WriteFrame writes one frame in one Write. The payload is given in parts, so
// that a header need not be joined with a large body beforehand. A frame that fits into
// what a bufio.Writer has left is made there.
func WriteFrame(w io.Writer, k Kind, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if most, ok := limit[k]; !ok || n > most {
		return fmt.Errorf("%w: kind %d with %d bytes", ErrTooLarge, k, n)
	}
	var b []byte
	if w, ok := w.(*bufio.Writer); ok && 5+n <= w.Available() {
		b = w.AvailableBuffer()
	} else {
		b = make([]byte, 0, 5+n)
	}
	b = append(binary.LittleEndian.AppendUint32(b, uint32(n+1)), byte(k))
	for _, p := range parts {
		b = append(b, p...)
	}
	_, err := w.Write(b)
	return err
}

// ReadFrame reads one frame. allowed are the kinds that the peer may send now;
// another is an error before its payload is read. The payload is the caller's.
// io.EOF means the peer closed between frames.
func ReadFrame(r io.Reader, allowed ...Kind) (Kind, []byte, error) {
	return readFrame(r, new([5]byte), func(n int) []byte { return make([]byte, n) }, allowed)
}

// A Reader reads frames ahead and into memory that they share: a payload is overwritten
// by the next frame.
type Reader struct {
	r   *bufio.Reader
	h   [5]byte
	mem []byte
}

// maxShared is up to which size a payload has no memory of its own.
const maxShared = 16 << 10

// NewReader returns a Reader that asks r for up to size bytes at once.
func NewReader(r io.Reader, size int) *Reader { return &Reader{r: bufio.NewReaderSize(r, size)} }

// Frame is ReadFrame.
func (r *Reader) Frame(allowed ...Kind) (Kind, []byte, error) {
	return readFrame(r.r, &r.h, r.room, allowed)
}

func (r *Reader) room(n int) []byte {
	if n > maxShared {
		return make([]byte, n)
	}
	r.mem = slices.Grow(r.mem[:0], n)[:n]
	return r.mem
}

func readFrame(r io.Reader, h *[5]byte, room func(int) []byte, allowed []Kind) (Kind, []byte, error) {
	if _, err := io.ReadFull(r, h[:1]); err != nil {
		return 0, nil, err
	}
	if _, err := io.ReadFull(r, h[1:]); err != nil {
		return 0, nil, noEOF(err)
	}
	n, k := binary.LittleEndian.Uint32(h[:]), Kind(h[4])
	if !slices.Contains(allowed, k) {
		return 0, nil, fmt.Errorf("%w: unexpected frame kind %d", ErrProtocol, k)
	}
	if n < 1 || uint64(n-1) > uint64(limit[k]) {
		return 0, nil, fmt.Errorf("%w: kind %d announces %d bytes", ErrTooLarge, k, n)
	}
	p := room(int(n - 1))
	if _, err := io.ReadFull(r, p); err != nil {
		return 0, nil, noEOF(err)
	}
	return k, p, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Ready is the worker's first frame.
type Ready struct {
	Protocol int      `json:"protocol"`
	Engine   string   `json:"engine"`   // fingerprint: engine, version, architecture, NaN policy
	Enforced []string `json:"enforced"` // the confinement that stands, such as "seccomp", "landlock:7", "no_new_privs"
	LoadUS   int64    `json:"load_us"`  // time to load the module
}

// Start opens a run.
type Start struct {
	Limits abi.Limits `json:"limits"`
	Seed   []byte     `json:"seed"`    // 32 bytes; WASI randomness is a stream of it
	TimeNS int64      `json:"time_ns"` // WASI clock at the start, since 1970
	Past   uint32     `json:"past"`    // how many Past frames follow
}

// Fault ends a run or a compilation that could not end well.
type Fault struct {
	Code    FaultCode `json:"code"`
	Message string    `json:"message"` // text that may quote the guest: bound and escape it
}

// FaultCode is a closed set.
type FaultCode string

const (
	FaultModule   FaultCode = "MODULE"    // the upload was refused; Message tells the author what to change
	FaultTooLarge FaultCode = "TOO_LARGE" // the upload exceeds a limit
	FaultTrap     FaultCode = "TRAP"      // the guest trapped (unreachable, division, stack …)
	FaultMemory   FaultCode = "MEMORY"    // a pointer or handle that the guest may not use
	FaultExit     FaultCode = "EXIT"      // the guest called proc_exit
	FaultInit     FaultCode = "INIT"      // a host call during _initialize
	FaultLimit    FaultCode = "LIMIT"     // a limit of the run was reached: calls, result, handles
	FaultInternal FaultCode = "INTERNAL"  // the worker itself failed
)

// Compiled is the outcome of a compilation: what the module is, told by a
// process that parsed it. The host hashes the files itself.
type Compiled struct {
	Engine   string          `json:"engine"`
	Manifest json.RawMessage `json:"manifest"`
	Imports  []string        `json:"imports"`
	Took     time.Duration   `json:"took_ns"`
}

// EncodeJSON encodes a payload that is JSON.
func EncodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("{}") // decoding it fails its checks
	}
	return b
}

// AppendCall returns the payload header of a Call or the start of a Seen.
func AppendCall(b []byte, seq uint32) []byte { return binary.LittleEndian.AppendUint32(b, seq) }

// ParseCall splits the payload of a Call.
func ParseCall(p []byte) (seq uint32, request []byte, err error) {
	if len(p) < 4 {
		return 0, nil, fmt.Errorf("%w: a call of %d bytes", ErrProtocol, len(p))
	}
	return binary.LittleEndian.Uint32(p), p[4:], nil
}

// ParseSeen splits the payload of a Seen.
func ParseSeen(p []byte) (seq uint32, fingerprint abi.Digest, err error) {
	if len(p) != 4+len(fingerprint) {
		return 0, fingerprint, fmt.Errorf("%w: a fingerprint of %d bytes", ErrProtocol, len(p))
	}
	return binary.LittleEndian.Uint32(p), abi.Digest(p[4:]), nil
}

// AppendReply returns the payload header of a Reply or a Past.
func AppendReply(b []byte, seq uint32, at int64) []byte {
	b = binary.LittleEndian.AppendUint32(b, seq)
	return binary.LittleEndian.AppendUint64(b, uint64(at))
}

// ParseReply splits the payload of a Reply or a Past.
func ParseReply(p []byte) (seq uint32, at int64, reply []byte, err error) {
	if len(p) < 12 {
		return 0, 0, nil, fmt.Errorf("%w: a reply of %d bytes", ErrProtocol, len(p))
	}
	return binary.LittleEndian.Uint32(p), int64(binary.LittleEndian.Uint64(p[4:])), p[12:], nil
}

// ParseDone splits the payload of a Done.
func ParseDone(p []byte) (status int32, result []byte, err error) {
	if len(p) < 4 {
		return 0, nil, fmt.Errorf("%w: an end of %d bytes", ErrProtocol, len(p))
	}
	return int32(binary.LittleEndian.Uint32(p)), p[4:], nil
}
