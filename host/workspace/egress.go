package workspace

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/flow"
	"github.com/getmonroe/monroe/host/store"
)

// Egress implements api.Backend.
func (w *Workspace) Egress(context.Context, host.Caller) (api.EgressView, error) {
	if w.Config.Egress == nil {
		return api.EgressView{Mode: "off", Flows: []api.EgressFlow{}, Violations: []api.EgressViolation{}}, nil
	}
	return w.Config.Egress()
}

// Alarm records a flow or an attempt that belongs to no call, and ends the runs whose
// calls were connecting meanwhile, if the operator asked for that.
func (w *Workspace) Alarm(ctx context.Context, a flow.Alarm) {
	text := fmt.Sprintf("egress without a call: %s %s %s", a.By, a.Hook, a.Proto)
	if a.To.IsValid() {
		text += " " + a.To.String()
	}
	verdict := "denied"
	if !a.Denied {
		verdict = "passed"
	}
	w.Log.Warn("egress without a call", slog.String("by", a.By), slog.String("hook", a.Hook), slog.String("to", a.To.String()), slog.String("verdict", verdict), slog.Int("pid", a.PID), slog.Int64("count", a.Count))
	leaves := []audit.Leaf{{TimeMS: w.Now().UnixMilli(), Kind: audit.KindAlarm, Verdict: verdict, BytesOut: a.Bytes, Detail: fmt.Sprintf("%s, %d times", text, a.Count)}}
	var runs []host.RunID
	if w.Operator.Egress.KillRuns {
		for _, s := range a.Suspects {
			if !slices.Contains(runs, s.Run) {
				runs = append(runs, s.Run)
				leaves = append(leaves, audit.Leaf{TimeMS: w.Now().UnixMilli(), Kind: audit.KindAlarm, Run: s.Run, Call: s.Call, Operation: s.Operation, Detail: "the run is ended: " + text})
			}
		}
	}
	w.witness(ctx, leaves...)
	for _, id := range runs {
		if err := w.runner.Halt(id, "ended because of egress that belongs to no call: "+text); err != nil {
			w.Log.Error("a run could not be ended", slog.String("run", string(id)), slog.String("error", err.Error()))
		}
	}
}

// PluginAlarm records what a plugin claimed or did and may not. program is the pinned
// SHA-256 of its program.
func (w *Workspace) PluginAlarm(ctx context.Context, plugin, program, what string) {
	w.witness(ctx, audit.Leaf{TimeMS: w.Now().UnixMilli(), Kind: audit.KindAlarm, Module: program, Detail: "the plugin " + plugin + ": " + what})
}

// witness records alarms, also those of a context that has ended.
func (w *Workspace) witness(ctx context.Context, alarms ...audit.Leaf) {
	err := w.store.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		for _, l := range alarms {
			if _, err := audit.Append(tx, l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.Log.Error("the alarm could not be recorded", slog.String("error", err.Error()))
	}
}
