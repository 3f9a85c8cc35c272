package broker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
)

func TestAShortSleepKeepsTheWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.door.KeepWorker = 2 * time.Second
		began := time.Now()
		h.ok(1, request(abi.OpTimeSleep, `{"ms":2000}`))
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("it slept for %v", d)
		}
		h.waits(2, request(abi.OpTimeSleep, `{"ms":2001}`), host.WaitTimer)
		h.must(h.store.Close())
	})
}

func TestAShortSleepIsRecordedBeforeItBegins(t *testing.T) {
	h := newHouse(t)
	h.door.KeepWorker = time.Minute
	raw := request(abi.OpTimeSleep, `{"ms":60000}`)
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, err := h.door.Do(ctx, h.s, 1, raw); !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Fatal("it did not sleep")
	}
	h.now = h.now.Add(30 * time.Second)
	h.crash()
	h.waits(1, raw, host.WaitTimer) // this door keeps no worker
	h.now = h.now.Add(30 * time.Second)
	h.crash()
	h.ok(1, raw) // counted from the first asking
}

func TestACallWaitsForItsConnector(t *testing.T) {
	for _, c := range []struct {
		op        abi.Op
		operation string
	}{{abi.OpToolCall, "notes.read"}, {abi.OpSend, "mail.send"}} {
		h := newHouse(t)
		raw := use(c.op, c.operation, "bob", 0)
		h.world.revoked = map[string]bool{"bob": true}
		h.waits(1, raw, host.WaitConnector)
		h.crash()
		h.waits(1, raw, host.WaitConnector)
		h.performed(0)
		h.write(func(tx *store.Tx) error { return tx.MakeDue(host.WaitConnector, h.now) })
		h.read(func(tx *store.Tx) error {
			due, err := tx.Due(h.now, 10)
			if len(due) != 1 {
				t.Errorf("%d runs are due", len(due))
			}
			return err
		})
		h.world.revoked = nil
		h.resume()
		if c.op == abi.OpSend {
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.world.revoked = map[string]bool{"bob": true} // withdrawn between the yes and the send
			h.resume()
			h.waits(1, raw, host.WaitConnector)
			h.world.revoked = nil
			h.resume()
		}
		h.ok(1, raw)
		h.performed(1)
		h.books()
	}
}

func TestAConnectorIsNotWaitedForForever(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.world.revoked = map[string]bool{"bob": true}
	h.waits(1, raw, host.WaitConnector)
	h.now = h.now.Add(4 * 24 * time.Hour)
	h.crash()
	h.waits(1, raw, host.WaitConnector) // counted from the first time
	h.now = h.now.Add(3 * 24 * time.Hour)
	h.crash()
	if d := h.refused(1, raw, abi.ConnectorRevoked); d.Effect != abi.OutcomeNone {
		t.Errorf("%+v", d)
	}
	h.performed(0)
}

// What is not granted does not wait.
func TestAConnectorIsWaitedForOnlyByWhatIsGranted(t *testing.T) {
	h := newHouse(t)
	h.world.revoked = map[string]bool{"../a": true}
	h.refused(1, use(abi.OpToolCall, "notes.read", "../a", 0), abi.Scope)
}
