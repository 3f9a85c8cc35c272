package broker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// ownOp is an op that the host answers itself. It goes through the same stages as
// any other: planned, decided, recorded, witnessed.
type ownOp struct {
	effect abi.Effect
	// do fills c.result or c.denial, and c.writes for what it changes.
	do func(context.Context, *Broker, *Session, *call) error
}

// own finds an op that the host answers itself.
func own(op abi.Op) (ownOp, bool) {
	switch op {
	case abi.OpDescribe:
		return ownOp{abi.EffectNone, always(doDescribe)}, true
	case abi.OpProgress:
		return ownOp{abi.EffectNone, always(doProgress)}, true
	case abi.OpLog:
		return ownOp{abi.EffectNone, always(doLog)}, true
	case abi.OpTimeNow:
		return ownOp{abi.EffectNone, always(doTime)}, true
	case abi.OpTimeSleep:
		return ownOp{abi.EffectNone, always(doSleep)}, true
	case abi.OpRandom:
		return ownOp{abi.EffectNone, always(doRandom)}, true
	case abi.OpToolList:
		return ownOp{abi.EffectNone, always(doToolList)}, true
	case abi.OpKVGet:
		return ownOp{abi.EffectState, always(doKVGet)}, true
	case abi.OpKVPut:
		return ownOp{abi.EffectState, always(doKVPut)}, true
	case abi.OpKVDelete:
		return ownOp{abi.EffectState, always(doKVDelete)}, true
	case abi.OpKVList:
		return ownOp{abi.EffectState, always(doKVList)}, true
	case abi.OpBatch:
		return ownOp{abi.EffectNone, doBatch}, true
	case abi.OpSkillCall:
		return ownOp{abi.EffectNone, doSkill}, true
	case abi.OpRunContinue:
		return ownOp{abi.EffectNone, always(doContinue)}, true
	}
	return ownOp{}, false
}

// always is for an op that cannot stop the run.
func always(do func(context.Context, *Broker, *Session, *call)) func(context.Context, *Broker, *Session, *call) error {
	return func(ctx context.Context, b *Broker, s *Session, c *call) error {
		do(ctx, b, s, c)
		return nil
	}
}

// Limits of the ops of this file.
const (
	maxSleep    = 366 * 24 * time.Hour
	maxRandom   = 1024
	maxText     = 4 << 10  // of a progress or log line
	maxKVMemory = 16 << 20 // of one skill
)

func (b *Broker) planOwn(c *call, own ownOp, past *pastEntry) {
	c.own = own
	c.value = own.effect == abi.EffectNone && c.req.Op != abi.OpRunContinue || c.req.Op == abi.OpKVGet || c.req.Op == abi.OpKVList
	c.action = grant.Action{Op: c.req.Op, Effect: own.effect, Audience: label.Only("workspace")}
	if past != nil { // a timer and a called skill stop between asking and its answer
		c.started, c.recorded = past.Started, true
	}
}

// decideOwn lets everything pass but a timer and a called skill, which wait here.
func (b *Broker) decideOwn(ctx context.Context, s *Session, c *call, past *pastEntry) error {
	switch c.req.Op {
	case abi.OpTimeSleep:
		return b.rest(ctx, s, c)
	case abi.OpSkillCall:
		return b.callSkill(ctx, s, c, past)
	}
	return nil
}

// rest waits for a timer.
func (b *Broker) rest(ctx context.Context, s *Session, c *call) error {
	var a abi.SleepArgs
	if c.denial = abi.DecodeArgs(c.req.Args, &a); c.denial != nil {
		return nil
	}
	if a.MS < 0 || time.Duration(a.MS) > maxSleep/time.Millisecond {
		c.denial = abi.Deny(abi.Invalid, fmt.Sprintf("ms is %d, 0 to %d are allowed", a.MS, maxSleep/time.Millisecond), "")
		return nil
	}
	c.value = false
	wake, now := c.started.Add(time.Duration(a.MS)*time.Millisecond), b.Now()
	if !now.Before(wake) {
		return nil
	}
	if !c.recorded {
		body := journal.Body{Op: c.req.Op, Fingerprint: c.fp, Request: c.raw, Effect: abi.EffectNone, Wake: wake.UnixNano()}
		if err := s.Log.Add(journal.Call, c.n, c.started, body, c.held); err != nil {
			return err
		}
		c.recorded = true
	}
	if wake.Sub(now) > b.KeepWorker {
		return b.waitUntil(ctx, s, wake, "sleeps until ")
	}
	// A new worker and a replay cost more than a short sleep. It is recorded all the
	// same: after a crash the rest of it is slept.
	if err := s.Flush(ctx, b.Store); err != nil {
		return err
	}
	return sleep(ctx, wake.Sub(now))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// args decodes the arguments, or leaves the denial.
func args(c *call, v any) bool {
	c.denial = abi.DecodeArgs(c.req.Args, v)
	return c.denial == nil
}

func invalid(c *call, format string, a ...any) {
	c.denial = abi.Deny(abi.Invalid, fmt.Sprintf(format, a...), "")
}

func doDescribe(_ context.Context, b *Broker, s *Session, c *call) {
	if !args(c, &struct{}{}) {
		return
	}
	r := abi.DescribeResult{ABI: abi.Version, Workspace: string(s.Run.Workspace), Run: string(s.Run.ID), Owner: b.Rules().Owner, Limits: s.Limits, Grants: []abi.OperationUse{}, Journal: s.use()}
	for _, op := range abi.Ops() {
		if _, ok := own(op); ok {
			r.Ops = append(r.Ops, op)
		}
	}
	r.Ops = append(r.Ops, abi.OpToolCall, abi.OpSend)
	for _, op := range b.ops {
		if op.Op != "" {
			r.Ops = append(r.Ops, op.Op)
		}
	}
	slices.Sort(r.Ops)
	for _, g := range b.granted(s) {
		r.Grants = append(r.Grants, abi.OperationUse{Operation: g.Operation, Effect: b.ops[g.Operation].Effect, Resource: g.Resource})
	}
	c.result = r
}

// granted lists the grants that are in force for the run: those that the workspace
// gave this module for operations that its manifest asks for.
func (b *Broker) granted(s *Session) (list []grant.Grant) {
	policy := b.Rules().Policy
	var seen []string
	for _, u := range s.Subject.Manifest.Operations {
		if _, ok := b.ops[u.Operation]; ok && !slices.Contains(seen, u.Operation) {
			seen = append(seen, u.Operation)
			list = append(list, policy.Grants(s.Run.Module, u.Operation)...)
		}
	}
	return slices.DeleteFunc(list, func(g grant.Grant) bool { return g.Gate == grant.GateDeny })
}

func doToolList(_ context.Context, b *Broker, s *Session, c *call) {
	if !args(c, &struct{}{}) {
		return
	}
	r := abi.ToolListResult{Tools: []abi.Tool{}}
	for _, g := range b.granted(s) {
		op := b.ops[g.Operation]
		if n := len(r.Tools); n > 0 && r.Tools[n-1].Operation == g.Operation {
			r.Tools[n-1].Scopes = append(r.Tools[n-1].Scopes, g.Resource)
			continue
		}
		if op.Effect == abi.EffectMetered { // the model itself is not a tool of the model
			continue
		}
		r.Tools = append(r.Tools, abi.Tool{Operation: op.Name, Description: op.Summary, Effect: op.Effect, Scopes: []abi.Pattern{g.Resource}, Parameters: op.Args})
	}
	c.result = r
}

func doProgress(_ context.Context, _ *Broker, s *Session, c *call) {
	var a abi.ProgressArgs
	if !args(c, &a) {
		return
	}
	if len(a.Text) > maxText || a.Percent < 0 || a.Percent > 100 {
		invalid(c, "text has at most %d bytes and percent is 0 to 100", maxText)
		return
	}
	s.emit(host.Event{Kind: host.EventProgress, Text: a.Text, Percent: a.Percent, Guest: true})
	c.result = struct{}{}
}

func doLog(_ context.Context, _ *Broker, s *Session, c *call) {
	var a abi.LogArgs
	if !args(c, &a) {
		return
	}
	if len(a.Text) > maxText || !slices.Contains([]string{"debug", "info", "warn", "error"}, a.Level) {
		invalid(c, "text has at most %d bytes and level is debug, info, warn or error", maxText)
		return
	}
	s.emit(host.Event{Kind: host.EventLog, Text: a.Level + ": " + a.Text, Guest: true})
	c.result = struct{}{}
}

// doSleep answers when decideOwn has waited long enough.
func doSleep(_ context.Context, _ *Broker, _ *Session, c *call) { c.result = struct{}{} }

func doTime(_ context.Context, b *Broker, _ *Session, c *call) {
	if args(c, &struct{}{}) {
		c.result = abi.TimeResult{UnixMS: b.Now().UnixMilli()}
	}
}

func doRandom(_ context.Context, _ *Broker, _ *Session, c *call) {
	var a abi.RandomArgs
	if !args(c, &a) {
		return
	}
	if a.N < 1 || a.N > maxRandom {
		invalid(c, "n is %d, 1 to %d are allowed", a.N, maxRandom)
		return
	}
	r := abi.RandomResult{Base64: make([]byte, a.N)}
	_, _ = rand.Read(r.Base64) // never fails (crypto/rand)
	c.result = r
}

// doBatch answers several requests in order. Each goes through the door like any
// other call; the batch itself may only hold them together.
func doBatch(ctx context.Context, b *Broker, s *Session, c *call) error {
	var a struct {
		Requests []json.RawMessage `json:"requests"`
	}
	if !args(c, &a) {
		return nil
	}
	if len(a.Requests) < 1 || len(a.Requests) > abi.MaxBatch {
		invalid(c, "a batch has 1 to %d requests, not %d", abi.MaxBatch, len(a.Requests))
		return nil
	}
	for _, raw := range a.Requests {
		if r, denial := abi.DecodeRequest(raw); denial == nil && (r.Op == abi.OpBatch || r.Op == abi.OpRunContinue) {
			invalid(c, "a batch holds no batch and no run.continue")
			return nil
		}
	}
	replies := make([]json.RawMessage, 0, len(a.Requests))
	for i, raw := range a.Requests {
		r, err := b.Do(ctx, s, journal.Part(c.n, i), raw)
		if err != nil {
			return err
		}
		replies = append(replies, r.Bytes)
	}
	c.label = label.Join(c.label, s.Held)
	c.result = map[string]any{"replies": replies}
	return nil
}

// A skill's memory. Its namespace is the skill's name, so that a new version finds
// what the old one left; every value keeps the label it was stored with.

func kvSlot(ns, column string, keyMAC []byte) vault.Slot {
	return vault.Slot{Table: "kv", Column: column, Row: fmt.Sprintf("%s/%x", ns, keyMAC), Version: 1}
}

func kvKey(c *call, a *abi.KVArgs) bool {
	if !args(c, a) {
		return false
	}
	if a.Key == "" || len(a.Key) > abi.MaxKVKey || a.Prefix != "" {
		invalid(c, "key has 1 to %d bytes, and prefix is for kv.list", abi.MaxKVKey)
		return false
	}
	return true
}

// fail leaves an INTERNAL denial. The cause stays in the host.
func fail(c *call, _ error) {
	c.denial = abi.Deny(abi.Internal, "the skill's memory could not be read", "")
}

func doKVGet(ctx context.Context, b *Broker, s *Session, c *call) {
	var a abi.KVArgs
	if !kvKey(c, &a) {
		return
	}
	ns := s.Run.Skill
	mac, err := b.Keys.MAC("kv/"+ns, []byte(a.Key))
	if err != nil {
		fail(c, err)
		return
	}
	var r abi.KVResult
	err = b.Store.Read(ctx, func(tx *store.Tx) error {
		v, err := tx.KV(ns, mac)
		if errors.Is(err, host.ErrNotFound) { // that it is absent tells something, too
			return b.joinNamespace(tx, ns, c)
		}
		if err != nil {
			return err
		}
		r.Found = true
		if r.Value, err = b.Keys.Open(kvSlot(ns, "value", mac), v.Value); err != nil {
			return err
		}
		return b.joinLabel(kvSlot(ns, "label", mac), v.Label, c)
	})
	if err != nil {
		fail(c, err)
		return
	}
	c.result = r
}

func (b *Broker) joinLabel(slot vault.Slot, sealed []byte, c *call) error {
	plain, err := b.Keys.Open(slot, sealed)
	if err != nil {
		return err
	}
	var l label.Set
	if err := json.Unmarshal(plain, &l); err != nil {
		return err
	}
	c.label = label.Join(c.label, l)
	return nil
}

// namespaceSlot is where the label of everything that was ever in a memory lives.
func namespaceSlot(ns string) vault.Slot {
	return vault.Slot{Table: "kv_namespace", Column: "label", Row: ns, Version: 1}
}

func (b *Broker) joinNamespace(tx *store.Tx, ns string, c *call) error {
	sealed, _, err := tx.KVNamespace(ns)
	if err != nil || sealed == nil {
		return err
	}
	return b.joinLabel(namespaceSlot(ns), sealed, c)
}

func doKVPut(_ context.Context, b *Broker, s *Session, c *call) {
	var a abi.KVArgs
	if !kvKey(c, &a) {
		return
	}
	if len(a.Value) == 0 {
		invalid(c, "a value is needed")
		return
	}
	if len(a.Value) > abi.MaxKVValue {
		c.denial = abi.Deny(abi.TooLarge, fmt.Sprintf("the value has %d bytes, at most %d are allowed", len(a.Value), abi.MaxKVValue), "keep less")
		return
	}
	ns, held := s.Run.Skill, c.held
	c.result = struct{}{}
	c.writes = func(tx *store.Tx) error {
		mac, err := b.Keys.MAC("kv/"+ns, []byte(a.Key))
		if err != nil {
			return err
		}
		_, size, err := tx.KVNamespace(ns)
		if err != nil {
			return err
		}
		if size+int64(len(a.Value)) > maxKVMemory {
			c.denial = abi.Deny(abi.TooLarge, fmt.Sprintf("the skill's memory would pass %d bytes", maxKVMemory), "delete what is not needed")
			return nil
		}
		lab, err := json.Marshal(held)
		if err != nil {
			return err
		}
		v := store.KV{KeyMAC: mac}
		var e1, e2, e3 error
		v.Key, e1 = b.Keys.Seal(kvSlot(ns, "key", mac), []byte(a.Key))
		v.Value, e2 = b.Keys.Seal(kvSlot(ns, "value", mac), a.Value)
		v.Label, e3 = b.Keys.Seal(kvSlot(ns, "label", mac), lab)
		return errors.Join(e1, e2, e3, tx.PutKV(ns, v), b.raiseNamespace(tx, ns, held))
	}
}

// raiseNamespace joins what a change carries into the namespace's label.
func (b *Broker) raiseNamespace(tx *store.Tx, ns string, held label.Set) error {
	probe := &call{label: held}
	if err := b.joinNamespace(tx, ns, probe); err != nil {
		return err
	}
	lab, err := json.Marshal(probe.label)
	if err != nil {
		return err
	}
	sealed, err := b.Keys.Seal(namespaceSlot(ns), lab)
	if err != nil {
		return err
	}
	return tx.PutKVNamespace(ns, sealed)
}

func doKVDelete(_ context.Context, b *Broker, s *Session, c *call) {
	var a abi.KVArgs
	if !kvKey(c, &a) {
		return
	}
	ns, held := s.Run.Skill, c.held
	c.result = struct{}{}
	c.writes = func(tx *store.Tx) error {
		mac, err := b.Keys.MAC("kv/"+ns, []byte(a.Key))
		if err != nil {
			return err
		}
		switch _, err := tx.KV(ns, mac); {
		case err == nil:
			c.result = abi.KVResult{Found: true}
		case !errors.Is(err, host.ErrNotFound):
			return err
		}
		// Whether it was there tells something, too.
		return errors.Join(b.joinNamespace(tx, ns, c), tx.DeleteKV(ns, mac), b.raiseNamespace(tx, ns, held))
	}
}

func doKVList(ctx context.Context, b *Broker, s *Session, c *call) {
	var a abi.KVArgs
	if !args(c, &a) {
		return
	}
	if a.Key != "" || len(a.Prefix) > abi.MaxKVKey {
		invalid(c, "prefix has at most %d bytes, and key is for the other kv ops", abi.MaxKVKey)
		return
	}
	ns, r := s.Run.Skill, abi.KVResult{Keys: []string{}}
	err := b.Store.Read(ctx, func(tx *store.Tx) error {
		list, err := tx.KVList(ns)
		if err != nil {
			return err
		}
		for _, v := range list {
			key, err := b.Keys.Open(kvSlot(ns, "key", v.KeyMAC), v.Key)
			if err != nil {
				return err
			}
			if strings.HasPrefix(string(key), a.Prefix) {
				r.Keys = append(r.Keys, string(key))
			}
		}
		return b.joinNamespace(tx, ns, c)
	})
	if err != nil {
		fail(c, err)
		return
	}
	slices.Sort(r.Keys)
	r.Keys = r.Keys[:min(len(r.Keys), abi.MaxKVKeys)]
	c.result = r
}
