package abi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Manifest is what a module says of itself, in a custom section of its own
// bytes. It asks; it never grants: the effective grant is this request
// intersected with the workspace's grants, the operator's ceiling and the rights
// of the person on whose behalf the run runs.
type Manifest struct {
	ABI         int    `json:"abi"`
	Name        string `json:"name"` // [a-z][a-z0-9-]{0,31}
	Version     string `json:"version"`
	Description string `json:"description"`
	// Ops are the ops that the module calls; others are refused with SCOPE.
	Ops []Op `json:"ops"`
	// Operations are the connector operations that it calls.
	Operations []OperationUse `json:"operations,omitempty"`
	// Input is the JSON Schema of the run's input; absent means any.
	Input json.RawMessage `json:"input,omitempty"`
	// Limits asked for; they can only lower the host's.
	Limits Limits `json:"limits,omitzero"`
}

// OperationUse is one operation and the resources it is to be used on.
type OperationUse struct {
	Operation string  `json:"operation"`
	Effect    Effect  `json:"effect"` // must be what the pinned descriptor says
	Resource  Pattern `json:"resource"`
}

// ErrManifest is wrapped by every error about a manifest.
var ErrManifest = errors.New("manifest")

// MaxManifest is the largest manifest, in bytes.
const MaxManifest = 64 << 10

// The three forms are checked by hand: a compiled regular expression would be
// linked into every Go guest and built again at each start.

// wordForm reports [a-z][a-z0-9<extra>]{0,31}.
func wordForm(s string, extra byte) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == extra)) {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// versionForm reports [0-9A-Za-z.+-]{1,64}.
func versionForm(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '+' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// operationForm reports two words with a dot between them, such as files.read.
func operationForm(s string) bool {
	connector, verb, ok := strings.Cut(s, ".")
	return ok && wordForm(connector, '_') && wordForm(verb, '_')
}

// ParseManifest reads and checks a manifest. It does not know which operations
// exist; the host checks the effects against its pinned descriptors.
func ParseManifest(b []byte) (*Manifest, error) {
	bad := func(format string, args ...any) (*Manifest, error) {
		return nil, fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...))
	}
	if len(b) > MaxManifest {
		return bad("%d bytes, at most %d are allowed", len(b), MaxManifest)
	}
	var m Manifest
	if d := DecodeArgs(b, &m); d != nil {
		return bad("%s", d.Reason)
	}
	switch {
	case m.ABI != Version:
		return bad("abi is %d, this host speaks %d", m.ABI, Version)
	case !wordForm(m.Name, '-'):
		return bad("name %q: a lower-case letter, then up to 31 letters, digits or -", m.Name)
	case !versionForm(m.Version):
		return bad("version %q: 1 to 64 letters, digits, . + or -", m.Version)
	case len(m.Description) > 1024:
		return bad("description: at most 1024 bytes")
	case len(m.Operations) > 256:
		return bad("operations: at most 256")
	}
	for i, op := range m.Ops {
		if !slices.Contains(Ops(), op) {
			return bad("ops: %q is not an op of ABI %d", op, Version)
		}
		if slices.Contains(m.Ops[:i], op) {
			return bad("ops: %q occurs twice", op)
		}
	}
	for _, u := range m.Operations {
		if !operationForm(u.Operation) {
			return bad("operations: %q: a connector, a dot and an operation, such as files.read", u.Operation)
		}
		if !u.Effect.Valid() || u.Effect == EffectNone {
			return bad("operations: %s: effect %q is not known", u.Operation, u.Effect)
		}
		if err := CheckPattern(u.Resource); err != nil {
			return bad("operations: %s: %v", u.Operation, err)
		}
	}
	if len(m.Input) > 0 && !bytes.HasPrefix(bytes.TrimSpace(m.Input), []byte("{")) {
		return bad("input is a JSON Schema, so an object")
	}
	return &m, nil
}

// HasOp reports whether the manifest lists the op. host.describe, run.progress,
// log.write and time.now tell nothing and change nothing, so they need no line.
func (m *Manifest) HasOp(op Op) bool {
	switch op {
	case OpDescribe, OpProgress, OpLog, OpTimeNow:
		return true
	}
	return slices.Contains(m.Ops, op)
}
