package sandbox

import (
	"syscall"
	"unsafe"

	"github.com/tetratelabs/wazero/experimental"
)

// hugePage is the size of a huge page of amd64 and of arm64 with pages of 4 KiB. On
// other kernels it is a rounding that does no harm.
const hugePage = 2 << 20

// A mappedMemory reserves the run's limit as addresses and makes pages usable as the
// guest grows: nothing is copied, and a page costs memory once it is touched. The
// mapping is never executable.
//
// A memory of hugePage or more asks for huge pages, and is usable up to the end of its
// last one, which the guest's bounds do not reach: a guest in Go touches some 700 pages
// before its first call, each with a fault of its own (a quarter of a microsecond, or 15
// under a hypervisor without nested paging). A smaller one is not to cost 2 MiB.
type mappedMemory struct {
	mapping []byte // the reservation
	all     []byte // the run's limit, from a huge page's boundary on
	n       int    // usable bytes
}

var _ experimental.LinearMemory = (*mappedMemory)(nil)

// newMemory returns a memory of at most limit bytes.
func newMemory(limit uint64) experimental.LinearMemory {
	if limit == 0 {
		return &heapMemory{}
	}
	mapping, err := syscall.Mmap(-1, 0, int(limit)+hugePage, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return &heapMemory{limit: limit} // address space is short, as under RLIMIT_AS
	}
	from := int(-uintptr(unsafe.Pointer(&mapping[0])) % hugePage)
	return &mappedMemory{mapping: mapping, all: mapping[from : from+int(limit)]}
}

func (m *mappedMemory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	if n := int(size); n > m.n {
		if n >= hugePage {
			n = min((n+hugePage-1)/hugePage*hugePage, len(m.all))
			_ = syscall.Madvise(m.all, syscall.MADV_HUGEPAGE) // where there are none, small ones do
		}
		if err := syscall.Mprotect(m.all[m.n:n], syscall.PROT_READ|syscall.PROT_WRITE); err != nil {
			return nil
		}
		m.n = n
	}
	return m.all[:size:size]
}

func (m *mappedMemory) Free() {
	if m.mapping != nil {
		_ = syscall.Munmap(m.mapping) // fails only for what was not mapped
		m.mapping, m.all, m.n = nil, nil, 0
	}
}
