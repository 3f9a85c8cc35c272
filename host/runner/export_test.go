package runner

import (
	"context"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

// Instead lets a test drive runs in its own way.
func (r *Runner) Instead(do func(context.Context, host.RunID)) {
	r.drive = func(ctx context.Context, id host.RunID, _ *drive) { do(ctx, id) }
}

// Settled waits until no spare is being started or ended.
func (w *Warm) Settled() { w.all.Wait() }

// Idle waits until no run is driven.
func (r *Runner) Idle() { r.all.Wait() }

// Receipt is what a cancelled run of these entries leaves.
func Receipt(entries []*journal.Entry) string {
	c := counts{done: map[string]int{}}
	c.add(broker.Views(entries, true))
	return receiptText(&store.Run{Run: host.Run{Skill: "s", OnBehalfOf: host.Principal{Name: "Ann"}}}, ending{state: host.StateCancelled}, c, "rcpt_1")
}
