package grant_test

import (
	"fmt"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/label"
)

// BenchmarkDecide64Grants is a send that the last of 64 grants covers, under four
// policies that do not forbid it.
func BenchmarkDecide64Grants(b *testing.B) {
	module := abi.Digest{1}
	var grants []grant.Grant
	for i := range 64 {
		grants = append(grants, grant.Grant{
			ID: host.GrantID(fmt.Sprintf("grant_%02d", i)), Skill: "triage", Module: module, Operation: "mail.send",
			Resource: abi.Pattern(fmt.Sprintf("mail:team%02d@example.com", i)),
		})
	}
	p, err := grant.Compile(1, grants, []grant.Ceiling{{Operation: "mail.send", Resource: "mail:**"}}, map[string]string{
		"a.cedar": `forbid (principal, action == Action::"files.read", resource) when { context.secret };
forbid (principal in Role::"viewer", action, resource);
forbid (principal, action == Action::"mail.send", resource) when { context.pii };
forbid (principal, action, resource in Resource::"files:docs/hr") unless { context.attended };`,
	})
	if err != nil {
		b.Fatal(err)
	}
	s := grant.Subject{
		Run: "run_1", Skill: "triage", Module: module, Attended: true, For: host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleMember},
		Manifest: &abi.Manifest{Ops: []abi.Op{abi.OpSend}, Operations: []abi.OperationUse{{Operation: "mail.send", Effect: abi.EffectSend, Resource: "mail:**"}}},
	}
	a := grant.Action{
		Op: abi.OpSend, Operation: "mail.send", Effect: abi.EffectSend, Resources: []string{"mail:team63@example.com"},
		Destination: "team63@example.com", Account: "con_1", Audience: label.Only("mail:team63@example.com"), Digest: abi.Digest{2},
	}
	held := label.Join(label.Clean(), label.Set{Integrity: label.Internal, Readers: label.Only("workspace")})
	if v := p.Decide(s, a, held); v.Outcome != grant.Ask {
		b.Fatalf("%+v", v)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Decide(s, a, held)
	}
}
