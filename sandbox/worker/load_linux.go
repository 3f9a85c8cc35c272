package worker

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Loading touches thousands of fresh pages, and each is a fault: a quarter of a
// microsecond, or 15 under a hypervisor without nested paging. What can be asked for in
// one system call is.

// heapOf is how many bytes of heap the engine takes to load a byte of a module, at most
// and about; measured with wazero 1.12 and guests in Go. maxHeap bounds it.
const (
	heapOf  = 2
	maxHeap = 64 << 20
)

// contents maps a file into memory and closes it; nil is nothing. The mapping stays until
// the process ends, and workers of the same module share its pages.
func contents(f *os.File) ([]byte, error) {
	if f == nil {
		return nil, nil
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	return syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_POPULATE)
}

// heapAhead lets the heap have pages for a module of so many bytes before it is loaded:
// it takes them, lets the kernel fill them in, and gives them back to the allocator.
func heapAhead(module int) {
	n := min(heapOf*module, maxHeap)
	if n < 1<<20 {
		return
	}
	b := make([]byte, n)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)       // where there are none, small ones do
	_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) // before Linux 5.14 there is no such advice, and they come one by one
	runtime.KeepAlive(b)
	runtime.GC() // of nearly nothing; until it, the allocator would take others
}
