package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/plugin"
)

func pinned() []plugin.Operation {
	return []plugin.Operation{{Operation: connectors.Operation{
		Name: "x.read", Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Summary: "Reads.", Args: []byte("{}"),
		Allow: []connectors.Request{{Method: "GET", URL: "https://x.example/**"}},
	}}}
}

// TestPauses: a plugin that does not start is tried again after a second, then after
// twice as long each time, up to a minute, and not in between.
func TestPauses(t *testing.T) {
	now, starts := time.Unix(0, 0), 0
	why := errors.New("no program")
	c, err := plugin.NewConnector(plugin.Config{
		Name: "x", Dir: t.TempDir(), Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		Start: func(context.Context, string, []string) (plugin.Process, error) {
			starts++
			return nil, why
		},
	}, pinned())
	if err != nil {
		t.Fatal(err)
	}
	for i, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if starts != i+1 {
			t.Fatalf("%d starts after %d pauses", starts, i)
		}
		now = now.Add(pause*time.Second - time.Nanosecond)
		_, d := c.Plan(connectors.Call{Operation: "x.read"})
		if d == nil || d.Code != abi.Upstream || starts != i+1 {
			t.Fatalf("before the pause of %ds is over: %+v, %d starts", pause, d, starts)
		}
		now = now.Add(time.Nanosecond)
		_, _ = c.Plan(connectors.Call{Operation: "x.read"})
	}
	why = fmt.Errorf("%w: another digest", plugin.ErrPinned)
	now = now.Add(time.Minute)
	if _, d := c.Plan(connectors.Call{Operation: "x.read"}); d == nil || d.Code != abi.ConnectorRevoked {
		t.Errorf("%+v", d)
	}
}

// TestPinsThatMakeNoSense are errors of the configuration.
func TestPinsThatMakeNoSense(t *testing.T) {
	for name, spoil := range map[string]func(*plugin.Operation){
		"the name is another connector's": func(o *plugin.Operation) { o.Name = "mail.send" },
		"no request":                      func(o *plugin.Operation) { o.Allow = nil },
		"any host":                        func(o *plugin.Operation) { o.Allow[0].URL = "https://**" },
		"a credential's header":           func(o *plugin.Operation) { o.Headers = []string{"authorization"} },
		"a key by another name":           func(o *plugin.Operation) { o.Headers = []string{"X-Api-Key"} },
		"the slot's header": func(o *plugin.Operation) {
			o.Headers, o.Credential = []string{"X-Desk"}, &connectors.Slot{Connection: "x.read", Header: "x-desk"}
		},
		"a class that it cannot keep": func(o *plugin.Operation) { o.Replay = abi.ReplayProbe },
		"a negative price":            func(o *plugin.Operation) { o.Price = -1 },
		"a resource with a wildcard":  func(o *plugin.Operation) { o.Resource = "x:**" },
	} {
		p := pinned()
		spoil(&p[0])
		if _, err := plugin.NewConnector(plugin.Config{Name: "x", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, p); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for _, f := range [][]plugin.Finding{nil, {{ID: "A", Reason: "a"}}, {{ID: "a"}}, {{ID: "a", Reason: "a"}, {ID: "a", Reason: "b"}}} {
		if _, err := plugin.NewScanner(plugin.Config{Name: "x", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, f); err == nil {
			t.Errorf("%+v was accepted", f)
		}
	}
}
