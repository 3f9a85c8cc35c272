package sandbox

import (
	"sync"
	_ "unsafe" // for linkname

	"golang.org/x/sys/unix"
)

// wazero maps a module's compiled code, some 20 MB for a guest in Go, in small pages, and
// lets nobody choose others. Filling them in is half of what a cold start takes where a
// page fault is dear (RATIONALE.md). So the system call that maps them, which
// golang.org/x/sys/unix keeps in a variable, is followed by an advice to the kernel here.
// What is mapped, and with which protection, stays wazero's business.
// TestLinuxCodeInHugePages fails once either library does it in another way.

// mapper is laid out as the variable of that name in x/sys/unix.
//
//go:linkname mapper golang.org/x/sys/unix.mapper
var mapper *struct {
	sync.Mutex
	active map[*byte][]byte
	mmap   func(addr, length uintptr, prot, flags, fd int, offset int64) (uintptr, error)
	munmap func(addr, length uintptr) error
}

// adviseCode lets large anonymous mappings of x/sys/unix have huge pages. They are mapped
// to the end of their last one, and that end stays when the rest is unmapped: wazero
// unmaps code when a process has no use for it any more, and a worker has until it ends.
var adviseCode = sync.OnceFunc(func() {
	mmap := mapper.mmap
	mapper.mmap = func(addr, length uintptr, prot, flags, fd int, offset int64) (uintptr, error) {
		large := fd == -1 && length >= hugePage
		if large {
			length = (length + hugePage - 1) / hugePage * hugePage // on a boundary, since Linux 6.7
		}
		at, err := mmap(addr, length, prot, flags, fd, offset)
		if err == nil && large {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, at, length, unix.MADV_HUGEPAGE) // where there are none, small ones do
		}
		return at, err
	}
})
