package vault

import (
	"fmt"
	"log/slog"
)

// Redacted is what a Secret shows in place of itself.
const Redacted = "[redacted]"

// Secret is a credential that no printer, log or encoder can show. The zero value
// is empty.
type Secret struct {
	// A pointer, because fmt shows the fields of a struct for a verb that does not
	// fit (%p), past every method below; of a pointer it shows the address.
	value *string
}

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{&value} }

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Reveal gives the value to the one place that inserts it into a request at the
// moment of sending (host/egress). Nothing else may call it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// String redacts.
func (s Secret) String() string { return Redacted }

// GoString redacts %#v.
func (s Secret) GoString() string { return Redacted }

// Format redacts every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// LogValue redacts in slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText redacts in every text encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON redacts in JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// MarshalBinary fails: a secret is stored only as its owner seals it.
func (s Secret) MarshalBinary() ([]byte, error) {
	return nil, fmt.Errorf("vault: a secret cannot be encoded")
}

// GobEncode fails for the same reason.
func (s Secret) GobEncode() ([]byte, error) { return s.MarshalBinary() }
