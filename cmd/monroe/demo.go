package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
	"github.com/getmonroe/monroe/host/durable"
)

type demoCmd struct {
	Files       string     `default:"." type:"existingdir" help:"The folder to read."`
	Guests      string     `type:"path" help:"Where the built-in guests are; empty: guests, beside this program."`
	Yes         bool       `help:"Give the approval with the owner's token instead of asking."`
	Check       host.RunID `help:"Only check a run of an earlier demo, from outside."`
	InsecureDev bool       `help:"Run guests although the confinement is incomplete."`
}

// operatorMark is the first line of an operator.yaml that this command may replace.
const operatorMark = "# written by monroe demo; delete this line to keep your changes\n"

// Run goes from upload to receipt, and believes nothing that it can count itself.
func (d demoCmd) Run(e *env) error {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	own := *e
	own.ctx = ctx
	if e.json { // the story is for people
		own.out = e.err
	}
	result := e
	e = &own
	if d.Check == "" {
		if err := d.prepare(e); err != nil {
			return err
		}
	}
	stop, err := d.daemon(e)
	if err != nil {
		return err
	}
	defer stop()
	c, err := e.client()
	if err != nil {
		return err
	}
	id := d.Check
	if id == "" {
		if id, err = d.digest(e, c); err != nil {
			return err
		}
	}
	v, err := d.check(e, c, id)
	if err != nil {
		return fmt.Errorf("demo: FAILED: %w", err)
	}
	return result.show(v, func() {
		result.printf("demo: ok run=%s approvals=%d sent=%d receipt=%s audit=verified\n", v.Run, v.Approvals, v.Sent, v.Receipt)
	})
}

// counted is what was found from outside. It is there only if the log was verified.
type counted struct {
	Run       host.RunID     `json:"run"`
	Approvals int            `json:"approvals"`
	Sent      int            `json:"sent"`
	Receipt   host.ReceiptID `json:"receipt"`
}

// prepare writes the operator's configuration for the demo.
func (d demoCmd) prepare(e *env) error {
	if err := durable.MkdirAll(e.home); err != nil {
		return err
	}
	path := filepath.Join(e.home, "operator.yaml")
	have, err := os.ReadFile(path)
	if err == nil && !bytes.HasPrefix(have, []byte(operatorMark)) {
		return nil // the operator's own: leave it
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	folder, err := d.folder()
	if err != nil {
		return err
	}
	quoted, err := json.Marshal(folder) // a JSON string is a YAML string
	if err != nil {
		return err
	}
	text := operatorMark + "version: 1\nowner:\n  name: Owner\n  email: owner@localhost\nfolders:\n  - " + string(quoted) + "\n"
	return os.WriteFile(path, []byte(text), 0o600)
}

func (d demoCmd) folder() (string, error) {
	abs, err := filepath.Abs(d.Files)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// daemon uses the one that answers, or starts one that ends with the demo.
func (d demoCmd) daemon(e *env) (stop func(), err error) {
	if c, err := e.client(); err == nil {
		if _, err := c.Workspace(e.ctx); err == nil {
			return func() {}, nil
		}
	}
	logPath := filepath.Join(e.home, "demo.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	quiet := *e
	quiet.ctx, quiet.err = ctx, log
	cmd, err := upCmd{InsecureDev: d.InsecureDev}.start(&quiet, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it has to say is in its log
		cancel()
	}()
	if err := e.ready(ctx); err != nil {
		cancel()
		<-ended
		said, _ := os.ReadFile(logPath)
		return nil, fmt.Errorf("%w; the daemon said:\n%s", err, block(string(said), "  "))
	}
	fmt.Fprintf(e.err, "daemon started; its log is %s\n", logPath)
	return func() { cancel(); <-ended; _ = log.Close() }, nil
}

// digest pushes the guests, grants what the digest needs, runs it, and lets a person
// approve the mail.
func (d demoCmd) digest(e *env, c *client.Client) (host.RunID, error) {
	if err := d.push(e, c); err != nil {
		return "", err
	}
	if err := d.grant(e, c); err != nil {
		return "", err
	}
	est, err := c.Estimate(e.ctx, "digest", "")
	if err != nil {
		return "", err
	}
	e.printf("estimate: %s\n", estimate(est))
	run, err := c.StartRun(e.ctx, api.StartInput{Skill: "digest", Input: json.RawMessage(`{"folder":"docs"}`)})
	if err != nil {
		return "", err
	}
	e.printf("run %s\n", run.ID)
	err = c.Watch(e.ctx, run.ID, 0, func(ev host.Event) error {
		e.event(ev)
		if ev.Approval == "" {
			return nil
		}
		return d.approve(e, c, ev.Approval)
	})
	if err != nil {
		return "", err
	}
	v, err := c.Run(e.ctx, run.ID)
	if err != nil {
		return "", err
	}
	if v.State != host.StateSucceeded {
		return "", fmt.Errorf("the run %s: %s", v.State, v.Failure)
	}
	e.printf("the mail lies in %s\nreceipt:\n%s", maildir(e), block(v.Receipt, "  "))
	return run.ID, nil
}

func (d demoCmd) push(e *env, c *client.Client) error {
	dir := d.Guests
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		dir = filepath.Join(filepath.Dir(self), "guests")
	}
	have, err := c.Skills(e.ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"digest", "assistant"} {
		module, err := os.ReadFile(filepath.Join(dir, name+".wasm"))
		if err != nil {
			return fmt.Errorf("the built-in guests are not there; make build makes them: %w", err)
		}
		digest := fmt.Sprintf("%x", sha256.Sum256(module))
		known := false
		for _, s := range have {
			known = known || s.Name == name && s.Module == digest
		}
		if known {
			e.printf("%s is there already, module %.12s\n", name, digest)
			continue
		}
		fmt.Fprintf(e.err, "pushing %s (%d KiB): admission and compilation in a confined child …\n", name, len(module)>>10)
		s, err := c.PushSkill(e.ctx, module)
		if err != nil {
			return err
		}
		e.pushed(s)
	}
	return nil
}

func (d demoCmd) grant(e *env, c *client.Client) error {
	folder, err := d.folder()
	if err != nil {
		return err
	}
	quoted, err := json.Marshal(folder)
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`version: 1
workspace: %s
cap_usd: "5"
connectors:
  - {name: docs, kind: files, path: %s, model_may_read: true}
grants:
  - {skill: digest, operation: files.list, resource: "files:docs/**"}
  - {skill: digest, operation: files.read, resource: "files:docs/**"}
  - {skill: digest, operation: mail.send, resource: "mail:owner@localhost"}
  - {skill: assistant, operation: files.list, resource: "files:docs/**"}
  - {skill: assistant, operation: files.read, resource: "files:docs/**"}
  - {skill: assistant, operation: mail.send, resource: "mail:owner@localhost"}
`, filepath.Base(e.dir), quoted)
	path := filepath.Join(e.home, "workspace.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	r, err := c.Apply(e.ctx, api.ApplyInput{Config: text})
	if err != nil {
		return err
	}
	e.printf("applied %s: %d grants\n", path, r.Grants)
	return nil
}

// approve shows what would leave, and takes the owner's answer or waits for it.
func (d demoCmd) approve(e *env, c *client.Client, id host.ApprovalID) error {
	v, err := c.Approval(e.ctx, id)
	if err != nil || v.State != host.ApprovalPending {
		return err
	}
	e.printf("\n")
	e.approval(v)
	if d.Yes {
		if _, err := c.Decide(e.ctx, id, api.Decision{Decision: api.Approve, Digest: v.Digest}); err != nil {
			return err
		}
		e.printf("approved with the owner's token\n\n")
		return nil
	}
	e.printf(`
Nothing has left yet. To let it go, in another terminal:
  %[1]s --home %[2]s -w %[3]s approvals approve %[4]s
or by the API:
  curl --unix-socket %[2]s/%[3]s/api.sock -H "Authorization: Bearer $(cat %[2]s/%[3]s/owner.token)" \
    -H 'Content-Type: application/json' -d '{"decision":"approve","digest":"%[5]s"}' http://monroe/v1/approvals/%[4]s/decision
`, os.Args[0], e.home, filepath.Base(e.dir), id, v.Digest)
	if isatty.IsTerminal(os.Stdin.Fd()) {
		go d.ask(e, c, id, v.Digest)
	} else {
		e.printf("waiting …\n")
	}
	return nil
}

// ask takes the answer at the terminal, beside the other two ways.
func (d demoCmd) ask(e *env, c *client.Client, id host.ApprovalID, digest string) {
	e.printf("or here: send it? [y/N] ")
	line, err := bufio.NewReader(e.in).ReadString('\n')
	if err != nil {
		return
	}
	answer := api.Reject
	if strings.EqualFold(strings.TrimSpace(line), "y") {
		answer = api.Approve
	}
	if _, err := c.Decide(e.ctx, id, api.Decision{Decision: answer, Digest: digest}); err != nil {
		fmt.Fprintln(e.err, "monroe:", err)
	}
}

// maildir is where delivered mails lie.
func maildir(e *env) string { return filepath.Join(e.dir, "Maildir", "new") }

// check counts from outside: the mails that lie in the Maildir, byte by byte against
// what was approved, and the audit log, verified by another process.
func (d demoCmd) check(e *env, c *client.Client, id host.RunID) (found counted, err error) {
	used, err := c.Approvals(e.ctx, host.ApprovalUsed)
	if err != nil {
		return found, err
	}
	approved := map[string]host.RunID{} // SHA-256 of what was approved → run
	approvals := 0
	for _, a := range used {
		v, err := c.Approval(e.ctx, a.ID)
		if err != nil {
			return found, err
		}
		approved[v.Preview.SHA256] = a.Run
		if a.Run == id {
			approvals++
		}
	}
	box := maildir(e)
	mails, err := os.ReadDir(box)
	if err != nil {
		return found, err
	}
	sent := 0
	for _, m := range mails {
		b, err := os.ReadFile(filepath.Join(box, m.Name()))
		if err != nil {
			return found, err
		}
		run, ok := approved[fmt.Sprintf("%x", sha256.Sum256(b))]
		if !ok {
			return found, fmt.Errorf("the mail %s in %s is not what anybody approved", m.Name(), box)
		}
		if run == id {
			sent++
		}
	}
	if sent == 0 || sent != approvals {
		return found, fmt.Errorf("%d mails of this run lie in %s, %d were approved", sent, box, approvals)
	}
	run, err := c.Run(e.ctx, id)
	if err != nil {
		return found, err
	}
	return counted{id, approvals, sent, run.ReceiptID}, d.verifyElsewhere(e)
}

// verifyElsewhere lets a process of its own verify the log.
func (d demoCmd) verifyElsewhere(e *env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, self, "--home", e.home, "-w", filepath.Base(e.dir), "audit", "verify").CombinedOutput()
	if err != nil {
		return fmt.Errorf("the audit log: %w\n%s", err, block(string(out), "  "))
	}
	e.printf("%s", block(strings.TrimRight(string(out), "\n"), "  "))
	return nil
}
