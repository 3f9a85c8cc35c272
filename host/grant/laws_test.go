package grant_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/label"
)

// A world is everything that one decision depends on, in a form that the naive
// decider below understands without Cedar and without the product's pattern code.
type world struct {
	grants   []grant.Grant
	ceilings []grant.Ceiling
	forbids  []forbid
	s        grant.Subject
	a        grant.Action
	held     label.Set
}

// forbid is a policy, as Cedar text and as a naive condition.
type forbid struct {
	text   string
	broken bool // fails to evaluate
	match  func(w *world, resource string) bool
}

var allForbids = []forbid{
	{`forbid (principal, action, resource) when { context.secret };`, false, func(w *world, _ string) bool { return w.held.Secret }},
	{`forbid (principal, action, resource) when { context.pii && !context.attended };`, false, func(w *world, _ string) bool { return w.held.PII && !w.s.Attended }},
	{`forbid (principal, action == Action::"c.one", resource);`, false, func(w *world, _ string) bool { return w.a.Operation == "c.one" }},
	{`forbid (principal, action, resource in Resource::"s:x");`, false, func(_ *world, r string) bool { return r == "s:x" || strings.HasPrefix(r, "s:x/") }},
	{`forbid (principal in Role::"member", action, resource);`, false, func(w *world, _ string) bool { return w.s.For.Role == host.RoleMember }},
	{`forbid (principal in Skill::"two", action, resource);`, false, func(w *world, _ string) bool { return w.s.Skill == "two" }},
	{`forbid (principal, action, resource) when { context.audience.contains("everyone") };`, false, func(w *world, _ string) bool { return w.a.Audience.IsEveryone() }},
	{`forbid (principal, action, resource) when { context.nothing };`, true, nil},
	{`forbid (principal, action, resource) when { context.ceiling < "a" };`, true, nil},
}

func (w *world) compile(t *rapid.T) *grant.Policy {
	files := map[string]string{}
	for i, f := range w.forbids {
		files[fmt.Sprintf("f%d.cedar", i)] = f.text
	}
	p, err := grant.Compile(7, w.grants, w.ceilings, files)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) decide(t *rapid.T) grant.Verdict { return w.compile(t).Decide(w.s, w.a, w.held) }

// The naive decider: every rule as a plain loop.

func naiveCovers(pattern, resource string) bool {
	ps, p, ok1 := strings.Cut(pattern, ":")
	rs, r, ok2 := strings.Cut(resource, ":")
	if !ok1 || !ok2 || ps != rs {
		return false
	}
	var walk func(p, r []string) bool
	walk = func(p, r []string) bool {
		if len(p) == 0 {
			return len(r) == 0
		}
		if p[0] == "**" {
			return true
		}
		return len(r) > 0 && (p[0] == r[0] || p[0] == "*" && r[0] != "") && walk(p[1:], r[1:])
	}
	split := func(s string) []string {
		if s == "" {
			return nil
		}
		return strings.Split(s, "/")
	}
	return walk(split(p), split(r))
}

func naiveWellFormed(resource string) bool {
	scheme, rest, ok := strings.Cut(resource, ":")
	return ok && scheme != "" && !strings.ContainsAny(rest, `*\`) && !slices.Contains(strings.Split(rest, "/"), "..")
}

func naiveAsks(e abi.Effect) bool {
	return slices.Contains([]abi.Effect{abi.EffectWrite, abi.EffectSend, abi.EffectPay, abi.EffectDelete, abi.EffectShare, abi.EffectAdmin}, e)
}

func naiveRole(r host.Role, e abi.Effect) bool {
	switch r {
	case host.RoleOwner, host.RoleAdmin:
		return true
	case host.RoleMember:
		return e != abi.EffectPay && e != abi.EffectAdmin
	case host.RoleViewer:
		return e == abi.EffectNone
	}
	return false
}

func naive(w *world) (grant.Outcome, abi.Code) {
	links := append([]grant.Subject{w.s}, w.s.Chain...)
	if !slices.Contains(abi.Effects(), w.a.Effect) {
		return grant.Deny, abi.Denied
	}
	for _, l := range links {
		if !naiveRole(l.For.Role, w.a.Effect) {
			return grant.Deny, abi.Scope
		}
	}
	lists := func(l grant.Subject) bool {
		return l.Manifest != nil && (w.a.Op == abi.OpTimeNow || slices.Contains(l.Manifest.Ops, w.a.Op))
	}
	if w.a.Operation == "" {
		for _, l := range links {
			if !lists(l) {
				return grant.Deny, abi.Scope
			}
		}
		if w.a.Effect != abi.EffectNone && w.a.Effect != abi.EffectState {
			return grant.Deny, abi.Denied
		}
		return grant.Allow, ""
	}
	if len(w.a.Resources) == 0 {
		return grant.Deny, abi.Scope
	}
	asks, closed := false, false
	for _, l := range links {
		if !lists(l) {
			return grant.Deny, abi.Scope
		}
		for _, r := range w.a.Resources {
			inManifest, inCeiling, granted := false, w.ceilings == nil, false
			for _, u := range l.Manifest.Operations {
				inManifest = inManifest || u.Operation == w.a.Operation && u.Effect == w.a.Effect && naiveCovers(string(u.Resource), r)
			}
			for _, c := range w.ceilings {
				inCeiling = inCeiling || c.Operation == w.a.Operation && naiveCovers(string(c.Resource), r)
			}
			for _, g := range w.grants {
				if g.Module == l.Module && g.Operation == w.a.Operation && naiveCovers(string(g.Resource), r) {
					granted = true
					asks, closed = asks || g.Gate == grant.GateAsk, closed || g.Gate == grant.GateDeny
				}
			}
			if !naiveWellFormed(r) || !inManifest || !inCeiling || !granted {
				return grant.Deny, abi.Scope
			}
		}
	}
	if w.held.Secret && (w.a.Audience.IsEveryone() || slices.ContainsFunc(w.a.Audience.Names(), func(n string) bool { return n != "workspace" })) {
		return grant.Deny, abi.Label
	}
	for _, f := range w.forbids {
		for _, r := range w.a.Resources {
			for _, l := range links { // each link is asked for by itself
				as := *w
				as.s = l
				if f.broken || f.match(&as, r) {
					return grant.Deny, abi.Denied
				}
			}
		}
	}
	if closed {
		return grant.Deny, abi.Denied
	}
	if asks || naiveAsks(w.a.Effect) || w.a.Effect == abi.EffectRespond || naiveLeak(w) {
		return grant.Ask, ""
	}
	return grant.Allow, ""
}

// naiveLeak: somebody in the audience may not see what the run holds.
func naiveLeak(w *world) bool {
	if w.held.Readers.IsEveryone() {
		return false
	}
	return w.a.Audience.IsEveryone() || slices.ContainsFunc(w.a.Audience.Names(), func(n string) bool { return !slices.Contains(w.held.Readers.Names(), n) })
}

// Generators. Every choice is from a few values that often meet; most worlds are
// close to an allowed call, since a random one is nearly always denied.

var (
	modules    = []abi.Digest{{1}, {2}}
	operations = []string{"c.one", "c.two"}
	patterns   = []abi.Pattern{"s:**", "s:x", "s:x/*", "s:x/**", "s:*/y", "s:y", "t:**", "s:"}
	resources  = []string{"s:x", "s:x/y", "s:x/", "s:y", "t:x", "s:", "s:x/y/z"}
	malformed  = []string{"", "x", "s:*", "s:x/../y", `s:x\y`, "S:x"}
)

func pick[T any](t *rapid.T, name string, list ...T) T { return rapid.SampledFrom(list).Draw(t, name) }

// mostly gives the first value in most cases.
func mostly[T any](t *rapid.T, name string, usual T, others ...T) T {
	if rapid.IntRange(0, 15).Draw(t, name+" unusual") < 14 { // small numbers are drawn more often
		return usual
	}
	return pick(t, name, others...)
}

func genReaders(t *rapid.T, name string) label.Readers {
	if rapid.Bool().Draw(t, name+" everyone") {
		return label.Everyone()
	}
	return label.Only(rapid.SliceOfN(rapid.SampledFrom([]string{"workspace", "model", "host:a"}), 0, 3).Draw(t, name)...)
}

func genSubject(t *rapid.T, a grant.Action) grant.Subject {
	s := grant.Subject{
		Run: "run_1", Skill: pick(t, "skill", "one", "two"), Module: mostly(t, "module", modules[0], modules[1]), Attended: rapid.Bool().Draw(t, "attended"),
		For: host.Principal{ID: "prin_1", Name: "Ann", Role: mostly(t, "role", host.RoleOwner, host.RoleAdmin, host.RoleMember, host.RoleViewer, "", "root")},
	}
	if mostly(t, "manifest", true, false) {
		s.Manifest = &abi.Manifest{Ops: mostly(t, "ops", []abi.Op{a.Op}, nil)}
		for range rapid.IntRange(1, 3).Draw(t, "uses") {
			s.Manifest.Operations = append(s.Manifest.Operations, abi.OperationUse{
				Operation: mostly(t, "use", a.Operation, operations...), Effect: mostly(t, "use effect", a.Effect, abi.Effects()...),
				Resource: mostly(t, "use resource", patterns[0], patterns...),
			})
		}
	}
	return s
}

func genWorld(t *rapid.T) *world {
	w := &world{}
	w.a = grant.Action{
		Op: pick(t, "op", abi.OpToolCall, abi.OpSend, abi.OpKVPut, abi.OpTimeNow), Operation: mostly(t, "operation", operations[0], operations[1], ""),
		Effect: pick(t, "effect", append(abi.Effects(), abi.EffectRead, "", "erase")...), Audience: genReaders(t, "audience"),
		Digest: abi.Digest{9}, Ceiling: pick(t, "cost", abi.MicroUSD(0), 5),
	}
	w.a.Resources = rapid.SliceOfN(rapid.SampledFrom(resources), 0, 2).Draw(t, "resources")
	if rapid.IntRange(0, 15).Draw(t, "malformed") == 0 {
		w.a.Resources = append(w.a.Resources, pick(t, "bad", malformed...))
	}
	w.s = genSubject(t, w.a)
	for range pick(t, "chain", 0, 0, 1, 2) {
		w.s.Chain = append(w.s.Chain, genSubject(t, w.a))
	}
	for i := range rapid.IntRange(1, 5).Draw(t, "grants") {
		w.grants = append(w.grants, grant.Grant{
			ID: host.GrantID(fmt.Sprint("grant_", i)), Skill: "one", Module: mostly(t, "granted to", modules[0], modules[1]),
			Operation: mostly(t, "granted", operations[0], operations[1]), Resource: mostly(t, "granted on", patterns[0], patterns...),
			Gate: mostly(t, "gate", grant.GateDefault, grant.GateAsk, grant.GateDeny),
		})
	}
	if rapid.Bool().Draw(t, "capped") {
		w.ceilings = []grant.Ceiling{}
		for range rapid.IntRange(0, 3).Draw(t, "ceilings") {
			w.ceilings = append(w.ceilings, genCeiling(t))
		}
	}
	if rapid.Bool().Draw(t, "policies") {
		w.forbids = rapid.SliceOfN(rapid.SampledFrom(allForbids), 0, 2).Draw(t, "forbids")
	}
	w.held = label.Set{
		Integrity: pick(t, "integrity", label.External, label.User), Readers: genReaders(t, "held"),
		Secret: mostly(t, "secret", false, true), PII: rapid.Bool().Draw(t, "pii"),
	}
	return w
}

func genCeiling(t *rapid.T) grant.Ceiling {
	return grant.Ceiling{Operation: mostly(t, "ceiling", operations[0], operations[1]), Resource: mostly(t, "ceiling on", patterns[0], patterns...)}
}

// Laws 1, 2, 3 and 5 at once: the decision is that of the naive decider.
func TestDecideAgreesWithTheNaiveDecider(t *testing.T) {
	seen := map[string]int{}
	agree := func(t *rapid.T) {
		w := genWorld(t)
		v := w.decide(t)
		outcome, code := naive(w)
		got := abi.Code("")
		if v.Denial != nil {
			got = v.Denial.Code
		}
		if v.Outcome != outcome || got != code || (v.Outcome == grant.Deny) != (v.Denial != nil) {
			t.Fatalf("decided %s %s (%s, %+v), the naive decider says %s %s", v.Outcome, got, v.Rule, v.Denial, outcome, code)
		}
		if v.Denial != nil && (v.Denial.Effect != abi.OutcomeNone || v.Denial.Reason == "") {
			t.Fatalf("a decision has no effect and gives its reason: %+v", v.Denial)
		}
		if v.Rule == "" {
			t.Fatal("no rule is named")
		}
		seen[fmt.Sprint(outcome, " ", code)]++
	}
	for range 20 { // of rapid's usual number
		rapid.Check(t, agree)
	}
	t.Log(seen)
	for _, want := range []string{"allow ", "ask ", "deny SCOPE", "deny DENIED", "deny LABEL"} {
		if seen[want] == 0 {
			t.Errorf("no generated call came to %q: the test proves less than it says", want)
		}
	}
}

// Law 2: adding a condition, a policy or a chain member never allows more.
func TestIntersectionAddingNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := genWorld(t)
		before := w.decide(t)
		what := pick(t, "addition", "gate", "forbid", "ceiling", "chain", "reader", "secret", "role", "use")
		switch what {
		case "gate":
			i := rapid.IntRange(0, len(w.grants)-1).Draw(t, "which")
			w.grants[i].Gate = map[grant.Gate]grant.Gate{grant.GateDefault: grant.GateAsk, grant.GateAsk: grant.GateDeny, grant.GateDeny: grant.GateDeny}[w.grants[i].Gate]
		case "forbid":
			w.forbids = append(w.forbids, pick(t, "more", allForbids...))
		case "ceiling":
			if w.ceilings == nil {
				w.ceilings = []grant.Ceiling{genCeiling(t)}
			} else if len(w.ceilings) > 0 {
				w.ceilings = w.ceilings[1:]
			}
		case "chain":
			w.s.Chain = append(w.s.Chain, genSubject(t, w.a))
		case "reader":
			w.held = label.Join(w.held, label.Set{Integrity: label.User, Readers: genReaders(t, "fewer")})
		case "secret":
			w.held.Secret = true
		case "role":
			w.s.For.Role = map[host.Role]host.Role{host.RoleOwner: host.RoleMember, host.RoleAdmin: host.RoleMember, host.RoleMember: host.RoleViewer}[w.s.For.Role]
		case "use":
			if w.s.Manifest != nil {
				w.s.Manifest.Operations = w.s.Manifest.Operations[1:]
			}
		}
		if after := w.decide(t); after.Outcome > before.Outcome {
			t.Fatalf("adding a %s turned %s into %s", what, before.Outcome, after.Outcome)
		}
	})
}

// usual is a call that is allowed without a person.
func usual() *world {
	return &world{
		grants: []grant.Grant{{ID: "grant_1", Skill: "one", Module: modules[0], Operation: "c.one", Resource: "s:**"}},
		s: grant.Subject{
			Run: "run_1", Skill: "one", Module: modules[0], For: host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleMember},
			Manifest: &abi.Manifest{Ops: []abi.Op{abi.OpToolCall}, Operations: []abi.OperationUse{{Operation: "c.one", Effect: abi.EffectRead, Resource: "s:**"}}},
		},
		a:    grant.Action{Op: abi.OpToolCall, Operation: "c.one", Effect: abi.EffectRead, Resources: []string{"s:x"}, Audience: label.Only("host:a"), Digest: abi.Digest{9}},
		held: label.Clean(),
	}
}

func (w *world) must(t *testing.T, outcome grant.Outcome, code abi.Code) grant.Verdict {
	t.Helper()
	files := map[string]string{}
	for i, f := range w.forbids {
		files[fmt.Sprint(i)] = f.text
	}
	p, err := grant.Compile(1, w.grants, w.ceilings, files)
	if err != nil {
		t.Fatal(err)
	}
	v := p.Decide(w.s, w.a, w.held)
	if v.Outcome != outcome || v.Denial != nil && v.Denial.Code != code {
		t.Fatalf("%s %+v, want %s %s", v.Outcome, v.Denial, outcome, code)
	}
	return v
}

// Law 1.
func TestDefaultDeny(t *testing.T) {
	usual().must(t, grant.Allow, "")
	w := usual()
	w.grants = nil
	w.must(t, grant.Deny, abi.Scope)
	if v := (grant.Verdict{}); v.Outcome != grant.Deny || v.Outcome.String() != "deny" {
		t.Error("the zero verdict does not deny")
	}
	for _, operation := range []string{"c.one", ""} {
		w = usual()
		w.a.Operation, w.a.Effect = operation, abi.EffectNone
		w.s.Manifest.Operations[0].Effect = abi.EffectNone
		if v := (&grant.Policy{}).Decide(w.s, w.a, w.held); v.Outcome != grant.Deny {
			t.Errorf("the zero policy decided %s for operation %q", v.Outcome, operation)
		}
	}
}

// Law 2: the person's part.
func TestIntersectionViewerReachesNothing(t *testing.T) {
	for _, e := range abi.Effects() {
		if e == abi.EffectNone {
			continue
		}
		w := usual()
		w.a.Effect, w.s.Manifest.Operations[0].Effect, w.s.For.Role = e, e, host.RoleViewer
		w.must(t, grant.Deny, abi.Scope)
		// Neither does a run that a viewer's run started.
		w.s.Chain, w.s.For.Role = []grant.Subject{w.s}, host.RoleOwner
		w.must(t, grant.Deny, abi.Scope)
	}
}

// Law 2: a new digest under an old name holds nothing.
func TestIntersectionOneChangedByteHoldsNoGrants(t *testing.T) {
	for i := range len(abi.Digest{}) {
		w := usual()
		w.s.Module[i] ^= 1
		w.must(t, grant.Deny, abi.Scope)
	}
}

// Law 3.
func TestAnyErrorDenies(t *testing.T) {
	for _, f := range allForbids {
		if f.broken {
			w := usual()
			w.forbids = []forbid{f}
			w.must(t, grant.Deny, abi.Denied)
		}
	}
	for _, e := range []abi.Effect{"", "READ", "read ", "erase"} {
		w := usual()
		w.a.Effect, w.s.Manifest.Operations[0].Effect = e, e
		w.must(t, grant.Deny, abi.Denied)
	}
	for _, r := range []host.Role{"", "Owner", "root"} {
		w := usual()
		w.s.For.Role = r
		w.must(t, grant.Deny, abi.Scope)
	}
	for _, bad := range malformed {
		w := usual()
		w.a.Resources = []string{"s:x", bad}
		w.must(t, grant.Deny, abi.Scope)
	}
}

func TestPermitInAWorkspacePolicyIsRefusedAtLoad(t *testing.T) {
	for name, text := range map[string]string{
		"permit": `permit (principal, action, resource);`, "narrow permit": `permit (principal == Run::"run_1", action, resource) when { false };`,
		"second": "forbid (principal, action, resource);\npermit (principal, action, resource);", "garbage": `forbid everything`,
	} {
		_, err := grant.Compile(1, nil, nil, map[string]string{"mine.cedar": text})
		if !errors.Is(err, grant.ErrPolicy) || !strings.Contains(err.Error(), "mine.cedar") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, g := range map[string]grant.Grant{"pattern": {Resource: "s:**/x"}, "gate": {Resource: "s:x", Gate: "allow"}} {
		if _, err := grant.Compile(1, []grant.Grant{g}, nil, nil); err == nil {
			t.Errorf("a grant with a bad %s was loaded", name)
		}
	}
}

// yes is ours: a consent to one digest.
type yes abi.Digest

func (y yes) Approves(d abi.Digest) bool { return abi.Digest(y) == d }

// Law 4.
func TestNoEffectThatAsksGetsAPermitWithoutConsent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := genWorld(t)
		v := w.decide(t)
		digest := abi.Digest(w.a.Digest)
		other := digest
		other[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		var c grant.Consent
		to := pick(t, "consent", "none", "other", "this")
		switch to {
		case "other":
			c = yes(other)
		case "this":
			c = yes(digest)
		}
		funded := rapid.Bool().Draw(t, "funded")
		p, ok := v.Permit(c, funded)
		want := v.Outcome == grant.Allow || v.Outcome == grant.Ask && to == "this"
		want = want && (w.a.Ceiling == 0 || funded)
		if ok != want || p.Covers(digest) != want || p.Covers(other) {
			t.Fatalf("%s, consent to %s, funded %v: permit %v", v.Outcome, to, funded, ok)
		}
		if v.Outcome == grant.Allow && v.Effect.Asks() {
			t.Fatalf("%s is allowed without a person", v.Effect)
		}
	})
	if (grant.Permit{}).Covers(abi.Digest{}) {
		t.Error("the zero permit covers something")
	}
}

// Law 5.
func TestACallWhoseAudienceMayNotSeeAsks(t *testing.T) {
	for _, e := range []abi.Effect{abi.EffectNone, abi.EffectRead, abi.EffectState, abi.EffectMetered, abi.EffectRespond} {
		w := usual()
		w.a.Effect, w.s.Manifest.Operations[0].Effect = e, e
		w.held = label.Join(w.held, label.Set{Integrity: label.Internal, Readers: label.Only("workspace", "model")})
		if v := w.must(t, grant.Ask, ""); v.Effect != abi.EffectSend || !strings.Contains(v.Why, "host:a") && e != abi.EffectRespond {
			t.Errorf("%s: %s, %q", e, v.Effect, v.Why)
		}
		w.a.Audience = label.Only("model")
		if e != abi.EffectRespond {
			w.must(t, grant.Allow, "")
		}
		w.a.Audience = label.Everyone()
		w.must(t, grant.Ask, "")
	}
}

// The strictest gate of the chain is the rule that the audit log names.
func TestRuleNamesWhatDecided(t *testing.T) {
	w := usual()
	parent := w.s
	parent.Module = modules[1]
	w.s.Chain = []grant.Subject{parent}
	w.grants = append(w.grants, grant.Grant{ID: "grant_2", Module: modules[1], Operation: "c.one", Resource: "s:**"})
	w.grants[0].Gate = grant.GateAsk
	if v := w.must(t, grant.Ask, ""); v.Rule != "grant:grant_1" {
		t.Error(v.Rule)
	}
	w.grants[0].Gate, w.grants[1].Gate = grant.GateDefault, grant.GateAsk
	if v := w.must(t, grant.Ask, ""); v.Rule != "grant:grant_2" {
		t.Error(v.Rule)
	}
}
