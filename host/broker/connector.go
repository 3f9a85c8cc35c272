package broker

import (
	"context"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

// connectorLife is how long a run waits for a connector to come back.
const connectorLife = 7 * 24 * time.Hour

// waitForConnector parks a call that is granted and lacks what the operator has to
// bring: a server, a folder or a credential. It is looked at again when the
// configuration is applied, when the daemon starts, and at the end of the wait, when
// the guest is refused. Nothing was attempted, so an approval stays unused.
func (b *Broker) waitForConnector(ctx context.Context, s *Session, c *call, past *pastEntry, missing *abi.Denial) error {
	now := b.Now()
	since := now
	if past != nil && !past.Waits.IsZero() {
		since = past.Waits
	}
	until := since.Add(connectorLife)
	if missing.Code != abi.ConnectorRevoked || !now.Before(until) {
		c.denial = missing
		return nil
	}
	d := decision{b: b, s: s, c: c, now: now}
	err := s.write(ctx, b.Store, func(tx *store.Tx) error {
		if err := d.record(); err != nil {
			return err
		}
		if since.Equal(now) {
			if err := s.Log.Add(journal.Wait, c.n, now, journal.Body{Why: missing.Reason}, c.held); err != nil {
				return err
			}
		}
		return tx.SetState(s.Run.ID, host.StateWaiting, host.WaitConnector, until, now, host.StateRunning)
	})
	if err != nil {
		return err
	}
	s.emit(host.Event{Kind: host.EventState, State: host.StateWaiting, Text: c.op.Name + " waits: " + missing.Reason + "; it goes on when the operator has brought it back"})
	return ErrSuspended
}
