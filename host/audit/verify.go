package audit

import (
	"fmt"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Books replays leaves and checks what must hold between them (promises U2, A1):
//
//   - no outcome without a decision that allowed it, and one outcome at most;
//   - no effect that asks without an approval, and every approval used once: by one
//     call, for one action, which is tried again only if a crash took its outcome;
//   - an attempt whose outcome is unknown is followed by no other before somebody has
//     said that it did not happen;
//   - nothing costs more than was reserved for it, unless the leaf says so.
//
// The zero Books is empty.
type Books struct {
	Calls, Effects, Denials, Approvals, Alarms int
	Cost                                       abi.MicroUSD

	open     map[callKey]Leaf   // allowed, without an outcome yet
	doubt    map[callKey]string // the resolution of an unknown outcome, empty while there is none
	answered map[host.ApprovalID]bool
	used     map[host.ApprovalID]bool
	ended    int // attempts whose run ended without their outcome
}

// OverReserved is the detail of an outcome that cost more than was put aside for it.
const OverReserved = "cost more than was reserved"

type callKey struct {
	run  host.RunID
	call uint32
}

// Add checks the next leaf.
func (b *Books) Add(idx int64, l Leaf) error {
	if b.open == nil {
		b.open, b.answered, b.used = map[callKey]Leaf{}, map[host.ApprovalID]bool{}, map[host.ApprovalID]bool{}
		b.doubt = map[callKey]string{}
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: leaf %d: %s", ErrTampered, idx, fmt.Sprintf(format, args...))
	}
	key := callKey{l.Run, l.Call}
	switch l.Kind {
	case KindApproval:
		if l.Verdict == "approved" {
			b.Approvals++
			b.answered[l.Approval] = true
		}
	case KindDecision:
		if l.Verdict != "allow" {
			break
		}
		if said, ok := b.doubt[key]; ok && said != string(host.DidNotHappen) {
			return bad("it was attempted again although its outcome is unknown")
		}
		delete(b.doubt, key)
		if l.Effect.Asks() {
			if l.Approval == "" || !b.answered[l.Approval] {
				return bad("a %s was allowed without an approval", l.Effect)
			}
			before, lost := b.open[key]
			again := lost && before.Approval == l.Approval && before.Action == l.Action
			if b.used[l.Approval] && !again {
				return bad("approval %s was used twice", l.Approval)
			}
			b.used[l.Approval] = true
		}
		b.open[key] = l
	case KindOutcome:
		d, ok := b.open[key]
		if !ok {
			return bad("an outcome without a decision")
		}
		delete(b.open, key)
		if l.Action != d.Action {
			return bad("the outcome is of another action than the decision")
		}
		if l.Cost > d.Reserved && l.Detail != OverReserved {
			return bad("%s were reserved and %s spent", d.Reserved, l.Cost)
		}
		b.Calls++
		b.Effects++
		b.Cost += l.Cost
	case KindCall:
		b.Calls++
		if l.Code != "" {
			b.Denials++
		}
	case KindUnknown:
		if _, ok := b.open[key]; !ok {
			return bad("an unknown outcome without a decision")
		}
		b.doubt[key] = ""
	case KindResolved:
		if said, ok := b.doubt[key]; !ok || said != "" {
			return bad("an outcome was resolved that nobody asked for")
		}
		b.doubt[key] = l.Verdict
	case KindAlarm:
		b.Alarms++
	case KindSpend:
		b.Cost += l.Cost
	case KindEdit:
		if b.used[l.Approval] {
			return bad("approval %s was edited after it was used", l.Approval)
		}
		delete(b.answered, l.Approval)
	case KindEnd: // nobody will learn any more what became of its attempts
		for k := range b.open {
			if k.run == l.Run {
				delete(b.open, k)
				b.ended++
			}
		}
	case KindProbe, KindStart, KindAdmin, KindGrowth, KindErase:
	default:
		return bad("unknown kind %q", l.Kind)
	}
	return nil
}

// InDoubt is how many effects were allowed and have no outcome: attempted at the
// moment, lost in a crash, or left without one when their run ended.
func (b *Books) InDoubt() int { return len(b.open) + b.ended }

// Open is how many of them may still get one. While there are any, the ledger may know
// more than the leaves.
func (b *Books) Open() int { return len(b.open) }
