package grant

import "github.com/getmonroe/monroe/abi"

// Permit is the witness that one action was allowed: in memory only, made by
// Decide alone, and good for exactly one digest. The zero Permit covers nothing.
type Permit struct {
	digest  abi.Digest
	granted bool
}

// Covers reports whether the permit is for these frozen bytes.
func (p Permit) Covers(d abi.Digest) bool { return p.granted && p.digest == d }
