package abi

// Effect is what an operation does to the world. The list is closed (law 6).
type Effect string

const (
	EffectNone    Effect = "none"    // the run itself only
	EffectRead    Effect = "read"    // never asks
	EffectRespond Effect = "respond" // answers in the thread that asked
	EffectState   Effect = "state"   // the workspace's own memory (kv); capped, never asks
	EffectMetered Effect = "metered" // costs money at the model provider; capped, never asks
	EffectWrite   Effect = "write"   // changes an outside system
	EffectSend    Effect = "send"    // hands information to someone
	EffectPay     Effect = "pay"     // moves money to a third party
	EffectDelete  Effect = "delete"
	EffectShare   Effect = "share" // changes who can see something
	EffectAdmin   Effect = "admin" // changes rights or settings elsewhere
)

// Effects lists every effect.
func Effects() []Effect {
	return []Effect{
		EffectNone, EffectRead, EffectRespond, EffectState, EffectMetered, EffectWrite,
		EffectSend, EffectPay, EffectDelete, EffectShare, EffectAdmin,
	}
}

// Valid reports whether e is one of the list.
func (e Effect) Valid() bool {
	for _, x := range Effects() {
		if e == x {
			return true
		}
	}
	return false
}

// Asks reports whether a person has to approve a call with this effect. What is
// not on the list asks.
func (e Effect) Asks() bool {
	switch e {
	case EffectNone, EffectRead, EffectRespond, EffectState, EffectMetered:
		return false
	case EffectWrite, EffectSend, EffectPay, EffectDelete, EffectShare, EffectAdmin:
	}
	return true
}

// ReplayClass says what may be done with a call that was attempted and whose
// result was lost in a crash.
type ReplayClass string

const (
	ReplayPure        ReplayClass = "pure"        // a read: do it again
	ReplayKeyed       ReplayClass = "keyed"       // the other side honours an idempotency key: send again with the same
	ReplayProbe       ReplayClass = "probe"       // we can look whether it arrived
	ReplayConditional ReplayClass = "conditional" // a precondition makes a second send harmless
	ReplayBlind       ReplayClass = "blind"       // never sent again without a person
)
