package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

// PlanProbe freezes the look for what a plan's attempt may have left behind. It
// touches nothing. A denial says that the connector cannot look.
func (e *Egress) PlanProbe(call connectors.Call, p connectors.Plan) (_ connectors.Plan, denial *abi.Denial) {
	x, ok := e.ops[call.Operation]
	if !ok {
		return connectors.Plan{}, unknownOperation(call.Operation)
	}
	prober, ok := x.connector.(connectors.Prober)
	if !ok {
		return connectors.Plan{}, abi.Deny(abi.Unsupported, "the connector cannot look for what was sent", "")
	}
	defer recovered(&denial, abi.OutcomeNone)
	probe, denial := prober.Probe(call, p)
	if denial != nil {
		return probe, denial
	}
	if err := checkProbe(x.op, probe); err != nil {
		return probe, abi.Deny(abi.Internal, "the connector's look-up was refused: "+err.Error(), "report this to the connector's author")
	}
	return probe, nil
}

// checkProbe lets a look-up only look.
func checkProbe(op connectors.Operation, p connectors.Plan) error {
	f := p.Frozen
	if f.Find == nil && f.FileRead == nil && f.FileList == nil && (f.HTTP == nil || f.HTTP.Method != "GET") || p.Ceiling != 0 {
		return errors.New("it is not a read that costs nothing")
	}
	op.Effect = abi.EffectRead
	return checkPlan(op, p)
}

// Probe performs a look-up under a permit for exactly its frozen bytes, and lets the
// connector read what it found: nil is nothing.
func (e *Egress) Probe(ctx context.Context, permit Permit, call connectors.Call, p, probe connectors.Plan) (found *connectors.Result, o Outcome) {
	if denial := covered(permit, probe); denial != nil {
		return nil, Outcome{Denial: denial}
	}
	x, ok := e.ops[call.Operation]
	if !ok {
		return nil, Outcome{Denial: unknownOperation(call.Operation)}
	}
	prober, ok := x.connector.(connectors.Prober)
	if !ok || checkProbe(x.op, probe) != nil {
		return nil, Outcome{Denial: abi.Deny(abi.Internal, "the stored look-up was refused", "")}
	}
	x.op.Effect = abi.EffectRead
	a := &attempt{e: e, op: x.op, plan: probe, emit: func(string) {}}
	o = a.run(ctx, func(ctx context.Context, answer *connectors.Answer) (denial *abi.Denial) {
		found, denial = readProbe(ctx, prober, call, p, probe, answer)
		return denial
	})
	return found, o
}

func readProbe(ctx context.Context, x connectors.Prober, call connectors.Call, p, probe connectors.Plan, a *connectors.Answer) (_ *connectors.Result, denial *abi.Denial) {
	defer recovered(&denial, abi.OutcomeNone)
	return x.Found(ctx, call, p, probe, a)
}

// find answers 200 if exactly this message was delivered, 404 if none of its name
// was, and refuses to tell where another message has its name.
func (a *attempt) find(f *connectors.MaildirFind) (*connectors.Answer, *abi.Denial) {
	path, ok := a.e.c.Maildirs[f.Folder]
	if !ok {
		return nil, abi.Deny(abi.ConnectorRevoked, "the mail folder of this message is no longer configured", "ask the operator")
	}
	unreadable := abi.Deny(abi.Upstream, "the mail folder could not be looked into", "ask the operator to check its permissions")
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) { // nothing was ever delivered
		return &connectors.Answer{Status: 404, Body: emptyBody(), Emit: a.emit}, nil
	}
	if err != nil {
		return nil, unreadable
	}
	defer func() { _ = root.Close() }()
	name, err := delivered(root, f.Unique)
	switch {
	case err != nil:
		return nil, unreadable
	case name == "":
		return &connectors.Answer{Status: 404, Body: emptyBody(), Emit: a.emit}, nil
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, unreadable
	}
	defer func() { _ = file.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, file)
	a.in.Add(n)
	if err != nil || hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return nil, abi.Deny(abi.Upstream, "a message of this name is there and it is not this one", "look into the mail folder")
	}
	return &connectors.Answer{Status: 200, Body: emptyBody(), Emit: a.emit}, nil
}
