package sandbox

import (
	"syscall"

	"github.com/tetratelabs/wazero/experimental"
)

// A mappedMemory reserves the run's limit as addresses and makes pages usable as the
// guest grows: nothing is copied, and a page costs memory once it is touched. The
// mapping is never executable.
type mappedMemory struct {
	all []byte // the reservation
	n   int    // usable bytes
}

var _ experimental.LinearMemory = (*mappedMemory)(nil)

// newMemory returns a memory of at most limit bytes.
func newMemory(limit uint64) experimental.LinearMemory {
	if limit == 0 {
		return &heapMemory{}
	}
	all, err := syscall.Mmap(-1, 0, int(limit), syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return &heapMemory{limit: limit} // address space is short, as under RLIMIT_AS
	}
	return &mappedMemory{all: all}
}

func (m *mappedMemory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	if n := int(size); n > m.n {
		if err := syscall.Mprotect(m.all[m.n:n], syscall.PROT_READ|syscall.PROT_WRITE); err != nil {
			return nil
		}
		m.n = n
	}
	return m.all[:m.n:m.n]
}

func (m *mappedMemory) Free() {
	if m.all != nil {
		_ = syscall.Munmap(m.all) // fails only for what was not mapped
		m.all, m.n = nil, 0
	}
}
