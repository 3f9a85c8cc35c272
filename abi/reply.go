package abi

import (
	"encoding/json"
	"fmt"
)

// Code says why a call was refused or failed. Codes are append-only (SPEC 5.2).
type Code string

// The closed set of codes. The comment gives what the caller can do.
const (
	Denied           Code = "DENIED"            // policy says no; ask an admin
	Scope            Code = "SCOPE"             // no grant covers this resource; ask for one
	Budget           Code = "BUDGET"            // the cap or the run's budget is used up
	ApprovalRejected Code = "APPROVAL_REJECTED" // a person said no; do not repeat it
	ApprovalExpired  Code = "APPROVAL_EXPIRED"  // nobody answered in time
	Label            Code = "LABEL"             // what the run holds may not go there
	Scan             Code = "SCAN"              // a scanner found what must not leave
	NotFound         Code = "NOT_FOUND"         // absent, or not yours: the two look alike
	Invalid          Code = "INVALID"           // the request is wrong; correct it
	Unsupported      Code = "UNSUPPORTED"       // this host does not know the op or version
	TooLarge         Code = "TOO_LARGE"         // over a limit; send less
	Rate             Code = "RATE"              // too many; wait for RetryAfterMS
	Upstream         Code = "UPSTREAM"          // the other system failed, nothing happened
	OutcomeUnknown   Code = "OUTCOME_UNKNOWN"   // it may have happened; a person decides
	Timeout          Code = "TIMEOUT"           // no answer in time
	ConnectorRevoked Code = "CONNECTOR_REVOKED" // the connection was withdrawn
	Internal         Code = "INTERNAL"          // the host broke; the run stops
)

// Codes lists every code, in the order of SPEC 5.2.
func Codes() []Code {
	return []Code{
		Denied, Scope, Budget, ApprovalRejected, ApprovalExpired, Label, Scan, NotFound, Invalid,
		Unsupported, TooLarge, Rate, Upstream, OutcomeUnknown, Timeout, ConnectorRevoked, Internal,
	}
}

// Outcome says what a refused or failed call did to the world.
type Outcome string

const (
	OutcomeNone Outcome = "none"    // nothing left the host
	OutcomeSent Outcome = "sent"    // it was sent, the failure came afterwards
	OutcomeMay  Outcome = "unknown" // it may have been sent
)

// Denial is a refusal as a value. It is a reply, not a fault: the guest goes on.
type Denial struct {
	Code   Code    `json:"code"`
	Reason string  `json:"reason"` // one sentence for the person or model that meets it
	Effect Outcome `json:"effect"`
	// Remedy is what would help, in words; empty if nothing would.
	Remedy string `json:"remedy,omitempty"`
	// RetryAfterMS is how long to wait before another try; 0 means do not retry.
	RetryAfterMS int64 `json:"retry_after_ms,omitempty"`
	// Receipt names the audit leaf of the refusal.
	Receipt string `json:"receipt,omitempty"`
}

// Error makes a Denial usable as an error inside a guest.
func (d *Denial) Error() string {
	s := fmt.Sprintf("%s: %s", d.Code, d.Reason)
	if d.Remedy != "" {
		s += " (" + d.Remedy + ")"
	}
	return s
}

// Deny returns a denial without effect.
func Deny(code Code, reason, remedy string) *Denial {
	return &Denial{Code: code, Reason: reason, Effect: OutcomeNone, Remedy: remedy}
}

// Reply answers one request: exactly one of OK and Error is set.
type Reply struct {
	OK    json.RawMessage `json:"ok,omitempty"`
	Error *Denial         `json:"error,omitempty"`
	// Edited is set with OK if a person changed what was asked for before it was done.
	Edited *Edited `json:"edited,omitempty"`
}

// Edited says what a person made of a request.
type Edited struct {
	Fields []string        `json:"fields"` // the arguments that were changed, sorted
	Args   json.RawMessage `json:"args"`   // the operation's arguments as they were carried out
}

// Refuse returns the reply for a denial.
func Refuse(d *Denial) Reply { return Reply{Error: d} }

// OK returns the reply with v as its result. A value that cannot be encoded is
// a mistake of the host and becomes INTERNAL.
func OK(v any) Reply {
	b, err := json.Marshal(v)
	if err != nil {
		return Refuse(Deny(Internal, "the host could not encode its answer", ""))
	}
	return Reply{OK: b}
}

// Encode returns the bytes that the guest gets.
func (r Reply) Encode() []byte {
	if r.Error == nil && r.OK == nil {
		r.OK = json.RawMessage("{}")
	}
	b, err := json.Marshal(r)
	if err != nil { // OK held invalid JSON
		b, _ = json.Marshal(Refuse(Deny(Internal, "the host could not encode its answer", "")))
	}
	return b
}

// DecodeReply reads a reply as a guest does: unknown fields are ignored.
func DecodeReply(b []byte) (Reply, error) {
	var r Reply
	if err := json.Unmarshal(b, &r); err != nil {
		return Reply{}, fmt.Errorf("reply: %w", err)
	}
	if (r.OK == nil) == (r.Error == nil) {
		return Reply{}, fmt.Errorf("reply: exactly one of ok and error is needed")
	}
	return r, nil
}
