package ebpf_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of io_uring's interface is used here; there is no library for four calls.
const (
	iosqeAsync   = 1 << 4 // a kernel thread makes the call, not the one that asked
	opSendmsg    = 9
	opConnect    = 16
	getEvents    = 1
	offsetOfSQEs = 0x10000000
)

type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type uringSQE struct {
	op, flags         byte
	_                 uint16
	fd                int32
	off, addr         uint64
	length, callFlags uint32
	_                 [4]uint64
}

// uring makes one call through a ring of its own and returns what it came to.
func uring(e uringSQE) error {
	var p uringParams
	ring, _, no := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if no != 0 {
		return no
	}
	defer unix.Close(int(ring))
	if p.features&1 == 0 {
		return fmt.Errorf("the kernel is older than 5.4: its rings lie apart")
	}
	size := max(int(p.sq.array+4*p.sqEntries), int(p.cq.cqes+16*p.cqEntries))
	rings, err := unix.Mmap(int(ring), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(rings)
	sqes, err := unix.Mmap(int(ring), offsetOfSQEs, int(p.sqEntries)*int(unsafe.Sizeof(e)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(sqes)
	*(*uringSQE)(unsafe.Pointer(&sqes[0])) = e
	binary.NativeEndian.PutUint32(rings[p.sq.array:], 0)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&rings[p.sq.tail])), 1)
	if n, _, no := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, getEvents, 0, 0); no != 0 || n != 1 {
		return fmt.Errorf("%d calls were taken: %w", n, no)
	}
	if atomic.LoadUint32((*uint32)(unsafe.Pointer(&rings[p.cq.tail]))) != 1 {
		return fmt.Errorf("there is no answer")
	}
	if res := int32(binary.NativeEndian.Uint32(rings[p.cq.cqes+8:])); res < 0 {
		return unix.Errno(-res)
	}
	return nil
}

func rawLoopback(port int) *unix.RawSockaddrInet4 {
	sa := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{127, 0, 0, 1}}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], uint16(port))
	return sa
}

func uringConnect(fd, port int, flags byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	sa := rawLoopback(port)
	pin.Pin(sa)
	return uring(uringSQE{op: opConnect, flags: flags, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(sa))), off: unix.SizeofSockaddrInet4})
}

func uringSend(fd, port int, flags byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	sa, text := rawLoopback(port), []byte("hello")
	part := &unix.Iovec{Base: &text[0], Len: uint64(len(text))}
	m := &unix.Msghdr{Name: (*byte)(unsafe.Pointer(sa)), Namelen: unix.SizeofSockaddrInet4, Iov: part, Iovlen: 1}
	for _, x := range []any{sa, &text[0], part, m} {
		pin.Pin(x)
	}
	return uring(uringSQE{op: opSendmsg, flags: flags, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(m))), length: 1})
}
