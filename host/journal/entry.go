package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
)

// Entry is one host call, folded from its records. A run makes tens of thousands, and
// most of them are alike: what they have in common is kept once, and must not be
// written to.
type Entry struct {
	Call        uint32
	Fingerprint abi.Digest
	Started     time.Time // when the guest first asked
	*Ask
	*Course
	Label  *label.Set // of what the run held when it asked
	Answer *Answer
}

// Ask is what a call asks for, and what was decided of it.
type Ask struct {
	Op        abi.Op
	Operation string
	Resource  string
	Effect    abi.Effect // effective
	Rule      string
	Replay    abi.ReplayClass
}

// Course is what a call goes through that is not answered at once.
type Course struct {
	Request  []byte // canonical; gone once there is an answer
	Key      string // idempotency key
	Child    host.RunID
	Planned  bool
	Plan     connectors.Plan
	Approval host.ApprovalID // the last gate, if any
	Gated    bool            // waits for a person
	Attempts int
	First    time.Time // of the first attempt
	NotAfter time.Time // of the last attempt
	Unknown  *Doubt    // about the last attempt
	Edited   *Edited   // by a person, before the first attempt
	Waits    time.Time // since when it waits for a connector; zero if it does not
	Short    time.Time // since when it waits for budget; zero if it does not
}

// Doubt is an attempt of which nobody can tell whether it had its effect.
type Doubt struct {
	Since time.Time
	Why   string
	// Resolution is what became of it; empty while the question is open.
	Resolution host.Resolution
	// Asked says that a person was asked for an approval after that.
	Asked bool
}

// Edited is what a person made of a call.
type Edited struct {
	By     host.PrincipalID
	Args   []byte   // of the operation, canonical
	Fields []string // sorted; of all edits
}

// Answer is what the guest got.
type Answer struct {
	Reply   []byte
	At      time.Time  // drives the guest's clock
	Label   *label.Set // of the reply
	Code    abi.Code   // of a refusal
	Cost    abi.MicroUSD
	Receipt host.ReceiptID
}

// shared gives out one copy of what is equal: of a few values, the last ones asked for.
type shared[K comparable, V any] struct {
	keys [8]K
	vals [8]*V
	next int
}

func (s *shared[K, V]) get(k K) *V {
	for i := range s.keys {
		if s.vals[i] != nil && s.keys[i] == k {
			return s.vals[i]
		}
	}
	return nil
}

func (s *shared[K, V]) put(k K, v V) *V {
	if old := s.get(k); old != nil {
		return old
	}
	i := s.next
	s.keys[i], s.vals[i], s.next = k, &v, (i+1)%len(s.keys)
	return &v
}

// entry begins a call with its first record.
func (l *Log) entry(k Kind, call uint32, at time.Time, b *Body, lab *label.Set) *Entry {
	ask := Ask{Op: b.Op, Operation: b.Operation, Resource: b.Resource, Effect: b.Effect, Rule: b.Rule, Replay: b.Replay}
	e := &Entry{Call: call, Fingerprint: b.Fingerprint, Started: at, Ask: l.asks.put(ask, ask), Course: l.idle, Label: lab}
	if k != Value {
		e.Course = &Course{Request: b.Request, Key: b.Key, Child: b.Child}
	}
	l.same[b.Fingerprint]++
	l.entries[call] = e
	return e
}

// fold adds a record to its call's entry.
func (l *Log) fold(r *store.Record, b *Body, lab *label.Set) error {
	k, call, at := Kind(r.Kind), r.Call, r.Time
	l.bytes += int64(len(r.Body))
	l.newest = at
	if call < parts {
		l.calls = max(l.calls, call)
	}
	e := l.entries[call]
	if e == nil {
		e = l.entry(k, call, at, b, lab)
	}
	switch k {
	case Value, Result:
		e.Answer = &Answer{Reply: b.Reply, At: at, Label: lab, Code: b.Code, Cost: b.Cost, Receipt: b.Receipt}
		l.forget(e)
		return nil
	case Continue:
		e.Answer = &Answer{At: at, Label: lab, Receipt: b.Receipt}
		l.forget(e)
		l.begin(r.Seq, call, at, b, lab)
		return nil
	case Edit:
		if e.Attempts > 0 || e.Answer != nil {
			return fmt.Errorf("%w: call %d was edited after it was attempted", ErrCorrupt, call)
		}
		edited := *e.Ask
		edited.Resource = b.Resource
		e.Ask = l.asks.put(edited, edited)
	case Resolved:
		if e.Unknown == nil {
			return fmt.Errorf("%w: call %d was resolved and was never in doubt", ErrCorrupt, call)
		}
	case Call, Gate, GateResult, Attempt, Unknown, Wait, Probe, End:
	default:
		return fmt.Errorf("%w: unknown kind %q", ErrCorrupt, k)
	}
	if e.Course == l.idle {
		e.Course = &Course{}
	}
	if err := e.Course.fold(k, at, b); err != nil {
		return fmt.Errorf("%w: the plan of call %d: %w", ErrCorrupt, call, err)
	}
	return nil
}

// forget drops the bytes that nobody asks for once there is an answer: of a long
// conversation they would be a copy of it for each turn.
func (l *Log) forget(e *Entry) {
	if e.Course == l.idle {
		return
	}
	e.Request = nil
	if h := e.Plan.Frozen.HTTP; h != nil {
		h.Body = nil
	}
}

// fold adds what a record of a call without an answer says. An error is one of its plan.
func (c *Course) fold(k Kind, at time.Time, b *Body) error {
	switch k { //nolint:exhaustive // the others answer the call or add nothing to it
	case Call:
		c.Planned = true
		if len(b.Plan) > 0 {
			if err := json.Unmarshal(b.Plan, &c.Plan); err != nil {
				return err
			}
		}
		if len(b.Wire) > 0 {
			if c.Plan.Frozen.HTTP == nil {
				return errors.New("it has no request for its bytes")
			}
			c.Plan.Frozen.HTTP.Body = b.Wire
		}
	case Gate:
		c.Approval, c.Gated = b.Approval, true
		if c.Unknown != nil {
			c.Unknown.Asked = true
		}
	case GateResult:
		c.Gated = false
	case Edit:
		fields := b.Fields
		if c.Edited != nil {
			fields = append(fields, c.Edited.Fields...)
		}
		slices.Sort(fields)
		c.Edited = &Edited{By: host.PrincipalID(b.By), Args: b.Request, Fields: slices.Compact(fields)}
		c.Approval, c.Gated = "", false
		c.Plan = connectors.Plan{} // nothing of the old one stays
		return json.Unmarshal(b.Plan, &c.Plan)
	case Attempt:
		c.Attempts, c.Unknown, c.Waits, c.Short = b.Attempt, nil, time.Time{}, time.Time{}
		if c.First.IsZero() {
			c.First = at
		}
		c.NotAfter = time.Time{}
		if b.NotAfter != 0 {
			c.NotAfter = time.Unix(0, b.NotAfter).UTC()
		}
	case Unknown:
		c.Unknown = &Doubt{Since: at, Why: b.Why}
	case Resolved:
		c.Unknown.Resolution = host.Resolution(b.Verdict)
	case Wait:
		since := &c.Waits
		if b.Verdict == string(host.WaitBudget) {
			since = &c.Short
		}
		if since.IsZero() {
			*since = at
		}
	}
	return nil
}

// what names a recorded call in words of the host: an op that is not known is text of
// the guest.
func (a *Ask) what() string {
	switch {
	case a.Operation != "":
		return a.Operation
	case slices.Contains(abi.Ops(), a.Op):
		return string(a.Op)
	}
	return "an unknown op"
}
