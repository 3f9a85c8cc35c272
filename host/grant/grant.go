// Package grant decides what a run may do, and is the only place that can make a
// Permit.
//
// Laws, each with a test of the same name:
//
//  1. Default deny: what no grant covers is refused.
//  2. Intersection: a call is covered only if the manifest asked for it, the
//     workspace granted it to this very module, the operator's ceiling allows it,
//     and the person on whose behalf the run runs may do it. Adding a condition, a
//     policy or a chain member never allows more.
//  3. Any error denies: a policy that fails to evaluate, an unknown effect or role,
//     a malformed resource.
//  4. No effect that asks gets a Permit without a person's consent to its digest.
//  5. A call whose audience may not see what the run holds asks, whatever its
//     declared effect (law 7 of the design).
//
// It knows grants, Cedar policies and Decide, which is pure. It must not know
// storage, wall time or how anything is performed.
package grant

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/label"
)

// Gate narrows what an operation's effect says.
type Gate = host.Gate

// The gates, under the names that this package reads best with.
const (
	GateDefault = host.GateDefault
	GateAsk     = host.GateAsk
	GateDeny    = host.GateDeny
)

// Grant lets one module use one operation on some resources.
type Grant struct {
	ID        host.GrantID
	Skill     string
	Module    abi.Digest // a new module under the same name holds nothing
	Operation string
	Resource  abi.Pattern
	Gate      Gate
}

// Ceiling is the most that the operator lets any workspace grant.
type Ceiling = host.Ceiling

// Subject is who asks.
type Subject struct {
	Run      host.RunID
	Skill    string
	Module   abi.Digest
	Manifest *abi.Manifest
	// For is the person on whose behalf the run runs.
	For      host.Principal
	Attended bool
	// Chain are the runs above this one, nearest first. Each must be covered, too.
	Chain []Subject
}

// Action is what is asked for.
type Action struct {
	Op          abi.Op
	Operation   string // empty for what the host does itself
	Effect      abi.Effect
	Resources   []string
	Destination string
	Account     string
	Audience    label.Readers
	Digest      abi.Digest
	Ceiling     abi.MicroUSD
}

// Outcome is what a decision comes to. The zero value denies.
type Outcome uint8

const (
	Deny Outcome = iota
	Ask
	Allow
)

// String is the wire spelling.
func (o Outcome) String() string {
	switch o {
	case Ask:
		return "ask"
	case Allow:
		return "allow"
	case Deny:
	}
	return "deny"
}

// Verdict is a decision. The zero value denies.
type Verdict struct {
	Outcome Outcome
	// Denial is set when the outcome is Deny.
	Denial *abi.Denial
	// Effect is the effective one: a read that would tell somebody what he may not
	// see is a send.
	Effect abi.Effect
	// Rule is what decided, for the audit log: a grant, a policy, a law.
	Rule string
	// Why tells the approver why he is asked.
	Why string
	// Approvers are groups of the workspace, each of which the person who says yes must
	// belong to. They come from policies alone.
	Approvers []string

	action Action
}

// Consent is a person's approval of exactly one digest, taken so that it cannot be
// taken again.
type Consent interface{ Approves(abi.Digest) bool }

// Permit turns a verdict into leave to act. It is the only mint. An Ask needs a
// consent to the very digest; funded says that the ceiling was reserved.
func (v Verdict) Permit(c Consent, funded bool) (Permit, bool) {
	switch {
	case v.Outcome == Allow:
	case v.Outcome == Ask && c != nil && c.Approves(v.action.Digest):
	default:
		return Permit{}, false
	}
	if v.action.Ceiling > 0 && !funded {
		return Permit{}, false
	}
	return Permit{digest: v.action.Digest, granted: true}, true
}

func refuse(a Action, rule string, code abi.Code, reason, remedy string) Verdict {
	return Verdict{Denial: abi.Deny(code, reason, remedy), Effect: a.Effect, Rule: rule, action: a}
}

// Policy is a compiled snapshot of the workspace's rules. It is immutable, and its
// zero value denies everything.
type Policy struct {
	Version  int64
	grants   map[grantKey][]line
	ceilings []bound // nil: the operator set none
	forbids  *forbids
}

// line is a grant with its pattern split, and bound a ceiling.
type line struct {
	Grant
	match abi.Matcher
}

type bound struct {
	operation string
	match     abi.Matcher
}

type grantKey struct {
	module    abi.Digest
	operation string
}

// Compile builds a snapshot. files are the workspace's Cedar files by name; they
// may only forbid. An error names the file and the place.
func Compile(version int64, grants []Grant, ceilings []Ceiling, files map[string]string) (*Policy, error) {
	f, err := compileForbids(files)
	if err != nil {
		return nil, err
	}
	p := &Policy{Version: version, grants: map[grantKey][]line{}, forbids: f}
	if ceilings != nil {
		p.ceilings = make([]bound, 0, len(ceilings))
	}
	for _, c := range ceilings {
		p.ceilings = append(p.ceilings, bound{c.Operation, c.Resource.Matcher()})
	}
	for _, g := range grants {
		if err := abi.CheckPattern(g.Resource); err != nil {
			return nil, fmt.Errorf("grant of %s to %s: %w", g.Operation, g.Skill, err)
		}
		if g.Gate != GateDefault && g.Gate != GateAsk && g.Gate != GateDeny {
			return nil, fmt.Errorf("grant of %s to %s: the gate is empty, ask or deny, not %q", g.Operation, g.Skill, g.Gate)
		}
		k := grantKey{g.Module, g.Operation}
		p.grants[k] = append(p.grants[k], line{g, g.Resource.Matcher()})
	}
	return p, nil
}

// Groups lists the groups that the policies' @approvers name, for whoever holds them to
// the groups that there are.
func (p *Policy) Groups() (list []string) {
	for _, k := range p.forbids.asks {
		list = append(list, k.group)
	}
	return list
}

// Grants lists the grants that a module holds for an operation.
func (p *Policy) Grants(module abi.Digest, operation string) (list []Grant) {
	for _, g := range p.grants[grantKey{module, operation}] {
		list = append(list, g.Grant)
	}
	return list
}

// Decide judges one call. held is the label of all that the run holds. It is pure
// and total: whatever it cannot judge, it denies.
func (p *Policy) Decide(s Subject, a Action, held label.Set) Verdict {
	if !a.Effect.Valid() {
		return refuse(a, "law:closed-effects", abi.Denied, fmt.Sprintf("the effect %q is not known", a.Effect), "")
	}
	for _, link := range append([]Subject{s}, s.Chain...) {
		if v, ok := checkRole(link.For, a); !ok {
			return v
		}
	}
	if a.Operation == "" {
		return p.decideOwn(s, a)
	}
	if len(a.Resources) == 0 {
		return refuse(a, "law:resource", abi.Scope, "the call names no resource", "")
	}
	resources := make([]abi.Resource, len(a.Resources))
	for i, res := range a.Resources {
		var err error
		if resources[i], err = abi.ParseResource(res); err != nil {
			return refuse(a, "law:resource", abi.Scope, err.Error(), "")
		}
	}
	gate, rule := GateDefault, ""
	for _, link := range append([]Subject{s}, s.Chain...) {
		g, r, denied := p.cover(link, a, resources)
		if denied != nil {
			return *denied
		}
		if rule == "" || weight(g) > weight(gate) {
			gate, rule = g, r
		}
	}
	if held.Secret && leaves(a) {
		return refuse(a, "law:secret", abi.Label, "the run holds a secret, and a secret never leaves", "use another run for the part that needs the secret")
	}
	effective, why := effectiveEffect(a, held)
	var groups []string
	asking := ""
	for _, link := range append([]Subject{s}, s.Chain...) {
		if rule2, bad := p.forbids.check(link, a, effective, held); bad != "" {
			return refuse(a, rule2, abi.Denied, bad, "an admin of the workspace can change the policy")
		}
		more, where, rule2, bad := p.forbids.approvers(link, a, effective, held)
		if bad != "" {
			return refuse(a, rule2, abi.Denied, bad, "an admin of the workspace can change the policy")
		}
		groups, asking = append(groups, more...), cmp.Or(asking, where)
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	v := Verdict{Outcome: Allow, Effect: effective, Rule: rule, action: a}
	switch {
	case gate == GateDeny:
		return refuse(a, rule, abi.Denied, fmt.Sprintf("the workspace has closed %s for this skill", a.Operation), "an admin can open the gate in workspace.yaml")
	case gate == GateAsk && !effective.Asks():
		v.Outcome, v.Why = Ask, "the workspace wants to be asked for every "+a.Operation
	case effective.Asks():
		v.Outcome, v.Why = Ask, why
	}
	if len(groups) > 0 { // a policy never takes a question back, and never answers one
		v.Approvers, v.Rule = groups, "policy:"+asking
		if v.Outcome == Allow {
			v.Outcome, v.Why = Ask, "the policy "+asking+" wants it to be approved"
		}
	}
	return v
}

// decideOwn judges what the host does itself: clocks, progress, the skill's memory.
// It stays in the workspace, so the manifest's line is all it needs.
func (p *Policy) decideOwn(s Subject, a Action) Verdict {
	if p.forbids == nil {
		return refuse(a, "law:default-deny", abi.Denied, "no policy is loaded", "")
	}
	for _, link := range append([]Subject{s}, s.Chain...) {
		if link.Manifest == nil || !link.Manifest.HasOp(a.Op) {
			return refuse(a, "law:manifest", abi.Scope, fmt.Sprintf("the manifest of %s does not list %s", link.Skill, a.Op), "add it to ops in the manifest and upload the skill again")
		}
	}
	if a.Effect != abi.EffectNone && a.Effect != abi.EffectState {
		return refuse(a, "law:closed-effects", abi.Denied, fmt.Sprintf("%s cannot have the effect %s", a.Op, a.Effect), "")
	}
	return Verdict{Outcome: Allow, Effect: a.Effect, Rule: "op:" + string(a.Op), action: a}
}

// checkRole is the part of the intersection that belongs to the person.
func checkRole(who host.Principal, a Action) (Verdict, bool) {
	allowed := false
	switch who.Role {
	case host.RoleOwner, host.RoleAdmin:
		allowed = true
	case host.RoleMember:
		allowed = a.Effect != abi.EffectAdmin && a.Effect != abi.EffectPay
	case host.RoleViewer:
		allowed = a.Effect == abi.EffectNone
	}
	if allowed {
		return Verdict{}, true
	}
	return refuse(a, "role:"+string(who.Role), abi.Scope,
		fmt.Sprintf("the run runs for %s, whose role does not allow the effect %s", who.Name, a.Effect),
		"somebody with a stronger role has to start it"), false
}

// cover finds the manifest line, the ceiling and the grant for every resource. The
// strictest gate of the grants used is the one that counts.
func (p *Policy) cover(s Subject, a Action, resources []abi.Resource) (Gate, string, *Verdict) {
	deny := func(rule, reason, remedy string) (Gate, string, *Verdict) {
		v := refuse(a, rule, abi.Scope, reason, remedy)
		return GateDeny, rule, &v
	}
	if s.Manifest == nil || !s.Manifest.HasOp(a.Op) {
		return deny("law:manifest", fmt.Sprintf("the manifest of %s does not list %s", s.Skill, a.Op), "add it to ops in the manifest and upload the skill again")
	}
	gate, rule := GateDefault, ""
	for n, parsed := range resources {
		res := a.Resources[n]
		asked := slices.ContainsFunc(s.Manifest.Operations, func(u abi.OperationUse) bool {
			return u.Operation == a.Operation && u.Effect == a.Effect && u.Resource.Matcher().Covers(parsed)
		})
		if !asked {
			return deny("law:manifest", fmt.Sprintf("the manifest of %s does not ask for %s on %s", s.Skill, a.Operation, res), "add it to operations in the manifest and upload the skill again")
		}
		if p.ceilings != nil && !slices.ContainsFunc(p.ceilings, func(c bound) bool { return c.operation == a.Operation && c.match.Covers(parsed) }) {
			return deny("operator:ceiling", fmt.Sprintf("the operator does not allow %s on %s", a.Operation, res), "ask the operator to raise the ceiling")
		}
		i := -1
		held := p.grants[grantKey{s.Module, a.Operation}]
		for k, g := range held {
			if g.match.Covers(parsed) && (i < 0 || weight(g.Gate) > weight(held[i].Gate)) {
				i = k
			}
		}
		if i < 0 {
			return deny("law:default-deny", fmt.Sprintf("no grant lets %s use %s on %s", s.Skill, a.Operation, res), "an admin can grant it in workspace.yaml; a new version of a skill holds no grants until then")
		}
		if rule == "" || weight(held[i].Gate) > weight(gate) {
			rule = "grant:" + string(held[i].ID)
		}
		gate = stricter(gate, held[i].Gate)
	}
	return gate, rule, nil
}

func weight(g Gate) int {
	switch g {
	case GateDefault:
		return 0
	case GateAsk:
		return 1
	case GateDeny:
	}
	return 2
}

func stricter(a, b Gate) Gate {
	if weight(b) > weight(a) {
		return b
	}
	return a
}

// effectiveEffect applies law 7: telling somebody what he may not see is a send.
func effectiveEffect(a Action, held label.Set) (abi.Effect, string) {
	leak := a.Audience.Except(held.Readers)
	switch {
	case len(leak) > 0 && a.Effect.Asks():
		return a.Effect, fmt.Sprintf("it would let %s see what the run has read and they may not", join(leak))
	case len(leak) > 0:
		return abi.EffectSend, fmt.Sprintf("this %s would tell %s something of what the run has read, which they may not see", a.Effect, join(leak))
	case a.Effect == abi.EffectRespond:
		// Needs a typed origin thread (law 8), which no connector has yet.
		return abi.EffectSend, "the run has no thread of its own to answer in"
	case held.Integrity == label.External && a.Effect.Asks():
		return a.Effect, fmt.Sprintf("the effect %s always asks; the run has read words from outside, which may have steered it", a.Effect)
	}
	return a.Effect, fmt.Sprintf("the effect %s always asks", a.Effect)
}

// leaves reports whether the call hands bytes to anybody but the workspace.
func leaves(a Action) bool { return !a.Audience.Within(label.Only("workspace")) }

func join(names []string) string {
	switch len(names) {
	case 0:
		return "nobody"
	case 1:
		return names[0]
	}
	return fmt.Sprintf("%s and %d more", names[0], len(names)-1)
}
