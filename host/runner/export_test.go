package runner

import (
	"context"

	"github.com/getmonroe/monroe/host"
)

// Instead lets a test drive runs in its own way.
func (r *Runner) Instead(do func(context.Context, host.RunID)) {
	r.drive = func(ctx context.Context, id host.RunID, _ *drive) { do(ctx, id) }
}

// Idle waits until no run is driven.
func (r *Runner) Idle() { r.all.Wait() }
