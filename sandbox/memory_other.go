//go:build !linux

package sandbox

import "github.com/tetratelabs/wazero/experimental"

// newMemory returns a memory of at most limit bytes.
func newMemory(limit uint64) experimental.LinearMemory { return &heapMemory{limit: limit} }
