package sandbox

import "github.com/tetratelabs/wazero/experimental"

// A heapMemory is a linear memory that stops growing at the run's limit: what it
// cannot give, memory.grow answers with -1. It is what works everywhere.
type heapMemory struct {
	limit uint64 // bytes
	b     []byte
}

var _ experimental.LinearMemory = (*heapMemory)(nil)

func (m *heapMemory) Reallocate(size uint64) []byte {
	if size > m.limit {
		return nil
	}
	if size > uint64(cap(m.b)) {
		// A quarter more than asked, so that growing by single pages stays linear.
		grown := make([]byte, size, min(size+size/4, m.limit))
		copy(grown, m.b)
		m.b = grown
	}
	m.b = m.b[:size]
	return m.b
}

func (m *heapMemory) Free() { m.b = nil }
