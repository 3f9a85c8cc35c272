package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/label"
)

const (
	decideRounds = 1000
	decideBatch  = 100 // decisions in one sample: one alone is below the clock
)

// decide measures a decision among 64 grants of one operation, of which the last
// covers the call: without a policy, and with one Cedar policy that does not match.
// The peer is cedar-go with the same 64 grants as permits.
func (b *bench) decide(context.Context) error {
	module := abi.Digest{1}
	manifest, err := abi.ParseManifest([]byte(`{"abi":1,"name":"bench","version":"1.0.0","ops":["tool.call"],"operations":[{"operation":"files.read","effect":"read","resource":"files:**"}]}`))
	if err != nil {
		return err
	}
	var grants []grant.Grant
	permits := cedar.NewPolicySet()
	for i := range 64 {
		folder := fmt.Sprintf("files:docs/folder-%02d", i)
		grants = append(grants, grant.Grant{ID: host.GrantID(fmt.Sprintf("grant_%d", i)), Skill: "bench", Module: module, Operation: "files.read", Resource: abi.Pattern(folder + "/**")})
		var p cedar.Policy
		text := fmt.Sprintf(`permit (principal in Skill::"bench", action == Action::"files.read", resource in Resource::%q);`, folder)
		if err := p.UnmarshalCedar([]byte(text)); err != nil {
			return err
		}
		permits.Add(cedar.PolicyID(fmt.Sprint(i)), &p)
	}
	const resource = "files:docs/folder-63/report.md"
	s := grant.Subject{Run: "run_1", Skill: "bench", Module: module, Manifest: manifest, For: host.Principal{ID: "prin_1", Name: "Owner", Role: host.RoleOwner}, Attended: true}
	a := grant.Action{Op: abi.OpToolCall, Operation: "files.read", Effect: abi.EffectRead, Resources: []string{resource}, Audience: label.Only("workspace")}
	held := label.Set{Integrity: label.User, Readers: label.Only("workspace", "model")}

	alone, err := cedarAlone(permits, resource)
	if err != nil {
		return err
	}
	p := peer{"cedar-go: Authorize over the same 64 grants as permits", at(alone, 50, time.Microsecond)}
	one := func(name string, files map[string]string) error {
		policy, err := grant.Compile(1, grants, nil, files)
		if err != nil {
			return err
		}
		if v := policy.Decide(s, a, held); v.Outcome != grant.Allow {
			return fmt.Errorf("%s: %s", name, v.Denial.Reason)
		}
		return b.report(name, time.Microsecond, batches(func() { policy.Decide(s, a, held) }), p, 10, false)
	}
	return errors.Join(
		one("decide_64_grants", nil),
		one("decide_64_grants_1_policy", map[string]string{"hr.cedar": `@id("hr") forbid (principal, action, resource in Resource::"files:docs/hr") when { context.integrity == "external" };`}),
	)
}

func cedarAlone(permits *cedar.PolicySet, resource string) ([]time.Duration, error) {
	run, skill, action := cedar.NewEntityUID("Run", "run_1"), cedar.NewEntityUID("Skill", "bench"), cedar.NewEntityUID("Action", "files.read")
	res, folder := cedar.NewEntityUID("Resource", cedar.String(resource)), cedar.NewEntityUID("Resource", "files:docs/folder-63")
	entities := cedar.EntityMap{
		run: {UID: run, Parents: cedar.NewEntityUIDSet(skill)}, skill: {UID: skill},
		res: {UID: res, Parents: cedar.NewEntityUIDSet(folder)}, folder: {UID: folder},
	}
	req := cedar.Request{Principal: run, Action: action, Resource: res, Context: cedar.NewRecord(nil)}
	if d, _ := cedar.Authorize(permits, entities, req); d != cedar.Allow {
		return nil, errors.New("cedar-go alone does not allow")
	}
	return batches(func() { cedar.Authorize(permits, entities, req) }), nil
}

// batches times calls of f, as the mean of a batch.
func batches(f func()) (took []time.Duration) {
	for range decideRounds {
		begin := time.Now()
		for range decideBatch {
			f()
		}
		took = append(took, time.Since(begin)/decideBatch)
	}
	return took
}
