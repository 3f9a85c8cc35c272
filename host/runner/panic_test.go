package runner_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/workspace"
)

// shaky is a connector that panics where its arguments say.
type shaky struct{}

func (shaky) Operations() []connectors.Operation {
	return []connectors.Operation{{
		Name: "shaky.read", Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Summary: "Read.",
		Args: json.RawMessage(`{"type":"object"}`), Renderer: connectors.RenderRaw,
	}}
}

func (shaky) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	if strings.Contains(string(c.Args), "plan") {
		panic("a secret of the connector")
	}
	return connectors.Plan{
		Resources: []string{"shaky:docs/plan.md"}, Destination: "docs", Audience: []string{"workspace"},
		Frozen: connectors.Frozen{FileRead: &connectors.FileRead{Folder: "docs", Path: "plan.md", Max: 100}},
	}, nil
}

func (shaky) Parse(_ context.Context, c connectors.Call, _ connectors.Plan, _ *connectors.Answer) (connectors.Result, *abi.Denial) {
	if strings.Contains(string(c.Args), "parse") {
		panic("a secret of the connector")
	}
	return connectors.Result{Reply: "read", Provenance: connectors.Provenance{Internal: true, Readers: []string{"workspace"}}}, nil
}

// outside is the real egress, as the daemon has it.
type outside struct {
	fakeWorld
	e *egress.Egress
}

func (o outside) Operations() []connectors.Operation { return o.e.Operations() }

func (o outside) Pinned(op string) abi.Digest { d, _ := o.e.Descriptor(op); return d }

func (o outside) Plan(ctx context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	_, p, d := o.e.Plan(ctx, c, nil)
	return p, d
}

func (o outside) Perform(ctx context.Context, permit grant.Permit, c connectors.Call, p connectors.Plan, emit func(string)) broker.Outcome {
	r := o.e.Perform(ctx, permit, c, p, emit)
	return broker.Outcome{Result: r.Result, Denial: r.Denial, BytesOut: r.BytesOut, BytesIn: r.BytesIn}
}

// TestAConnectorThatPanics takes neither the daemon nor the run with it, wherever it does:
// the guest is told, the call is recorded and witnessed like any other, and nothing of the
// panic's value is in either.
func TestAConnectorThatPanics(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "plan.md"), []byte("# Plan\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := egress.New(egress.Config{Connectors: []connectors.Connector{shaky{}}, Folders: map[string]string{"docs": folder}})
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeSpawner{scripts: []script{func(c net.Conn) {
		open(c)
		for i, where := range []string{"plan", "parse", "nowhere"} {
			call(c, uint32(i+1), fmt.Sprintf(`{"op":"tool.call","v":1,"args":{"operation":"shaky.read","args":{"panics":%q}}}`, where))
		}
		done(c)
	}}}
	b := benchWith(t, s, func(c *workspace.Config) {
		c.World = func(*config.Workspace) (broker.World, error) { return outside{e: e}, nil }
	})
	b.push(t, `{"abi":1,"name":"fixture","version":"2","description":"","ops":["tool.call"],"operations":[{"operation":"shaky.read","effect":"read","resource":"shaky:**"}]}`)
	if _, err := b.Apply(t.Context(), b.caller, api.ApplyInput{Config: "version: 1\nworkspace: team\ncap_usd: \"1\"\ngrants:\n  - {skill: fixture, operation: shaky.read, resource: \"shaky:**\"}\n"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds everything as it was
		v := b.result(t)
		if v.State != host.StateSucceeded || len(v.Log) != 3 {
			t.Fatalf("the run %s: %s\n%+v", v.State, v.Failure, v.Log)
		}
		for i, want := range []string{"INTERNAL", "INTERNAL", "ok"} {
			if v.Log[i].Outcome != want || v.Log[i].Receipt == "" {
				t.Errorf("call %d: %+v, want %s", i+1, v.Log[i], want)
			}
		}
		if !strings.Contains(v.Receipt, "shaky.read ×1; 2 refused") {
			t.Errorf("%s", v.Receipt)
		}
	}
	a, err := b.Audit(t.Context(), b.caller, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	internal := 0
	for _, l := range a.Leaves {
		if strings.Contains(string(l.Body), "secret") {
			t.Errorf("a leaf holds the panic's value: %s", l.Body)
		}
		if strings.Contains(string(l.Body), `"INTERNAL"`) {
			internal++
		}
	}
	if internal != 4 {
		t.Errorf("%d leaves tell of it, want 4", internal)
	}
}
