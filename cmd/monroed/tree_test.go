package main_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// caller is a guest that calls a skill and writes the answer as its result.
func caller(name, skill, ops string) []byte {
	request := fmt.Sprintf(`{"op":"skill.call","v":1,"args":{"skill":%q,"input":{"folder":"docs"}}}`, skill)
	b, im := imports()
	b.Data(0, []byte(request))
	b.Memory(1)
	b.Export("memory", wt.KindMemory, 0)
	b.Custom("monroe.manifest", fmt.Appendf(nil, `{"abi":1,"name":%q,"version":"1.0.0","description":"calls %s","ops":["skill.call",%s],"operations":[
		{"operation":"files.list","effect":"read","resource":"files:docs/**"},{"operation":"files.read","effect":"read","resource":"files:docs/**"},
		{"operation":"mail.send","effect":"send","resource":"mail:*"}]}`, name, skill, ops))
	b.Export("monroe_run", wt.KindFunc, b.Func("", "i", 2, wt.I32Const(0), wt.I32Const(int32(len(request))), wt.I32Const(32768), wt.I32Const(16384), wt.Call(im.Call),
		wt.Wrap, wt.LocalSet(0), wt.I32Const(1), wt.I32Const(32768), wt.LocalGet(0), wt.Call(im.Write), wt.Drop, wt.I32Const(0)))
	return b.Bytes()
}

// TestLinuxASkillCallsAnother lets a guest call the digest skill on real workers: the
// question shows the chain, a killed daemon goes on with both, one mail is sent, and
// the caller without the grants gets nothing.
func TestLinuxASkillCallsAnother(t *testing.T) {
	d := digest(t)
	ops := `"tool.call","send","kv.get","kv.put","kv.delete","kv.list"`
	d.push(caller("chief", "digest", ops))
	// Without grants of its own, the intersection is empty.
	v := d.finished(d.start("chief", ""))
	if len(v.Tree) != 2 || v.Tree[1].State != host.StateFailed || !strings.Contains(string(v.Result), "SCOPE") {
		t.Fatalf("%s: %s %+v", v.State, v.Result, v.Tree)
	}
	grants := append([]string{}, digestGrants...)
	for _, g := range digestGrants {
		grants = append(grants, strings.Replace(g, "digest", "chief", 1))
	}
	d.apply(d.config(grants...))
	id := d.start("chief", "")
	question := d.asked(id) // whoever watches the caller is told
	if !strings.HasPrefix(question.Chain, "digest, called by chief, started by ") || question.Run == id {
		t.Errorf("%+v", question.Approval)
	}
	d.kill()
	d.up()
	if out, _ := cli(t, "--home", d.home, "-w", "team", "approvals", "show", string(question.ID)); !strings.Contains(out, question.Chain) {
		t.Error(out)
	}
	if out, _ := cli(t, "--home", d.home, "-w", "team", "runs", "show", string(id)); !strings.Contains(out, "← this run") || !strings.Contains(out, "it is the turn of the run that it called") || !strings.Contains(out, "  "+string(question.Run)) {
		t.Error(out)
	}
	if _, err := d.Decide(d.ctx(), question.ID, api.Decision{Decision: api.Approve, Digest: question.Digest}); err != nil {
		t.Fatal(err)
	}
	v = d.finished(id)
	if v.State != host.StateSucceeded || !strings.Contains(string(v.Result), `"ok":{"result":`) {
		t.Errorf("%s: %s %s", v.State, v.Failure, v.Result)
	}
	if len(v.Tree) != 2 || v.Tree[1].State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("%d mails, %+v", len(d.mails()), v.Tree)
	}
	d.verified()
}
