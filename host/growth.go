package host

import (
	"errors"
	"fmt"
)

// Growth bounds the journal of one segment of a run. It is part of what a run begins
// with, so that it is the same for all of its life. A zero field is the default.
type Growth struct {
	WarnRecords int64 `json:"warn_records,omitempty" yaml:"warn_records,omitempty"`
	WarnBytes   int64 `json:"warn_bytes,omitempty" yaml:"warn_bytes,omitempty"` // of sealed bodies
	// No call begins in a segment that has as much; one that began is recorded to its end.
	MaxRecords int64 `json:"max_records,omitempty" yaml:"max_records,omitempty"`
	MaxBytes   int64 `json:"max_bytes,omitempty" yaml:"max_bytes,omitempty"`
	// MaxSegments is how often a run may begin anew, less one.
	MaxSegments int `json:"max_segments,omitempty" yaml:"max_segments,omitempty"`
}

// DefaultGrowth is where nobody says otherwise.
func DefaultGrowth() Growth {
	return Growth{WarnRecords: 5_000, WarnBytes: 10 << 20, MaxRecords: 50_000, MaxBytes: 64 << 20, MaxSegments: 1000}
}

// Or fills the zero fields from d.
func (g Growth) Or(d Growth) Growth {
	or := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	or(&g.WarnRecords, d.WarnRecords)
	or(&g.WarnBytes, d.WarnBytes)
	or(&g.MaxRecords, d.MaxRecords)
	or(&g.MaxBytes, d.MaxBytes)
	if g.MaxSegments == 0 {
		g.MaxSegments = d.MaxSegments
	}
	return g
}

// Check says what is wrong with a configured one.
func (g Growth) Check() error {
	full := g.Or(DefaultGrowth())
	if g.WarnRecords < 0 || g.WarnBytes < 0 || g.MaxRecords < 0 || g.MaxBytes < 0 || g.MaxSegments < 0 {
		return errors.New("nothing is negative")
	}
	if full.WarnRecords > full.MaxRecords || full.WarnBytes > full.MaxBytes {
		return fmt.Errorf("it warns at %d records and %d bytes, and stops at %d and %d before that", full.WarnRecords, full.WarnBytes, full.MaxRecords, full.MaxBytes)
	}
	return nil
}

// JournalSize is how large a segment's journal is.
type JournalSize struct {
	Records, Bytes int64
}

// Full reports whether no call may begin, if it adds at least n bytes.
func (g Growth) Full(s JournalSize, n int) bool {
	return s.Records >= g.MaxRecords || s.Bytes+int64(n) > g.MaxBytes
}

// Warns reports whether the size passes the line for a warning.
func (g Growth) Warns(s JournalSize) bool {
	return s.Records >= g.WarnRecords || s.Bytes >= g.WarnBytes
}

func (s JournalSize) String() string {
	return fmt.Sprintf("%d records and %d bytes", s.Records, s.Bytes)
}

// Notice is what people are told of a size, empty while it is not worth a word.
func (g Growth) Notice(s JournalSize) string {
	if !g.Warns(s) {
		return ""
	}
	return fmt.Sprintf("the journal of this segment has %s; at %d records or %d bytes nothing but run.continue is let through", s, g.MaxRecords, g.MaxBytes)
}
