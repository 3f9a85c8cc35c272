package main

import (
	"errors"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/conformance"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/label"
)

// decide lets this host's decider judge one call, where no policy forbids anything and the
// run holds nothing.
func decide(m conformance.Message) (conformance.Message, error) {
	d := m.Decide
	if d == nil {
		return m, errors.New("the kit asks to decide nothing")
	}
	manifest, err := abi.ParseManifest(m.Manifest)
	if err != nil {
		return m, err
	}
	module, other := abi.Digest{1}, abi.Digest{2}
	var grants []grant.Grant
	for _, l := range d.Grants {
		g := grant.Grant{Skill: manifest.Name, Module: module, Operation: l.Operation, Resource: abi.Pattern(l.Resource)}
		if l.Other {
			g.Module = other
		}
		grants = append(grants, g)
	}
	var ceiling []grant.Ceiling
	for _, l := range d.Ceiling {
		ceiling = append(ceiling, grant.Ceiling{Operation: l.Operation, Resource: abi.Pattern(l.Resource)})
	}
	policy, err := grant.Compile(1, grants, ceiling, nil)
	if err != nil {
		return m, err
	}
	who := host.Principal{Name: "somebody", Role: host.RoleOwner}
	if d.Looks {
		who.Role = host.RoleViewer
	}
	a := grant.Action{Op: abi.Op(d.Op), Operation: d.Operation, Effect: abi.Effect(d.Effect)}
	if d.Operation != "" {
		a.Resources = []string{d.Resource}
	}
	v := policy.Decide(grant.Subject{Skill: manifest.Name, Module: module, Manifest: manifest, For: who}, a, label.Set{})
	answer := conformance.Message{Is: "decided"}
	if v.Outcome == grant.Deny {
		answer.Code, answer.Message = string(v.Denial.Code), v.Denial.Reason
	}
	return answer, nil
}
