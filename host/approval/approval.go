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
//  3. It expires, by the wall's clock or by the time that passed (Clock). After that, after the run has ended, and after the rules have
//     changed, it is worth nothing, and gives back what was reserved for it.
//  4. The answer must name the digest that was shown. Who answers is a person with
//     the right to, by the workspace's rules; never a run. Bytes that nothing could
//     show need a yes that says they were seen.
//
// It knows approvals and their states. It must not know how bytes are shown or sent.
package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	Policy      int64          `json:"policy"` // version of the rules that asked
	// Above are the skills of the runs above the asking one, nearest first.
	Above []string `json:"above,omitempty"`
	// Editor is who made of the call what is asked for, if a person did.
	Editor host.PrincipalID `json:"editor,omitempty"`
	// Groups are those that the policies want the approver to belong to, each.
	Groups []string `json:"groups,omitempty"`
}

// chain says how the asking run came about; it is empty where nobody called it.
func (d *Detail) chain(skill string) string {
	if len(d.Above) == 0 {
		return ""
	}
	return fmt.Sprintf("%s, called by %s, started by %s", skill, strings.Join(d.Above, ", called by "), d.Requester.Name)
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
	Policy    int64 // version of the rules that ask
	Above     []string
	Editor    host.PrincipalID
	Groups    []string
}

func (q *Question) detail() Detail {
	return Detail{
		Digest: q.Digest, Destination: q.Plan.Destination, Account: q.Plan.Account, Module: q.Run.Module, Label: q.Held,
		Readers: q.Plan.Audience, Preview: q.Preview, Operation: q.Pinned, Key: q.Key, Resources: q.Plan.Resources, Requester: q.Run.OnBehalfOf,
		Policy: q.Policy, Above: q.Above, Editor: q.Editor, Groups: q.Groups,
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
		Created   int64
		Expires   int64
		Detail    *Detail
	}{a.ID, a.Run, a.Call, a.Skill, a.Operation, a.Effect, a.Why, a.Requester, a.Ceiling, a.CreatedAt.UnixMilli(), a.ExpiresAt.UnixMilli(), d})
}

// bound is what the MAC of an approval would cover if this question had been shown as
// it stands now. Only what a question does not know is taken from the approval.
func (q *Question) bound(a host.Approval, shown host.Preview) ([]byte, error) {
	d := q.detail()
	d.Preview = shown
	a.Run, a.Call, a.Skill, a.Operation, a.Effect = q.Run.ID, q.Call, q.Run.Skill, q.Operation.Name, q.Effect
	a.Requester, a.Ceiling = q.Run.OnBehalfOf.ID, q.Plan.Ceiling
	return bound(&a, &d)
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
	if a.RunKey, err = tx.RunKey(a.Run); err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	key, err := keys.OpenRunKey(a.Run, a.RunKey)
	if err != nil {
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	if a.Detail, err = key.Seal(slot(a.ID), plain); err != nil { // erased with the run
		return host.Approval{}, fmt.Errorf("approval: %w", err)
	}
	return a.Approval, tx.InsertApproval(a)
}

// ErrBroken is wrapped when a stored approval is not what was stored.
var ErrBroken = errors.New("approval: it does not verify")

// ErrErased is returned for an approval whose run's content was erased.
var ErrErased = errors.New("approval: what was shown is erased")

// Open unseals a stored approval and verifies its MAC.
func Open(keys *vault.Keyset, a *store.Approval) (Detail, error) {
	var d Detail
	if a.RunKey == nil {
		return d, ErrErased
	}
	key, err := keys.OpenRunKey(a.Run, a.RunKey)
	if err != nil {
		return d, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	plain, err := key.Open(slot(a.ID), a.Detail)
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
	a.Digest, a.Destination, a.Chain, a.Groups = d.Digest.String(), d.Destination, d.chain(a.Skill), d.Groups
	return d, nil
}

// consent is a used approval. It is made here alone.
type consent struct{ digest abi.Digest }

// Approves implements grant.Consent.
func (c consent) Approves(d abi.Digest) bool { return c.digest == d }

const yesPurpose = "approval/yes/1"

// yes is what the MAC of a person's yes covers: what the approval is bound to, and
// who said it and when.
func yes(id host.ApprovalID, bound []byte, by string, at time.Time) []byte {
	return fmt.Appendf(nil, "%s|%x|%d|%s", id, bound, at.UnixMilli(), by)
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
	if d.Policy != q.Policy { // what was shown was decided by rules that are gone
		a.State = host.ApprovalVoid
		return nil, a.Approval, nil
	}
	shown, err := bound(&a.Approval, &d)
	if err != nil {
		return nil, a.Approval, err
	}
	asked, err := q.bound(a.Approval, d.Preview)
	if err != nil {
		return nil, a.Approval, err
	}
	if !bytes.Equal(shown, asked) {
		return nil, a.Approval, fmt.Errorf("%w: the call is not the one that was shown", ErrBroken)
	}
	if (a.State == host.ApprovalUsed || a.State == host.ApprovalApproved) && !keys.VerifyMAC(yesPurpose, yes(a.ID, a.BoundMAC, a.DecidedBy, a.DecidedAt), a.VerdictMAC) {
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

// Rejections is the highest number of noes in a row that any skill of a chain has got
// for an operation and a destination.
func Rejections(tx *store.Tx, keys *vault.Keyset, chain []string, operation, destination string) (most int, err error) {
	for _, skill := range chain {
		mac, err := DestinationMAC(keys, skill, operation, destination)
		if err != nil {
			return 0, err
		}
		n, err := tx.Rejections(skill, operation, mac)
		if err != nil {
			return 0, err
		}
		most = max(most, n)
	}
	return most, nil
}

// DestinationMAC names a destination in the table of rejections without showing it.
func DestinationMAC(keys *vault.Keyset, skill, operation, destination string) ([]byte, error) {
	return keys.MAC("destination/1", fmt.Appendf(nil, "%q|%q|%q", skill, operation, destination))
}

// Word is what a person says.
type Word struct {
	Approve bool
	// Digest must be what was shown to him.
	Digest string
	// SeenBytes says that he looked at bytes that no renderer could show.
	SeenBytes bool
}

// Approvers is a rule about who may say yes. The zero value lets every member.
type Approvers struct {
	Roles       []host.Role // one of them; empty: owner, admin or member
	OtherPerson bool        // neither the one for whom the run runs nor who edited it
	// Group makes the rule one about a group of the workspace: Roles and People, by
	// address, are in it, and without both nobody is.
	Group  string
	People []string
}

// mayApprove says why a person may not say yes.
func mayApprove(by host.Principal, d *Detail, w Word, rules []Approvers) error {
	no := func(code, detail, remedy string) error {
		return &host.Problem{Kind: host.ErrForbidden, Code: code, Detail: detail, Remedy: remedy}
	}
	for _, g := range d.Groups { // a group that nobody described has no members
		if !slices.ContainsFunc(rules, func(r Approvers) bool { return r.Group == g }) {
			return no("APPROVER", fmt.Sprintf("a policy wants the approval of the group %s, which the workspace does not have", g), "an admin can describe it under groups in workspace.yaml")
		}
	}
	for _, r := range rules {
		if r.Group != "" {
			if slices.Contains(d.Groups, r.Group) && !slices.Contains(r.Roles, by.Role) && (by.Email == "" || !slices.Contains(r.People, by.Email)) {
				return no("APPROVER", fmt.Sprintf("a policy wants the approval of the group %s, to which %s does not belong", r.Group, by.Name), "ask somebody of that group")
			}
			continue
		}
		if len(r.Roles) > 0 && !slices.Contains(r.Roles, by.Role) {
			return no("APPROVER", fmt.Sprintf("%s is a %s; the workspace's approvers for this operation are others", by.Name, by.Role), fmt.Sprintf("ask one of: %v", r.Roles))
		}
		if r.OtherPerson && by.ID == d.Requester.ID {
			return no("APPROVER", "the run runs for "+by.Name+", and the workspace wants another person to approve it", "ask another approver")
		}
		if r.OtherPerson && by.ID == d.Editor {
			return no("APPROVER", by.Name+" wrote what is asked for, and the workspace wants another person to approve it", "ask another approver")
		}
	}
	if d.Preview.Raw && !w.SeenBytes {
		return no("UNINSPECTABLE", "no renderer can show these bytes; a yes has to say that they were looked at", "look at them with monroe approvals show, then approve with --i-have-seen-the-bytes")
	}
	return nil
}

// Supersede closes a question whose call a person changes. It holds nothing any more
// and can never be used.
func Supersede(tx *store.Tx, keys *vault.Keyset, id host.ApprovalID, by host.Caller, digest string, now time.Time) (host.Approval, error) {
	if by.Role == host.RoleViewer || by.Role == "" {
		return host.Approval{}, &host.Problem{Kind: host.ErrForbidden, Code: "ROLE", Detail: "a viewer cannot edit what is asked for", Remedy: "ask a member"}
	}
	a, _, err := shown(tx, keys, id, digest)
	if err != nil {
		return a.Approval, err
	}
	if err := tx.MoveApproval(id, host.ApprovalPending, host.ApprovalSuperseded, by.Name, now, true); err != nil {
		return a.Approval, answered(&a.Approval, err)
	}
	a.State, a.DecidedBy, a.DecidedAt = host.ApprovalSuperseded, by.Name, now.UTC()
	return a.Approval, tx.ReleaseHold(a.Run, a.Call)
}

// shown opens an approval for a person, who must have looked at what it asks for now.
func shown(tx *store.Tx, keys *vault.Keyset, id host.ApprovalID, digest string) (a store.Approval, d Detail, err error) {
	if a, err = tx.Approval(id); err != nil {
		return store.Approval{}, d, err
	}
	if d, err = Open(keys, &a); err != nil {
		return store.Approval{}, d, err
	}
	if digest != d.Digest.String() {
		return a, d, &host.Problem{
			Kind: host.ErrConflict, Code: "APPROVAL_DIGEST", Detail: "the decision is about another digest than the approval's",
			Remedy: "look at the approval again and decide on what it shows now",
		}
	}
	return a, d, nil
}

// answered explains why an approval did not move.
func answered(a *host.Approval, err error) error {
	if !errors.Is(err, host.ErrConflict) {
		return err
	}
	return &host.Problem{
		Kind: host.ErrConflict, Code: "APPROVAL_STATE", Detail: fmt.Sprintf("the approval is %s already or has expired", a.State),
		Remedy: "nothing to do: an answer counts once",
	}
}

// Answer records a person's decision, which rules let him make. A viewer decides
// nothing; a no needs no more than being a member.
func Answer(tx *store.Tx, keys *vault.Keyset, id host.ApprovalID, by host.Caller, w Word, rules []Approvers, now time.Time) (host.Approval, error) {
	switch by.Role {
	case host.RoleOwner, host.RoleAdmin, host.RoleMember:
	default:
		return host.Approval{}, &host.Problem{Kind: host.ErrForbidden, Code: "ROLE", Detail: "a viewer cannot answer approvals", Remedy: "ask a member"}
	}
	a, d, err := shown(tx, keys, id, w.Digest)
	if err != nil {
		return a.Approval, err
	}
	to := host.ApprovalRejected
	if w.Approve {
		if err := mayApprove(by.Principal, &d, w, rules); err != nil {
			return a.Approval, err
		}
		to = host.ApprovalApproved
	}
	if err := tx.MoveApproval(id, host.ApprovalPending, to, by.Name, now, true); err != nil {
		return a.Approval, answered(&a.Approval, err)
	}
	if w.Approve {
		proof, e := keys.MAC(yesPurpose, yes(id, a.BoundMAC, by.Name, now))
		err = errors.Join(e, tx.SetVerdictMAC(id, proof))
	} else {
		err = tx.ReleaseHold(a.Run, a.Call)
	}
	// A no counts for every skill of the chain: what one may not do, it may not have done
	// by another either.
	for _, skill := range append([]string{a.Skill}, d.Above...) {
		mac, e := DestinationMAC(keys, skill, a.Operation, d.Destination)
		if e == nil && w.Approve {
			e = tx.Forgive(skill, a.Operation, mac)
		} else if e == nil {
			e = tx.Reject(skill, a.Operation, mac)
		}
		err = errors.Join(err, e)
	}
	a.State, a.DecidedBy, a.DecidedAt = to, by.Name, now.UTC()
	return a.Approval, err
}
