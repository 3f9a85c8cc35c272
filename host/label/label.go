// Package label marks data with where it came from and who may see it.
//
// Laws, each with a test of the same name:
//
//  1. Join is commutative, associative and idempotent, with Clean as identity.
//  2. Joining never widens: integrity does not rise, no reader is gained, no flag
//     is lost.
//  3. The zero Set is the strictest label: written by outsiders, readable by
//     nobody. What was never labelled can therefore go nowhere.
//
// It knows labels and how they join. It must not know connectors, grants, runs
// or what a decision makes of a label.
package label

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Integrity says whose words something is. Larger is more trusted.
type Integrity uint8

const (
	External  Integrity = iota // "external": anybody outside
	Internal                   // "internal": written by a member, says the connector
	Workspace                  // "workspace": configuration and manifests that an admin installed
	User                       // "user": typed by an authenticated person for this run
)

var integrityNames = []string{"external", "internal", "workspace", "user"}

// String is the wire spelling.
func (i Integrity) String() string {
	if int(i) < len(integrityNames) {
		return integrityNames[i]
	}
	return "external"
}

// ParseIntegrity reads the wire spelling; what it does not know is External.
func ParseIntegrity(s string) Integrity {
	if i := slices.Index(integrityNames, s); i >= 0 {
		return Integrity(i)
	}
	return External
}

// Readers is a set of principals and audiences, such as "workspace", "model" or
// "host:example.com". The zero value is nobody.
type Readers struct {
	everyone bool
	names    []string // sorted, without repeats
}

// Everyone is the set that holds every reader.
func Everyone() Readers { return Readers{everyone: true} }

// Only is the set of the named readers.
func Only(names ...string) Readers {
	n := slices.Clone(names)
	slices.Sort(n)
	return Readers{names: slices.Compact(n)}
}

// IsEveryone reports whether the set holds every reader.
func (r Readers) IsEveryone() bool { return r.everyone }

// Names lists the members; it is empty for Everyone and for nobody.
func (r Readers) Names() []string { return slices.Clone(r.names) }

// Within reports whether every member of r is in other.
func (r Readers) Within(other Readers) bool {
	if other.everyone {
		return true
	}
	if r.everyone {
		return false
	}
	for _, n := range r.names {
		if _, ok := slices.BinarySearch(other.names, n); !ok {
			return false
		}
	}
	return true
}

// Except lists the members of r that other lacks, for a person to read.
func (r Readers) Except(other Readers) []string {
	if r.everyone && !other.everyone {
		return []string{"everyone"}
	}
	return slices.DeleteFunc(r.Names(), func(n string) bool { return Only(n).Within(other) })
}

func (r Readers) intersect(o Readers) Readers {
	switch {
	case r.everyone:
		return o
	case o.everyone:
		return r
	}
	return Readers{names: slices.DeleteFunc(r.Names(), func(n string) bool {
		_, ok := slices.BinarySearch(o.names, n)
		return !ok
	})}
}

// Set is the label of a value. It is a value itself: joins return a new one.
type Set struct {
	Integrity Integrity
	Readers   Readers
	Secret    bool
	PII       bool
	// Origins are the resources that it came from, sorted, at most MaxOrigins.
	Origins []string
}

// MaxOrigins bounds the list; further ones are counted as MoreOrigins.
const MaxOrigins = 64

// MoreOrigins stands for the origins that the bound left out.
const MoreOrigins = "…"

// Clean is the label of what nobody has touched: the identity of Join.
func Clean() Set { return Set{Integrity: User, Readers: Everyone()} }

// Join is the label of a value made from both.
func Join(a, b Set) Set {
	o := slices.Concat(a.Origins, b.Origins)
	slices.Sort(o)
	o = slices.Compact(o)
	if len(o) > MaxOrigins {
		// Keep the smallest ones, which makes the bound associative.
		o = slices.DeleteFunc(o, func(s string) bool { return s == MoreOrigins })
		if len(o) >= MaxOrigins {
			o = append(o[:MaxOrigins-1:MaxOrigins-1], MoreOrigins)
		}
		slices.Sort(o)
	}
	if len(o) == 0 {
		o = nil
	}
	return Set{
		Integrity: min(a.Integrity, b.Integrity),
		Readers:   a.Readers.intersect(b.Readers),
		Secret:    a.Secret || b.Secret,
		PII:       a.PII || b.PII,
		Origins:   o,
	}
}

// String is a short form for logs and people.
func (s Set) String() string {
	who := strings.Join(s.Readers.names, ",")
	switch {
	case s.Readers.everyone:
		who = "everyone"
	case who == "":
		who = "nobody"
	}
	t := fmt.Sprintf("%s readers=%s", s.Integrity, who)
	if s.Secret {
		t += " secret"
	}
	if s.PII {
		t += " pii"
	}
	return t
}

// wire is the stored form. Fields only grow.
type wire struct {
	Integrity string   `json:"integrity"`
	Everyone  bool     `json:"everyone,omitempty"`
	Readers   []string `json:"readers,omitempty"`
	Secret    bool     `json:"secret,omitempty"`
	PII       bool     `json:"pii,omitempty"`
	Origins   []string `json:"origins,omitempty"`
}

// MarshalJSON writes the stored form.
func (s Set) MarshalJSON() ([]byte, error) {
	return json.Marshal(wire{s.Integrity.String(), s.Readers.everyone, s.Readers.names, s.Secret, s.PII, s.Origins})
}

// UnmarshalJSON reads the stored form; what it does not understand is an error,
// never a wider label.
func (s *Set) UnmarshalJSON(b []byte) error {
	var w wire
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // a later version's field may be what makes the label strict
	if err := d.Decode(&w); err != nil {
		return fmt.Errorf("label: %w", err)
	}
	if !slices.Contains(integrityNames, w.Integrity) {
		return fmt.Errorf("label: integrity %q", w.Integrity)
	}
	*s = Set{ParseIntegrity(w.Integrity), Only(w.Readers...), w.Secret, w.PII, w.Origins}
	s.Readers.everyone = w.Everyone
	if w.Everyone {
		s.Readers = Everyone()
	}
	return nil
}
