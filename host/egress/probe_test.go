package egress_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
)

// A host that was paused between its attempt's record and the first byte sends
// nothing when the attempt's time is over: somebody else may be at it by now.
func TestNothingLeavesAfterTheAttemptsLastMoment(t *testing.T) {
	var asked atomic.Int64
	s, opening := server(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	mail := &post{}
	address, pool := postOffice(t, mail, false, false)
	box := t.TempDir()
	web := httpPlan("POST", s.URL+"/")
	local := letter("a@example.com")
	local.Frozen = connectors.Frozen{Maildir: &connectors.Maildir{Folder: "out", Unique: "1.k.monroe", From: "f@example.com", To: []string{"a@example.com"}, Data: []byte("x\r\n")}}
	for name, p := range map[string]connectors.Plan{"http": web, "smtp": letter("a@example.com"), "maildir": local} {
		for _, c := range []struct {
			name  string
			woke  time.Duration // what the clock says at the gate
			bound time.Duration // the attempt's last moment
			code  abi.Code
		}{
			{"in time", 0, time.Minute, ""},
			{"over before it began", 0, -time.Second, abi.Timeout},
			{"over at the gate", time.Hour, time.Minute, abi.Timeout},
		} {
			effect := abi.EffectSend
			if name == "http" {
				effect = abi.EffectWrite
			}
			e := open(t, egress.Config{
				Open: opening, SMTP: map[string]egress.SMTPServer{"main": {Address: address}}, RootCAs: pool, Maildirs: map[string]string{"out": box},
				Now: func() time.Time { return time.Now().Add(c.woke) },
			}, &scripted{op: operation(effect, anyURL...)})
			call := doIt
			call.NotAfter = time.Now().Add(c.bound)
			asked.Store(0)
			before := len(mail.arrived())
			_ = os.RemoveAll(filepath.Join(box, "new"))
			o := e.Perform(t.Context(), permitFor(t, p), call, p, nil)
			files, _ := os.ReadDir(filepath.Join(box, "new"))
			sent := int(asked.Load()) + len(mail.arrived()) - before + len(files)
			switch {
			case c.code == "" && (o.Denial != nil || sent != 1):
				t.Errorf("%s, %s: %+v, %d sent", name, c.name, o.Denial, sent)
			case c.code != "" && (o.Denial == nil || o.Denial.Code != c.code || o.Denial.Effect != abi.OutcomeNone || sent != 0):
				t.Errorf("%s, %s: %+v, %d sent", name, c.name, o.Denial, sent)
			}
		}
	}
}

// seeker is a connector that can look for its message.
type seeker struct {
	scripted
	look connectors.Plan
}

func (s *seeker) Probe(connectors.Call, connectors.Plan) (connectors.Plan, *abi.Denial) {
	return s.look, nil
}

func (s *seeker) Found(_ context.Context, _ connectors.Call, _, _ connectors.Plan, a *connectors.Answer) (*connectors.Result, *abi.Denial) {
	if a.Status != 200 {
		return nil, nil
	}
	return &connectors.Result{Reply: "there"}, nil
}

func TestAProbeFindsExactlyTheMessage(t *testing.T) {
	dir := t.TempDir()
	data := []byte("Subject: x\r\n\r\nbody\r\n")
	look := letter("a@example.com")
	look.Frozen = connectors.Frozen{Find: &connectors.MaildirFind{Folder: "out", Unique: "1.k.monroe", SHA256: fmt.Sprintf("%x", sha256.Sum256(data))}}
	s := &seeker{scripted: scripted{op: operation(abi.EffectSend)}, look: look}
	s.op.Replay = abi.ReplayProbe
	e := open(t, egress.Config{Maildirs: map[string]string{"out": filepath.Join(dir, "box")}, Connectors: []connectors.Connector{s}}, nil)
	probe := func(want string) {
		t.Helper()
		p, d := e.PlanProbe(doIt, letter("a@example.com"))
		if d != nil {
			t.Fatal(d)
		}
		got := "absent"
		switch found, o := e.Probe(t.Context(), permitFor(t, p), doIt, letter("a@example.com"), p); {
		case o.Denial != nil:
			got = "failed"
		case found != nil:
			got = "found"
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "box", filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "box", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	probe("absent")
	put("new/2.other.monroe", data)
	probe("absent")
	put("tmp/1.k.monroe", data) // not delivered
	probe("absent")
	put("cur/1.k.monroe:2,S", data)
	probe("found")
	put("new/1.k.monroe", []byte("another"))
	probe("failed")

	if _, o := e.Probe(t.Context(), permit{}, doIt, letter("a@example.com"), look); o.Denial == nil {
		t.Error("it looked without a permit")
	}
	s.look = letter("a@example.com") // a message is no look
	if _, d := e.PlanProbe(doIt, letter("a@example.com")); d == nil {
		t.Error("a send was planned as a look")
	}
	if _, d := open(t, egress.Config{}, &scripted{op: operation(abi.EffectSend)}).PlanProbe(doIt, look); d == nil {
		t.Error("a connector that cannot look was asked to")
	}
}
