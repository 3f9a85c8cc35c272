//go:build wasip1

package guest

import (
	"unsafe"

	"github.com/getmonroe/monroe/abi"
)

//go:wasmimport monroe_v1 call
func hostCall(req unsafe.Pointer, reqLen uint32, out unsafe.Pointer, outCap uint32) int64

//go:wasmimport monroe_v1 read
func hostRead(handle uint32, ptr unsafe.Pointer, n uint32) int64

//go:wasmimport monroe_v1 write
func hostWrite(handle uint32, ptr unsafe.Pointer, n uint32) int64

//go:wasmimport monroe_v1 close
func hostClose(handle uint32) int32

const (
	handleInput  = 0
	handleResult = 1

	codeHere   = 0
	codeParked = 1

	// replyBuffer holds nearly every reply, so that most calls cross the border
	// once. What does not fit is parked by the host and read in pieces.
	replyBuffer = 64 << 10
)

// registered is a variable of the package because the host enters a module
// through its exports, not through main: Main has to leave the program somewhere.
var registered []Program

// Main registers the guest's work, as a package-level variable:
//
//	var _ = guest.Main(run)
//
// The host calls it when the module is ready.
func Main(run func(*Run) error) Program {
	p := Program{run}
	registered = append(registered, p)
	return p
}

//go:wasmexport monroe_run
func monroeRun() int32 {
	if len(registered) != 1 {
		return StatusNoMain
	}
	return Execute(&imports{}, registered[0].run)
}

// imports is the Host behind the four imported functions.
type imports struct {
	buf   []byte
	input []byte
	begun bool
}

func (h *imports) Call(request []byte) []byte {
	if h.buf == nil {
		h.buf = make([]byte, replyBuffer)
	}
	r := hostCall(bytesOf(request), uint32(len(request)), bytesOf(h.buf), uint32(len(h.buf)))
	switch n := uint32(r); r >> 32 {
	case codeHere:
		return h.buf[:n]
	case codeParked:
		reply := h.readAll(n, 2*replyBuffer)
		hostClose(n)
		return reply
	}
	return abi.Refuse(abi.Deny(abi.Unsupported, "the host gave a result that this SDK does not know", "build the guest with a newer SDK")).Encode()
}

func (h *imports) Input() []byte {
	if !h.begun {
		h.begun = true
		h.input = h.readAll(handleInput, 4<<10)
	}
	return h.input
}

// readAll reads a handle to its end. The buffer doubles, so that a large reply
// costs few calls, and stays within what the ABI lets a reply be.
func (h *imports) readAll(handle uint32, size int) []byte {
	b := make([]byte, 0, size)
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(2*cap(b), abi.MaxReply+1)), b...)
		}
		free := b[len(b):cap(b)]
		n := uint32(hostRead(handle, bytesOf(free), uint32(len(free))))
		if n == 0 {
			return b
		}
		b = b[:len(b)+int(n)]
	}
}

func (h *imports) SetResult(b []byte) { hostWrite(handleResult, bytesOf(b), uint32(len(b))) }

func bytesOf(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
