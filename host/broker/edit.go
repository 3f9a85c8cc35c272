package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
)

// Args are the operation's arguments that a call waits with: as a person made them,
// else as the guest did.
func (b *Broker) Args(e *journal.Entry) (json.RawMessage, error) {
	if e.Edited != nil {
		return e.Edited.Args, nil
	}
	req, d := abi.DecodeRequest(e.Request)
	if d != nil {
		return nil, d
	}
	_, args, d := b.operation(req)
	if d != nil {
		return nil, d
	}
	return args, nil
}

// Edit freezes what a call asks for anew, with some of the operation's arguments
// replaced by a person's; null takes one away. Nothing is decided here: the record that
// is returned is for the journal, and the door decides when the run comes back to the
// call. A denial of the connector is in the error.
func (b *Broker) Edit(ctx context.Context, e *journal.Entry, by host.PrincipalID, change map[string]json.RawMessage) (journal.Body, error) {
	bad := func(detail, remedy string) (journal.Body, error) {
		return journal.Body{}, &host.Problem{Kind: host.ErrInvalid, Code: "EDIT", Detail: detail, Remedy: remedy}
	}
	old, err := b.Args(e)
	if err != nil {
		return bad("the call cannot be edited: "+err.Error(), "reject it")
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(old, &fields); err != nil {
		return bad("the call cannot be edited: its arguments are no object", "reject it")
	}
	for name, v := range change {
		if bytes.Equal(v, []byte("null")) {
			delete(fields, name)
		} else {
			fields[name] = v
		}
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return bad(err.Error(), "give each field as JSON")
	}
	args, err := abi.Canonical(raw)
	if err != nil {
		return bad(err.Error(), "the arguments are JSON with integers only")
	}
	if len(change) == 0 || bytes.Equal(args, old) {
		return bad("nothing is changed", "approve it as it is")
	}
	plan, d := b.World.Plan(ctx, connectors.Call{Operation: e.Operation, Args: args, Now: e.Started, Key: e.Key})
	if d != nil {
		return bad(d.Reason, d.Remedy)
	}
	frozen, err := json.Marshal(plan)
	return journal.Body{Request: args, Plan: frozen, Fields: slices.Sorted(maps.Keys(change)), By: string(by), Resource: first(plan.Resources), Approval: e.Approval}, err
}
