package grant_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/label"
)

const policyPage = "../../docs/policies.md"

// examples are the Cedar blocks of docs/policies.md.
func examples(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile(policyPage)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range regexp.MustCompile("(?s)```cedar\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		list = append(list, m[1])
	}
	return list
}

// TestDocumentedPolicies tries every example of docs/policies.md on a call that it
// is about and on one that it is not about.
func TestDocumentedPolicies(t *testing.T) {
	list := examples(t)
	module := abi.Digest{1}
	manifest, err := abi.ParseManifest([]byte(`{"abi":1,"name":"digest","version":"1.0.0","ops":["tool.call","send","llm.chat"],"operations":[
		{"operation":"files.read","effect":"read","resource":"files:**"},
		{"operation":"mail.send","effect":"send","resource":"mail:*"},
		{"operation":"llm.chat","effect":"metered","resource":"model:**"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	grants := []grant.Grant{
		{ID: "g1", Module: module, Operation: "files.read", Resource: "files:**"},
		{ID: "g2", Module: module, Operation: "mail.send", Resource: "mail:*"},
		{ID: "g3", Module: module, Operation: "llm.chat", Resource: "model:**"},
	}
	read := func(res string) grant.Action {
		return grant.Action{Op: abi.OpToolCall, Operation: "files.read", Effect: abi.EffectRead, Resources: []string{res}, Audience: label.Only("workspace")}
	}
	mail := func(to string) grant.Action {
		return grant.Action{Op: abi.OpSend, Operation: "mail.send", Effect: abi.EffectSend, Resources: []string{"mail:" + to}, Destination: to, Audience: label.Only("mail:" + to)}
	}
	chat := grant.Action{Op: abi.OpLLMChat, Operation: "llm.chat", Effect: abi.EffectMetered, Resources: []string{"model:m"}, Audience: label.Only("model"), Ceiling: 100_001}
	user := label.Set{Integrity: label.User, Readers: label.Only("workspace", "model")}
	external := label.Set{Readers: label.Only("workspace")}
	cases := []struct {
		example        int
		id             string
		forbidden, may grant.Action
		heldF, heldM   label.Set
	}{
		{0, "external-stays", mail("ann@example.com"), mail("ann@example.com"), external, user},
		{1, "hr-closed", read("files:docs/hr/pay.md"), read("files:docs/plan.md"), user, user},
		{2, "own-domain", mail("eve@example.net"), mail("ann@example.com"), user, user},
		{2, "ten-cents", chat, read("files:a"), user, user},
	}
	if len(list) != 4 {
		t.Fatalf("docs/policies.md has %d examples", len(list))
	}
	s := grant.Subject{Run: "run_1", Skill: "digest", Module: module, Manifest: manifest, For: host.Principal{ID: "p", Name: "Ann", Role: host.RoleOwner}, Attended: true}
	dear := chat
	dear.Ceiling = 1_000_001
	p, err := grant.Compile(1, grants, nil, map[string]string{"doc.cedar": list[3]})
	if err != nil {
		t.Fatal(err)
	}
	asked := grant.Subject{Run: "run_1", Skill: "digest", Module: module, Manifest: manifest, For: host.Principal{ID: "p", Name: "Ann", Role: host.RoleOwner}, Attended: true}
	for _, c := range []struct {
		a      grant.Action
		groups string
		out    grant.Outcome
	}{{chat, "", grant.Allow}, {dear, "finance", grant.Ask}, {mail("ann@example.com"), "", grant.Ask}, {mail("eve@example.net"), "press", grant.Ask}} {
		if v := p.Decide(asked, c.a, user); v.Outcome != c.out || strings.Join(v.Approvers, " ") != c.groups {
			t.Errorf("%s on %v: %v by %v", c.a.Operation, c.a.Resources, v.Outcome, v.Approvers)
		}
	}
	for _, c := range cases {
		p, err := grant.Compile(1, grants, nil, map[string]string{"doc.cedar": list[c.example]})
		if err != nil {
			t.Fatal(err)
		}
		if v := p.Decide(s, c.forbidden, c.heldF); v.Outcome != grant.Deny || !strings.Contains(v.Rule, "("+c.id+")") {
			t.Errorf("%s: %v by %s", c.id, v.Outcome, v.Rule)
		}
		if v := p.Decide(s, c.may, c.heldM); v.Outcome == grant.Deny {
			t.Errorf("%s: refuses what it is not about: %s", c.id, v.Rule)
		}
	}
}

// TestDocumentedAttributes finds every attribute of the page's table in a policy
// that needs it: one that is not set would be an error, and name itself.
func TestDocumentedAttributes(t *testing.T) {
	page, err := os.ReadFile(policyPage)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "## Context")
	table, _, _ = strings.Cut(table, "## Examples")
	module := abi.Digest{1}
	manifest := &abi.Manifest{Ops: []abi.Op{abi.OpToolCall}, Operations: []abi.OperationUse{{Operation: "files.read", Effect: abi.EffectRead, Resource: "files:**"}}}
	s := grant.Subject{Module: module, Manifest: manifest, For: host.Principal{Role: host.RoleOwner}}
	a := grant.Action{Op: abi.OpToolCall, Operation: "files.read", Effect: abi.EffectRead, Resources: []string{"files:a"}, Audience: label.Only("workspace")}
	held := label.Set{Readers: label.Only("workspace")}
	rows := regexp.MustCompile("(?m)^\\| `([a-z]+)` \\| (String|Bool|Long|Set of String) \\|").FindAllStringSubmatch(table, -1)
	if len(rows) != 14 {
		t.Fatalf("the table has %d attributes", len(rows))
	}
	never := map[string]string{"String": `== "no such value"`, "Bool": `&& false`, "Long": `> 1`, "Set of String": `.contains("nobody")`}
	for _, m := range rows {
		dot := " "
		if m[2] == "Set of String" {
			dot = ""
		}
		text := "forbid (principal, action, resource) when { context." + m[1] + dot + never[m[2]] + " };"
		p, err := grant.Compile(1, []grant.Grant{{ID: "g", Module: module, Operation: "files.read", Resource: "files:**"}}, nil, map[string]string{"t.cedar": text})
		if err != nil {
			t.Fatal(err)
		}
		if v := p.Decide(s, a, held); v.Outcome != grant.Allow {
			t.Errorf("%s: %s", m[1], v.Denial.Reason)
		}
	}
}
