package grant

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/label"
)

// ErrPolicy is wrapped by every error about a Cedar file.
var ErrPolicy = errors.New("policy")

// forbids are the workspace's Cedar policies. They can only narrow: a permit in a
// workspace's file is refused at load. The grants themselves stay in the table
// above, which is the truth; Cedar sees one permit that stands for it.
type forbids struct {
	set   *cedar.PolicySet
	names map[cedar.PolicyID]string // file and @id or line, for people
	empty bool
	asks  []ask
}

// ask is a forbid with @approvers: what it matches is not refused, but needs the yes
// of somebody in that group. It narrows what the workspace would do without it.
type ask struct {
	set   *cedar.PolicySet
	group string
	where string
}

// approversAnnotation names the group of workspace.yaml that a policy asks.
const approversAnnotation = "approvers"

// granted is the permit that stands for the grant table: whether a grant covers the
// call was decided before Cedar is asked, so that Cedar has no way to say yes on
// its own.
const granted = `permit (principal, action, resource);`

func compileForbids(files map[string]string) (*forbids, error) {
	f := &forbids{set: cedar.NewPolicySet(), names: map[cedar.PolicyID]string{}, empty: true}
	var permit cedar.Policy
	if err := permit.UnmarshalCedar([]byte(granted)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	f.set.Add("granted", &permit)
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, name := range names {
		list, err := cedar.NewPolicyListFromBytes(name, []byte(files[name]))
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrPolicy, name, err)
		}
		for i, p := range list {
			where := fmt.Sprintf("%s:%d", name, p.Position().Line)
			if p.Effect() != cedar.Forbid {
				return nil, fmt.Errorf("%w: %s: a workspace's policies can only forbid; grants are lines of workspace.yaml", ErrPolicy, where)
			}
			id := cedar.PolicyID(fmt.Sprintf("%s#%d", name, i))
			if label, ok := p.Annotations()["id"]; ok {
				where += " (" + string(label) + ")"
			}
			f.names[id] = where
			if group, ok := p.Annotations()[approversAnnotation]; ok {
				if group == "" {
					return nil, fmt.Errorf("%w: %s: @approvers names no group", ErrPolicy, where)
				}
				one := cedar.NewPolicySet()
				one.Add("granted", &permit)
				one.Add(id, p)
				f.asks = append(f.asks, ask{one, string(group), where})
				continue
			}
			f.set.Add(id, p)
			f.empty = false
		}
	}
	return f, nil
}

// check evaluates every policy for every resource. A returned reason denies. An
// error in any policy denies too: cedar-go skips a forbid whose condition fails and
// would answer Allow.
func (f *forbids) check(s Subject, a Action, effective abi.Effect, held label.Set) (rule, reason string) {
	if f == nil {
		return "law:default-deny", "no policy is loaded"
	}
	if f.empty {
		return "", ""
	}
	rule, reason, _ = f.evaluate(f.set, s, a, effective, held)
	return rule, reason
}

// approvers lists the groups whose yes the policies with @approvers want, each of them,
// and names the first of those policies. A reason denies: one could not be evaluated.
func (f *forbids) approvers(s Subject, a Action, effective abi.Effect, held label.Set) (groups []string, where, rule, reason string) {
	if f == nil { // check has denied it
		return nil, "", "", ""
	}
	for _, k := range f.asks {
		rule, reason, failed := f.evaluate(k.set, s, a, effective, held)
		if failed {
			return nil, "", rule, reason
		}
		if reason != "" && !slices.Contains(groups, k.group) {
			groups = append(groups, k.group)
			where = cmp.Or(where, k.where)
		}
	}
	return groups, where, "", ""
}

func (f *forbids) evaluate(set *cedar.PolicySet, s Subject, a Action, effective abi.Effect, held label.Set) (rule, reason string, failed bool) {
	for _, res := range a.Resources {
		ents := entities{}
		req := cedar.Request{
			Principal: ents.principal(s),
			Action:    cedar.NewEntityUID("Action", cedar.String(a.Operation)),
			Resource:  ents.resource(res),
			Context:   policyContext(s, a, res, effective, held),
		}
		decision, diag := cedar.Authorize(set, types.EntityMap(ents), req)
		if len(diag.Errors) > 0 {
			e := diag.Errors[0]
			return "policy:" + f.name(e.PolicyID), fmt.Sprintf("the policy %s could not be evaluated: %s", f.name(e.PolicyID), e.Message), true
		}
		if decision != cedar.Allow {
			by := "the workspace's policy"
			if len(diag.Reasons) > 0 {
				by = f.name(diag.Reasons[0].PolicyID)
			}
			return "policy:" + by, fmt.Sprintf("%s forbids %s on %s", by, a.Operation, res), false
		}
	}
	return "", "", false
}

func (f *forbids) name(id cedar.PolicyID) string {
	if n, ok := f.names[id]; ok {
		return n
	}
	return string(id)
}

// policyContext sets every attribute on every call, so that no policy can fail for
// want of one. docs/policies.md lists them.
func policyContext(s Subject, a Action, resource string, effective abi.Effect, held label.Set) cedar.Record {
	strs := func(list []string) cedar.Value {
		vs := make([]cedar.Value, len(list))
		for i, x := range list {
			vs[i] = cedar.String(x)
		}
		return cedar.NewSet(vs...)
	}
	audience := a.Audience.Names()
	if a.Audience.IsEveryone() {
		audience = []string{"everyone"}
	}
	return cedar.NewRecord(cedar.RecordMap{
		"operation":   cedar.String(a.Operation),
		"effect":      cedar.String(effective),
		"resource":    cedar.String(resource),
		"destination": cedar.String(a.Destination),
		"account":     cedar.String(a.Account),
		"audience":    strs(audience),
		"skill":       cedar.String(s.Skill),
		"module":      cedar.String(s.Module.String()),
		"role":        cedar.String(s.For.Role),
		"attended":    cedar.Boolean(s.Attended),
		"integrity":   cedar.String(held.Integrity.String()),
		"secret":      cedar.Boolean(held.Secret),
		"pii":         cedar.Boolean(held.PII),
		"ceiling":     cedar.Long(a.Ceiling),
	})
}

// entities collects what a request mentions, with the ancestors that "in" needs.
type entities types.EntityMap

func (e entities) add(uid cedar.EntityUID, parents ...cedar.EntityUID) cedar.EntityUID {
	e[uid] = cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(parents...), Attributes: noAttributes}
	return uid
}

// noAttributes is shared: a record is immutable, and making one is not free.
var noAttributes = cedar.NewRecord(nil)

// principal is the run, a member of its skill and of the person's role.
func (e entities) principal(s Subject) cedar.EntityUID {
	person := e.add(cedar.NewEntityUID("Person", cedar.String(s.For.ID)), e.add(cedar.NewEntityUID("Role", cedar.String(s.For.Role))))
	return e.add(cedar.NewEntityUID("Run", cedar.String(s.Run)), e.add(cedar.NewEntityUID("Skill", cedar.String(s.Skill))), person)
}

// resource is a member of every folder above it, so that a policy may say
// resource in Resource::"files:docs/hr".
func (e entities) resource(res string) cedar.EntityUID {
	uid := cedar.NewEntityUID("Resource", cedar.String(res))
	if i := strings.LastIndexByte(res, '/'); i > 0 {
		return e.add(uid, e.resource(res[:i]))
	}
	return e.add(uid)
}
