package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxChangedModuleHoldsNoGrants attaches a manifest with another version: the
// same code in other bytes.
func TestLinuxChangedModuleHoldsNoGrants(t *testing.T) {
	d := digest(t)
	bare := read(t, filepath.Join(program("guests"), ".digest.bare"))
	manifest, err := abi.FindManifest(guestModule(t, "digest"))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := abi.AttachManifest(bare, []byte(strings.Replace(string(manifest), `"1.0.0"`, `"1.0.1"`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	old, err := d.Skill(d.ctx(), "digest")
	if err != nil || !old.Granted {
		t.Fatalf("%+v, %v", old, err)
	}
	s := d.push(changed)
	if s.Granted || s.Module == old.Module || s.Version != "1.0.1" {
		t.Errorf("the changed module: granted %v, version %s", s.Granted, s.Version)
	}
	v := d.finished(d.start("digest", `{"folder":"docs"}`))
	if v.State != host.StateFailed || !strings.Contains(string(v.Result), "SCOPE") {
		t.Errorf("without grants the run %s: %s %s", v.State, v.Failure, v.Result)
	}
	outcomes := map[string]string{}
	for _, c := range v.Log {
		outcomes[c.Operation] = c.Outcome
	}
	if outcomes["files.list"] != "SCOPE" || !strings.Contains(v.Receipt, "refused") {
		t.Errorf("outcomes %v\n%s", outcomes, v.Receipt)
	}
	d.apply(d.config(digestGrants...)) // carries the grants over to the new bytes
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("with grants the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
}

func TestLinuxBadConfigurationChangesNothing(t *testing.T) {
	d := digest(t)
	good := d.config(digestGrants...)
	before, err := d.Workspace(d.ctx())
	if err != nil {
		t.Fatal(err)
	}
	outside := shortDir(t)
	link := filepath.Join(d.files, "link")
	state := filepath.Join(d.files, "state")
	home := filepath.Join(d.files, "home")
	for from, to := range map[string]string{link: outside, state: d.dir, home: d.home} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	// An operator may open a folder that holds the state; the workspace still may not
	// have it.
	d.kill()
	write(t, filepath.Join(d.home, "operator.yaml"), "version: 1\nfolders: ["+d.files+", "+d.home+"]\n")
	d.up()
	folder := func(path string) string { return strings.Replace(good, "path: "+d.files, "path: "+path, 1) }
	for _, c := range []struct {
		name, config string
		policies     map[string]string
		code, says   string
	}{
		{"nothing", "", nil, "CONFIG_SYNTAX", "empty"},
		{"no YAML", "a: [", nil, "CONFIG_SYNTAX", "workspace.yaml"},
		{"unknown key", good + "colour: red\n", nil, "CONFIG_SYNTAX", "colour"},
		{"unknown key of a grant", d.config(digestGrants[0] + ", gates: deny"), nil, "CONFIG_SYNTAX", "gates"},
		{"two documents", good + "---\n" + good, nil, "CONFIG_SYNTAX", "more than one"},
		{"key twice", good + "version: 1\n", nil, "CONFIG_SYNTAX", "version"},
		{"version", strings.Replace(good, "version: 1", "version: 2", 1), nil, "CONFIG_VERSION", "version 1"},
		{"other workspace", strings.Replace(good, "workspace: team", "workspace: other", 1), nil, "CONFIG_WORKSPACE", "other"},
		{"negative cap", strings.Replace(good, `"5"`, `"-5"`, 1), nil, "CONFIG_CAP", "-5"},
		{"cap in words", strings.Replace(good, `"5"`, `"1e9"`, 1), nil, "CONFIG_CAP", "1e9"},
		{"folder outside", folder(outside), nil, "CONFIG_CONNECTOR", "has not opened"},
		{"folder with the same beginning", folder(d.files + "2"), nil, "CONFIG_CONNECTOR", "not there"},
		{"folder that is not there", folder(d.files + "/none"), nil, "CONFIG_CONNECTOR", "not there"},
		{"link outside", folder(link), nil, "CONFIG_CONNECTOR", "has not opened"},
		{"own state", folder(d.dir), nil, "CONFIG_CONNECTOR", "keys and state"},
		{"folder that holds the state", folder(d.home), nil, "CONFIG_CONNECTOR", "keys and state"},
		{"inside the state", folder(filepath.Join(d.dir, "modules")), nil, "CONFIG_CONNECTOR", "keys and state"},
		{"link to the state", folder(state), nil, "CONFIG_CONNECTOR", "keys and state"},
		{"link to what holds it", folder(home), nil, "CONFIG_CONNECTOR", "keys and state"},
		{"relative folder", folder("docs"), nil, "CONFIG_CONNECTOR", "absolute"},
		{"folder with ..", folder(d.files + "/../docs"), nil, "CONFIG_CONNECTOR", "clean"},
		{"unknown kind", strings.Replace(good, "kind: files", "kind: s3", 1), nil, "CONFIG_CONNECTOR", "s3"},
		{"unknown operation", d.config(`skill: digest, operation: files.write, resource: "files:docs/**"`), nil, "GRANT_OPERATION", "files.write"},
		{"unknown skill", d.config(`skill: nobody, operation: files.read, resource: "files:docs/**"`), nil, "GRANT_SKILL", "push it first"},
		{"broken pattern", d.config(`skill: digest, operation: files.read, resource: "files:docs/../**"`), nil, "CONFIG_GRANT", "line 1"},
		{"approvers of nothing", good + "approvers: [{operation: mail.post, other_person: true}]\n", nil, "CONFIG_APPROVERS", "mail.post"},
		{"approvers that cannot", good + "approvers: [{operation: mail.send, roles: [viewer]}]\n", nil, "CONFIG_APPROVERS", "viewer"},
		{"approvers without a rule", good + "approvers: [{operation: mail.send}]\n", nil, "CONFIG_APPROVERS", "line 1"},
		{"identical calls", good + "identical_calls: -1\n", nil, "CONFIG_IDENTICAL", "10000"},
		{"unknown gate", d.config(digestGrants[0] + ", gate: allow"), nil, "CONFIG_GRANT", "allow"},
		{"permit", good + "policies: [a.cedar]\n", map[string]string{"a.cedar": "permit (principal, action, resource);"}, "CONFIG_POLICY", "only forbid"},
		{"permit after a forbid", good + "policies: [a.cedar]\n", map[string]string{"a.cedar": "forbid (principal, action, resource) when { false };\npermit (principal, action, resource);"}, "CONFIG_POLICY", "a.cedar:2"},
		{"no Cedar", good + "policies: [a.cedar]\n", map[string]string{"a.cedar": "allow everything"}, "CONFIG_POLICY", "a.cedar"},
		{"policy that was not sent", good + "policies: [a.cedar]\n", nil, "CONFIG_POLICY", "not sent"},
		{"policy elsewhere", good + "policies: [../a.cedar]\n", nil, "CONFIG_POLICY", "../a.cedar"},
	} {
		_, err := d.Apply(d.ctx(), api.ApplyInput{Config: c.config, Policies: c.policies})
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		if p := refused(t, err, 422, c.code); !strings.Contains(p.Detail, c.says) || p.Remedy == "" {
			t.Errorf("%s: %q (%s) does not tell of %q", c.name, p.Detail, p.Remedy, c.says)
		}
	}
	after, err := d.Workspace(d.ctx())
	if err != nil || after.Config != before.Config || after.Version != before.Version {
		t.Errorf("something changed: version %d → %d, %v", before.Version, after.Version, err)
	}
	if s, err := d.Skill(d.ctx(), "digest"); err != nil || !s.Granted {
		t.Errorf("the grants are gone: %v", err)
	}
	// The command line says the same and ends with 1.
	file := filepath.Join(shortDir(t), "workspace.yaml")
	write(t, file, good+"colour: red\n")
	out, status := cli(t, "--home", d.home, "-w", "team", "workspace", "apply", "-f", file)
	if status != 1 || !strings.Contains(out, "CONFIG_SYNTAX") || !strings.Contains(out, "colour") {
		t.Errorf("status %d\n%s", status, out)
	}
	write(t, file, good)
	if out, status := cli(t, "--home", d.home, "-w", "team", "workspace", "apply", "-f", file); status != 0 {
		t.Errorf("the good file: status %d\n%s", status, out)
	}
}

func TestLinuxALinkInAFolderIsNotFollowed(t *testing.T) {
	d := digest(t)
	outside := shortDir(t)
	write(t, filepath.Join(outside, "secret.md"), "# Secret\n\nWhere is the treasure?\n")
	if err := os.Symlink(filepath.Join(outside, "secret.md"), filepath.Join(d.files, "secret.md")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(d.files, "more")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(d.dir, "owner.token"), filepath.Join(d.files, "token.md")); err != nil {
		t.Logf("no hard link here: %v", err)
	}
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	token := strings.TrimSpace(string(read(t, filepath.Join(d.dir, "owner.token"))))
	if strings.Contains(a.Preview.Body, "treasure") || strings.Contains(a.Preview.Body, token) {
		t.Errorf("the digest holds what a link leads to:\n%s", a.Preview.Body)
	}
	if !strings.Contains(a.Preview.Body, "Shall we ship on Friday?") {
		t.Errorf("the digest lacks the folder's own file:\n%s", a.Preview.Body)
	}
}

func TestLinuxForbid(t *testing.T) {
	for name, c := range map[string]struct{ policy, operation, state string }{
		"everything": {`@id("closed") forbid (principal, action, resource);`, "files.list", "failed"},
		"mail":       {"@id(\"no mail\")\nforbid (principal, action, resource) when { context.resource like \"mail:*\" };", "mail.send", ""},
		"broken":     {`@id("broken") forbid (principal, action, resource) when { resource.nosuch == 1 };`, "files.list", "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			d := digest(t)
			if _, err := d.Apply(d.ctx(), api.ApplyInput{
				Config: d.config(digestGrants...) + "policies: [rules.cedar]\n", Policies: map[string]string{"rules.cedar": c.policy},
			}); err != nil {
				t.Fatal(err)
			}
			d.kill() // the policy is in force after a restart too
			d.up()
			v := d.finished(d.start("digest", `{"folder":"docs"}`))
			denied := map[string]string{}
			for _, l := range v.Log {
				if l.Outcome == string(abi.Denied) {
					denied[l.Operation] = l.Reason
				}
			}
			if !strings.Contains(denied[c.operation], "rules.cedar") || c.state != "" && string(v.State) != c.state {
				t.Errorf("the run %s: %s; denied %v; log %+v", v.State, v.Failure, denied, v.Log)
			}
			if n := len(d.mails()); n != 0 {
				t.Errorf("%d mails", n)
			}
			list, err := d.Approvals(d.ctx(), "")
			if err != nil || len(list) != 0 {
				t.Errorf("a person was asked for what is forbidden: %+v, %v", list, err)
			}
		})
	}
}
