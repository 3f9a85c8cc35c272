package journal

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

// A conversation with a model is sent in full with every turn. Stored so, it would
// grow with the square of its turns. So a large call keeps only what differs from the
// last large one: how many bytes the two share at the beginning and at the end, and
// what lies between. The digest of the whole is sealed beside it and checked when it
// is put together again, so what is decided, shown and sent is always the whole.

// minDelta is from how many bytes of request and frozen body on a call is stored
// against an earlier one.
const minDelta = 4 << 10

// Delta says how the whole is made.
type Delta struct {
	Base    int64  `cbor:"1,keyasint,omitempty"` // sequence number of the record that it differs from; 0: none, the bytes are whole
	Request Splice `cbor:"2,keyasint"`
	Wire    Splice `cbor:"3,keyasint"`
}

// Splice is one text: Head bytes of the base, what is stored, Tail bytes of the base.
type Splice struct {
	Head int        `cbor:"1,keyasint,omitempty"`
	Tail int        `cbor:"2,keyasint,omitempty"`
	Sum  abi.Digest `cbor:"3,keyasint"` // SHA-256 of the whole
}

// full is a large call as a whole.
type full struct {
	seq           int64
	request, wire []byte
}

// pack makes the stored form of a large call. What it returns beside it is the base of
// the next one; nil for a call that is stored as it is.
func (l *Log) pack(b Body) (Body, *full, error) {
	if len(b.Request)+len(b.Plan) < minDelta {
		return b, nil, nil
	}
	now := &full{request: b.Request}
	if len(b.Plan) > 0 {
		var p connectors.Plan
		if err := json.Unmarshal(b.Plan, &p); err != nil {
			return b, nil, fmt.Errorf("journal: the plan: %w", err)
		}
		if p.Frozen.HTTP != nil && len(p.Frozen.HTTP.Body) > 0 {
			now.wire, p.Frozen.HTTP.Body = p.Frozen.HTTP.Body, nil
			var err error
			if b.Plan, err = json.Marshal(p); err != nil {
				return b, nil, fmt.Errorf("journal: the plan: %w", err)
			}
		}
	}
	base := l.last
	if base == nil {
		base = &full{}
	}
	d := &Delta{Base: base.seq}
	d.Request, b.Request = splice(base.request, now.request)
	d.Wire, b.Wire = splice(base.wire, now.wire)
	b.Delta = d
	return b, now, nil
}

// splice takes away what a text shares with the base at both ends.
func splice(base, text []byte) (Splice, []byte) {
	s := Splice{Sum: sha256.Sum256(text)}
	most := min(len(base), len(text))
	for s.Head < most && base[s.Head] == text[s.Head] {
		s.Head++
	}
	for s.Tail < most-s.Head && base[len(base)-1-s.Tail] == text[len(text)-1-s.Tail] {
		s.Tail++
	}
	return s, text[s.Head : len(text)-s.Tail]
}

// expand is the other way round.
func (l *Log) expand(seq int64, b *Body) error {
	d := b.Delta
	if d == nil {
		return nil
	}
	base := &full{}
	if d.Base != 0 {
		if base = l.last; base == nil || base.seq != d.Base {
			return fmt.Errorf("%w: record %d is stored against record %d, which is not there", ErrCorrupt, seq, d.Base)
		}
	}
	now := &full{seq: seq}
	var err error
	if now.request, err = d.Request.join(base.request, b.Request); err == nil {
		now.wire, err = d.Wire.join(base.wire, b.Wire)
	}
	if err != nil {
		return fmt.Errorf("%w: record %d: %w", ErrCorrupt, seq, err)
	}
	b.Request, b.Wire, b.Delta = now.request, now.wire, nil
	l.last = now
	return nil
}

func (s Splice) join(base, stored []byte) ([]byte, error) {
	if s.Head < 0 || s.Tail < 0 || s.Head > len(base) || s.Tail > len(base)-s.Head {
		return nil, fmt.Errorf("it shares %d and %d bytes with one of %d", s.Head, s.Tail, len(base))
	}
	whole := make([]byte, 0, s.Head+len(stored)+s.Tail)
	whole = append(append(append(whole, base[:s.Head]...), stored...), base[len(base)-s.Tail:]...)
	if sha256.Sum256(whole) != s.Sum {
		return nil, fmt.Errorf("put together, it is not what was recorded")
	}
	return whole, nil
}
