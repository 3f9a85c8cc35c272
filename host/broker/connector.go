package broker

import (
	"context"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
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
	if err := d.record(); err != nil {
		return err
	}
	if since.Equal(now) {
		if err := s.Log.Add(journal.Wait, c.n, now, journal.Body{Why: missing.Reason}, c.held); err != nil {
			return err
		}
	}
	return b.park(ctx, s, host.WaitConnector, until, c.op.Name+" waits: "+missing.Reason+"; it goes on when the operator has brought it back")
}
