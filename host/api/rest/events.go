package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// heartbeat is how often a silent stream says that it lives.
const heartbeat = 15 * time.Second

// Beat is a heartbeat; it carries nothing.
type Beat struct {
	Time time.Time `json:"time"`
}

// Failure ends a stream that cannot go on.
type Failure struct {
	Problem
}

// events registers the stream of a run's events. It ends after the run's last.
func events(a huma.API, b api.Backend, fail func(error)) {
	type input struct {
		ID    host.RunID `path:"id" maxLength:"64"`
		After int64      `query:"after" minimum:"0" doc:"only events with a higher number"`
		Last  int64      `header:"Last-Event-ID" doc:"the same, as a browser sends it"`
	}
	op := huma.Operation{
		OperationID: "watch-run", Method: http.MethodGet, Path: "/v1/runs/{id}/events", Summary: "What happens in a run, as server-sent events",
		Description: "Needs a token with the scope read.", Extensions: map[string]any{"x-token-scope": "read"},
		Middlewares: huma.Middlewares{scoped(host.ScopeRead, fail)},
	}
	kinds := map[string]any{"event": host.Event{}, "beat": Beat{}, "problem": Failure{}}
	sse.Register(a, op, kinds, func(ctx context.Context, in *input, send sse.Sender) {
		c := caller(ctx)
		after := max(in.After, in.Last)
		for {
			list, more, done, err := b.Events(ctx, c, in.ID, after)
			if err != nil {
				_ = send.Data(Failure{*problemOf(err, fail)})
				return
			}
			for _, e := range list {
				if send(sse.Message{ID: int(e.Seq), Data: e}) != nil {
					return
				}
				after = e.Seq
			}
			if done {
				return
			}
			beat := time.NewTimer(heartbeat)
			select {
			case <-more:
			case <-beat.C:
				if send.Data(Beat{time.Now().UTC()}) != nil {
					return
				}
			case <-ctx.Done():
				beat.Stop()
				return
			}
			beat.Stop()
		}
	})
}
