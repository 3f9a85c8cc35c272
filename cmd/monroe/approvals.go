package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

type approvalsCmd struct {
	List    approvalsList    `cmd:"" help:"List what waits, or did."`
	Show    approvalsShow    `cmd:"" help:"Show all that would leave."`
	Approve approvalsApprove `cmd:"" help:"Say yes to exactly what is shown, once."`
	Edit    approvalsEdit    `cmd:"" help:"Change what would leave; the changed bytes are asked for anew."`
	Reject  approvalsReject  `cmd:"" help:"Say no."`
}

type approvalsList struct {
	State host.ApprovalState `default:"pending" enum:"pending,approved,rejected,used,expired,void,superseded,all" help:"Which: ${enum}."`
}

func (a approvalsList) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	if a.State == "all" {
		a.State = ""
	}
	list, err := c.Approvals(e.ctx, a.State)
	if err != nil {
		return err
	}
	return e.show(list, func() {
		var rows [][]string
		for _, v := range list {
			rows = append(rows, []string{string(v.ID), string(v.State), v.Skill, v.Operation, v.Destination, when(v.ExpiresAt), string(v.Run)})
		}
		e.table([]string{"APPROVAL", "STATE", "SKILL", "OPERATION", "TO", "EXPIRES", "RUN"}, rows)
	})
}

type approvalsShow struct {
	ID host.ApprovalID `arg:""`
}

func (a approvalsShow) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.ApprovalView, error) { return c.Approval(e.ctx, a.ID) }, e.approval)
}

// approval shows everything that would leave; nothing is cut off.
func (e *env) approval(v api.ApprovalView) {
	e.printf("%s is %s: %s wants to %s\n", v.ID, v.State, v.Skill, v.Operation)
	e.printf("  why you are asked  %s\n", plain(v.Why))
	if v.Chain != "" {
		e.printf("  how it came about  %s\n", plain(v.Chain))
	}
	if len(v.Groups) > 0 {
		e.printf("  who may say yes    only people of: %s\n", strings.Join(v.Groups, " and of "))
	}
	e.printf("  to                 %s\n", plain(v.Destination))
	e.printf("  will be readable by %s\n", plain(strings.Join(v.Readers, ", ")))
	if len(v.Origins) > 0 {
		e.printf("  the run had read   %s\n", plain(strings.Join(v.Origins, ", ")))
	}
	e.printf("  can cost           %s\n  expires            %s\n  digest             %s\n", v.Ceiling, when(v.ExpiresAt), v.Digest)
	if v.Preview.Raw {
		e.printf("  UNINSPECTABLE      no renderer can show these bytes; approve only with --i-have-seen-the-bytes\n")
	}
	for _, w := range v.Preview.Warnings {
		e.printf("  WARNING            %s\n", plain(w))
	}
	e.printf("\n")
	for _, f := range v.Preview.Fields {
		e.printf("  %s: %s\n", plain(f.Name), plain(f.Value))
	}
	e.printf("\n%s", block(v.Preview.Body, "  │ "))
	e.printf("\n  %d bytes, SHA-256 %s\n", v.Preview.Bytes, v.Preview.SHA256)
}

type approvalsApprove struct {
	ID     host.ApprovalID `arg:""`
	Digest string          `help:"The digest that you saw; empty: show it now and take it."`
	Seen   bool            `name:"i-have-seen-the-bytes" help:"Needed where no renderer can show what would leave."`
}

func (a approvalsApprove) Run(e *env) error {
	return e.decide(a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest, SeenBytes: a.Seen})
}

type approvalsEdit struct {
	ID     host.ApprovalID   `arg:""`
	Set    map[string]string `mapsep:"none" help:"A field and its new value, such as subject=Hello or to='[\"ann@example.com\"]': JSON, or else text. Repeat it for more. @FILE reads the value."`
	Digest string            `help:"The digest that you saw; empty: that of now."`
}

func (a approvalsEdit) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	v, err := c.Approval(e.ctx, a.ID)
	if err != nil {
		return err
	}
	if len(a.Set) == 0 {
		return e.show(v, func() {
			e.printf("fields that --set can change (written by the guest):\n%s", block(pretty(v.Args), "  "))
		})
	}
	in := api.EditInput{Digest: a.Digest, Fields: map[string]json.RawMessage{}}
	if in.Digest == "" {
		in.Digest = v.Digest
	}
	for name, value := range a.Set {
		if path, ok := strings.CutPrefix(value, "@"); ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			value = string(b)
		}
		in.Fields[name] = json.RawMessage(value)
		if !json.Valid(in.Fields[name]) {
			if in.Fields[name], err = json.Marshal(value); err != nil {
				return err
			}
		}
	}
	old, err := c.Edit(e.ctx, a.ID, in)
	if err != nil {
		return err
	}
	return e.show(old, func() {
		e.printf("%s is %s; the run asks for the changed bytes: monroe approvals list\n", old.ID, old.State)
	})
}

type approvalsReject struct {
	ID host.ApprovalID `arg:""`
}

func (a approvalsReject) Run(e *env) error { return e.decide(a.ID, api.Decision{Decision: api.Reject}) }

func (e *env) decide(id host.ApprovalID, in api.Decision) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	if in.Digest == "" {
		v, err := c.Approval(e.ctx, id)
		if err != nil {
			return err
		}
		if !e.json && in.Decision == api.Approve {
			e.approval(v)
		}
		in.Digest = v.Digest
	}
	v, err := c.Decide(e.ctx, id, in)
	if err != nil {
		return err
	}
	return e.show(v, func() {
		e.printf("%s is %s; the run goes on: monroe runs watch %s\n", v.ID, v.State, v.Run)
		if v.State == host.ApprovalRejected {
			fmt.Fprintln(e.err, "a no sticks: after three for the same skill, operation and destination it is not asked again")
		}
	})
}
