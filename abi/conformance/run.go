package conformance

import (
	"context"
	"errors"
)

// Run starts a host and holds it to every vector. A host that ends or falls silent
// fails that vector and is started again for the next.
func Run(ctx context.Context, command []string, found func(Finding)) error {
	vectors := Vectors()
	var h *Host
	for i := range vectors {
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), closeHost(h))
		}
		if h == nil {
			var err error
			if h, err = Start(ctx, command...); err != nil {
				return err
			}
		}
		f := Check(h, &vectors[i])
		if f.lost {
			f.Err = errors.Join(f.Err, closeHost(h))
			h = nil
		}
		found(f)
	}
	return closeHost(h)
}

func closeHost(h *Host) error {
	if h == nil {
		return nil
	}
	return h.Close()
}
