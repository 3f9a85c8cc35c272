package abi_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
)

// TestReplyGolden: the bytes that a guest sees (SPEC 5.1).
func TestReplyGolden(t *testing.T) {
	full := abi.Deny(abi.Rate, "too many calls", "wait a little")
	full.RetryAfterMS, full.Receipt = 1500, "rcp_1"
	for _, c := range []struct {
		reply abi.Reply
		want  string
	}{
		{abi.OK(struct{}{}), `{"ok":{}}`},
		{abi.OK(abi.TimeResult{UnixMS: 5}), `{"ok":{"unix_ms":5}}`},
		{abi.Reply{}, `{"ok":{}}`},
		{abi.Refuse(abi.Deny(abi.NotFound, "nothing there", "")), `{"error":{"code":"NOT_FOUND","reason":"nothing there","effect":"none"}}`},
		{abi.Refuse(full), `{"error":{"code":"RATE","reason":"too many calls","effect":"none","remedy":"wait a little","retry_after_ms":1500,"receipt":"rcp_1"}}`},
		{abi.OK(func() {}), `{"error":{"code":"INTERNAL","reason":"the host could not encode its answer","effect":"none"}}`},
		{abi.OK(math.NaN()), `{"error":{"code":"INTERNAL","reason":"the host could not encode its answer","effect":"none"}}`},
		{abi.Reply{OK: []byte("{")}, `{"error":{"code":"INTERNAL","reason":"the host could not encode its answer","effect":"none"}}`},
	} {
		got := c.reply.Encode()
		if string(got) != c.want {
			t.Errorf("got %s\nwant %s", got, c.want)
		}
		back, err := abi.DecodeReply(got)
		if err != nil || string(back.Encode()) != c.want {
			t.Errorf("%s reads as %+v, %v", got, back, err)
		}
	}
}

func TestDecodeReply(t *testing.T) {
	if r, err := abi.DecodeReply([]byte(`{"ok":{"a":1},"later":true}`)); err != nil || string(r.OK) != `{"a":1}` {
		t.Errorf("an unknown field: %+v, %v", r, err)
	}
	if r, err := abi.DecodeReply([]byte(`{"error":{"code":"LATER","reason":"x","effect":"none","new":1}}`)); err != nil || r.Error.Code != "LATER" {
		t.Errorf("a code of a later host: %+v, %v", r, err)
	}
	for _, in := range []string{``, `{}`, `null`, `[]`, `{"ok":{},"error":{"code":"X"}}`, `{"error":null}`, `{"ok":`} {
		if r, err := abi.DecodeReply([]byte(in)); err == nil {
			t.Errorf("%q reads as %+v", in, r)
		}
	}
}

// TestCodes: the set is closed, and its order and spelling are fixed (SPEC 5.2).
func TestCodes(t *testing.T) {
	const want = "DENIED SCOPE BUDGET APPROVAL_REJECTED APPROVAL_EXPIRED LABEL SCAN NOT_FOUND INVALID UNSUPPORTED TOO_LARGE RATE " +
		"UPSTREAM OUTCOME_UNKNOWN TIMEOUT CONNECTOR_REVOKED INTERNAL"
	if got := strings.Trim(fmt.Sprint(abi.Codes()), "[]"); got != want {
		t.Errorf("codes %s", got)
	}
}

func TestDenialIsAnError(t *testing.T) {
	err := fmt.Errorf("files.read: %w", abi.Deny(abi.Scope, "no grant covers it", "ask Ann"))
	var d *abi.Denial
	if !errors.As(err, &d) || d.Code != abi.Scope {
		t.Fatalf("%v holds no denial", err)
	}
	if got := d.Error(); got != "SCOPE: no grant covers it (ask Ann)" {
		t.Errorf("it reads %q", got)
	}
}

func TestEffects(t *testing.T) {
	silent := []abi.Effect{abi.EffectNone, abi.EffectRead, abi.EffectRespond, abi.EffectState, abi.EffectMetered}
	for _, e := range abi.Effects() {
		if !e.Valid() || e.Asks() == slices.Contains(silent, e) {
			t.Errorf("%s: valid %v, asks %v", e, e.Valid(), e.Asks())
		}
	}
	for _, e := range []abi.Effect{"", "READ", "read ", "execute"} {
		if e.Valid() || !e.Asks() {
			t.Errorf("%q is not on the list, yet valid or free", e)
		}
	}
}

func TestMoney(t *testing.T) {
	for m, want := range map[abi.MicroUSD]string{
		0: "$0.00", 1: "$0.000001", 10: "$0.00001", 100: "$0.0001", 1_500_000: "$1.50", 1_234_567: "$1.234567", -250_000: "-$0.25",
		abi.USD: "$1.00", math.MaxInt64: "$9223372036854.775807", math.MinInt64: "-$9223372036854.775808",
	} {
		if got := m.String(); got != want {
			t.Errorf("%d is %s, want %s", int64(m), got, want)
		}
	}
	for _, c := range []struct {
		price abi.PicoUSD
		n     int64
		want  abi.MicroUSD
	}{
		{0, 5, 0},
		{5, 0, 0},
		{-1, 5, 0},
		{5, -1, 0},
		{1, 1, 1},
		{999_999, 1, 1},
		{1_000_000, 1, 1},
		{1_000_001, 1, 2},
		{3_000_000, 1000, 3000},
		{150_000, 7, 2},
		{math.MaxInt64, 2, math.MaxInt64 / 1_000_000},
		{2, math.MaxInt64, math.MaxInt64 / 1_000_000},
	} {
		if got := c.price.Times(c.n); got != c.want {
			t.Errorf("%d × %d is %d, want %d", c.price, c.n, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	def := abi.DefaultLimits()
	if got := (abi.Limits{}).Or(def); got != def {
		t.Errorf("zero or default is %+v", got)
	}
	low := abi.Limits{MemoryPages: 1, Calls: 2, Wall: 3, CPU: 4}
	if low.Or(def) != low || low.Min(def) != low || def.Min(low) != low {
		t.Error("a lower limit does not win")
	}
}
