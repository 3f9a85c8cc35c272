// Package approval asks a person about one frozen action, and lets the answer be
// used once.
//
// Laws, each with a test:
//
//  1. An approval is bound by a MAC to everything that it covers: the run, the call,
//     the action digest, the module, the account, the destination, the reason that
//     was shown and the label of what the run held. A single flipped bit in any of them voids it.
//  2. Its state alone says nothing: a yes carries a MAC of its own. It is used once: one conditional update, in the transaction that writes the
//     attempt.
//  3. It expires. After that, and after the run has ended, it is worth nothing.
//  4. The answer must name the digest that was shown. Who answers is a person with
//     the right to; never a run.
//
// It knows approvals and their states. It must not know how bytes are shown or sent.
package approval

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
	"github.com/getmonroe/monroe/host/vault"
)

// Life is how long a question stays open.
const Life = 24 * time.Hour

// StickyRejections is how many noes in a row, for the same skill, operation and
// destination, make the host refuse without asking again.
const StickyRejections = 3

// Detail is what is sealed of an approval: what a person has to see, and what the
// answer is bound to.
type Detail struct {
	Digest      abi.Digest     `json:"digest"`
	Destination string         `json:"destination"`
	Account     string         `json:"account"`
	Module      abi.Digest     `json:"module"`
	Label       label.Set      `json:"label"`
	Readers     []string       `json:"readers"`
	Preview     host.Preview   `json:"preview"`
	Operation   abi.Digest     `json:"operation"` // digest of the pinned descriptor
	Key         string         `json:"key"`
	Resources   []string       `json:"resources"`
	Requester   host.Principal `json:"requester"`
}

// Question is what is to be asked.
type Question struct {
	Run       host.Run
	Call      uint32
	Operation connectors.Operation
	Pinned    abi.Digest // digest of the operation's descriptor
	Plan      connectors.Plan
	Digest    abi.Digest
	Effect    abi.Effect
	Why       string
	Held      label.Set
	Key       string
	Preview   host.Preview
}

func (q *Question) detail() Detail {
	return Detail{
		Digest: q.Digest, Destination: q.Plan.Destination, Account: q.Plan.Account, Module: q.Run.Module, Label: q.Held,
		Readers: q.Plan.Audience, Preview: q.Preview, Operation: q.Pinned, Key: q.Key, Resources: q.Plan.Resources, Requester: q.Run.OnBehalfOf,
	}
}

func slot(id host.ApprovalID) vault.Slot {
	return vault.Slot{Table: "approval", Column: "detail", Row: string(id), Version: 1}
}

const purpose = "approval/1"

// bound is what the MAC covers, canonical by the fixed order of the fields.
func bound(a *host.Approval, d *Detail) ([]byte, error) {
	return json.Marshal(struct {
		ID        host.ApprovalID
		Run       host.RunID
		Call      uint32
		Skill     string
		Operation string
		Effect    abi.Effect
		Why       string
		Requester host.PrincipalID
		Ceiling   abi.MicroUSD
		Expires   int64
		Detail    *Detail
	}{a.ID, a.Run, a.Call, a.Skill, a.Operation, a.Effect, a.Why, a.Requester, a.Ceiling, a.ExpiresAt.UnixMilli(), d})
}

// Ask stores a pending approval.
func Ask(tx *store.Tx, keys *vault.Keyset, q Question, now time.Time) (host.Approval, error) {
	d := q.detail()
	a := store.Approval{Approval: host.Approval{
		ID: host.ApprovalID(host.NewID("appr", now)), Run: q.Run.ID, Skill: q.Run.Skill, Call: q.Call, Operation: q.Operation.Name,
		Effect: q.Effect, Destination: d.Destination, State: host.ApprovalPending, Digest: q.Digest.String(), Why: q.Why,
		Ceiling: q.Plan.Ceiling, CreatedAt: now.UTC(), ExpiresAt: now.Add(Life).UTC(), Requester: q.Run.OnBehalfOf.ID,
	}}
	b, err := bound(&a.Approval, &d)
	if err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	if a.BoundMAC, err = keys.MAC(purpose, b); err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	plain, err := json.Marshal(d)
	if err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	if a.Detail, err = keys.Seal(slot(a.ID), plain); err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	return a.Approval, tx.InsertApproval(a)
}

// ErrBroken is wrapped when a stored approval is not what was stored.
var ErrBroken = errors.New("approval: it does not verify")

// Open unseals a stored approval and verifies its MAC.
func Open(keys *vault.Keyset, a *store.Approval) (Detail, error) {
	var d Detail
	plain, err := keys.Open(slot(a.ID), a.Detail)
	if err != nil {
		return d, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if err := json.Unmarshal(plain, &d); err != nil {
		return d, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	b, err := bound(&a.Approval, &d)
	if err != nil || !keys.VerifyMAC(purpose, b, a.BoundMAC) {
		return d, fmt.Errorf("%w: what it is bound to was changed", ErrBroken)
	}
	a.Digest, a.Destination = d.Digest.String(), d.Destination
	return d, nil
}

// consent is a used approval. It is made here alone.
type consent struct{ digest abi.Digest }

// Approves implements grant.Consent.
func (c consent) Approves(d abi.Digest) bool { return c.digest == d }

const yesPurpose = "approval/yes/1"

// yes is what the MAC of a person's yes covers: what the approval is bound to, and
// who said it.
func yes(id host.ApprovalID, bound []byte, by string) []byte {
	return fmt.Appendf(nil, "%s|%x|%s", id, bound, by)
}

// Consent is what Take returns on a yes.
type Consent interface{ Approves(abi.Digest) bool }

// Take uses up the approval id that a call waits for, if a person has said yes to
// exactly this question. Without one it returns the state that the approval is in.
// again says that the call's first attempt was cut off by a crash and its class
// allows another: then the approval that was used for it still stands.
func Take(tx *store.Tx, keys *vault.Keyset, id host.ApprovalID, q Question, again bool, now time.Time) (Consent, host.Approval, error) {
	a, err := tx.Approval(id)
	if errors.Is(err, host.ErrNotFound) {
		return nil, a.Approval, fmt.Errorf("%w: it is not there", ErrBroken)
	}
	if err != nil {
		return nil, a.Approval, err
	}
	d, err := Open(keys, &a)
	if err != nil {
		return nil, a.Approval, err
	}
	want := q.detail()
	if d.Digest != want.Digest || d.Destination != want.Destination || d.Account != want.Account || d.Module != want.Module ||
		d.Operation != want.Operation || !slices.Equal(d.Resources, want.Resources) || !slices.Equal(d.Readers, want.Readers) || d.Label.String() != want.Label.String() || a.Run != q.Run.ID || a.Call != q.Call {
		return nil, a.Approval, fmt.Errorf("%w: the call is not the one that was shown", ErrBroken)
	}
	if (a.State == host.ApprovalUsed || a.State == host.ApprovalApproved) && !keys.VerifyMAC(yesPurpose, yes(a.ID, a.BoundMAC, a.DecidedBy), a.VerdictMAC) {
		return nil, a.Approval, fmt.Errorf("%w: no person's yes belongs to its state", ErrBroken)
	}
	if a.State == host.ApprovalUsed && again {
		return consent{d.Digest}, a.Approval, nil
	}
	if a.State != host.ApprovalApproved {
		return nil, a.Approval, nil
	}
	if err := tx.MoveApproval(a.ID, host.ApprovalApproved, host.ApprovalUsed, "", now, true); err != nil {
		if errors.Is(err, host.ErrConflict) {
			a.State = host.ApprovalExpired
			return nil, a.Approval, nil
		}
		return nil, a.Approval, err
	}
	a.State = host.ApprovalUsed
	return consent{d.Digest}, a.Approval, nil
}

// DestinationMAC names a destination in the table of rejections without showing it.
func DestinationMAC(keys *vault.Keyset, skill, operation, destination string) ([]byte, error) {
	return keys.MAC("destination/1", fmt.Appendf(nil, "%q|%q|%q", skill, operation, destination))
}

// Answer records a person's decision. The caller must be allowed to approve, and
// digest must be what was shown to him.
func Answer(tx *store.Tx, keys *vault.Keyset, id host.ApprovalID, by host.Caller, approve bool, digest string, now time.Time) (host.Approval, error) {
	a, err := tx.Approval(id)
	if err != nil {
		return host.Approval{}, err
	}
	d, err := Open(keys, &a)
	if err != nil {
		return host.Approval{}, err
	}
	if digest != d.Digest.String() {
		return a.Approval, &host.Problem{
			Kind: host.ErrConflict, Code: "APPROVAL_DIGEST", Detail: "the decision is about another digest than the approval's",
			Remedy: "look at the approval again and decide on what it shows now",
		}
	}
	to := host.ApprovalRejected
	if approve {
		to = host.ApprovalApproved
	}
	if err := tx.MoveApproval(id, host.ApprovalPending, to, by.Name, now, true); err != nil {
		if errors.Is(err, host.ErrConflict) {
			return a.Approval, &host.Problem{
				Kind: host.ErrConflict, Code: "APPROVAL_STATE", Detail: fmt.Sprintf("the approval is %s already or has expired", a.State),
				Remedy: "nothing to do: an answer counts once",
			}
		}
		return a.Approval, err
	}
	mac, err := DestinationMAC(keys, a.Skill, a.Operation, d.Destination)
	if err != nil {
		return a.Approval, err
	}
	if approve {
		proof, e := keys.MAC(yesPurpose, yes(id, a.BoundMAC, by.Name))
		err = errors.Join(e, tx.SetVerdictMAC(id, proof), tx.Forgive(a.Skill, a.Operation, mac))
	} else {
		err = tx.Reject(a.Skill, a.Operation, mac)
	}
	a.State, a.DecidedBy, a.DecidedAt = to, by.Name, now.UTC()
	return a.Approval, err
}
