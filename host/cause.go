package host

import "context"

// Cause is the admitted call that a connection is made for.
type Cause struct {
	Run       RunID  `json:"run"`
	Call      uint32 `json:"call" doc:"number of the call within the run"`
	Operation string `json:"operation"`
}

type causeKey struct{}

// WithCause marks a context as that of one admitted call.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf returns the call that a context is of.
func CauseOf(ctx context.Context) (c Cause, ok bool) {
	c, ok = ctx.Value(causeKey{}).(Cause)
	return c, ok
}
