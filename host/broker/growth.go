package broker

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/journal"
)

// heedless is how many calls a run may make after its journal is full before it is
// stopped. Each of them is refused, and each refusal is a record.
const heedless = 64

// growth are the run's bounds, with the defaults filled in.
func (s *Session) growth() journal.Growth { return s.Growth.Or(journal.DefaultGrowth()) }

// full refuses a new call of a run whose journal has no room, before anything of it is
// written. Only run.continue is let through: it is the way on. Whatever comes of the call,
// its bytes are not recorded.
func (s *Session) full(c *call) error {
	g, size := s.growth(), s.Log.Size()
	if !g.Full(size, len(c.raw)) {
		return nil
	}
	if size.Records >= g.MaxRecords+heedless || s.heedless >= heedless {
		return ErrOvergrown
	}
	s.heedless++
	c.overgrown = true
	if c.denial != nil || c.req.Op == abi.OpRunContinue {
		return nil
	}
	c.denial = abi.Deny(abi.TooLarge, fmt.Sprintf("the run's journal has %s in this segment, %d records and %d bytes are allowed", size, g.MaxRecords, g.MaxBytes),
		"call run.continue with the state that is needed from here on; a new segment begins with it and an empty journal")
	return nil
}

// grow returns how large the journal is after a transaction, and what to tell people
// if this one passed the line for a warning. It is told once in each segment.
func (s *Session) grow() (*journal.Size, string) {
	before, now, g := s.Log.Opened(), s.Log.Size(), s.growth()
	if s.durable != nil {
		before = *s.durable
	}
	if g.Warns(before) {
		return &now, ""
	}
	return &now, g.Notice(now)
}

// use is what host.describe tells of the journal.
func (s *Session) use() abi.JournalUse {
	g, size := s.growth(), s.Log.Size()
	u := abi.JournalUse{Segment: 1, Records: size.Records, Bytes: size.Bytes, MaxRecords: g.MaxRecords, MaxBytes: g.MaxBytes}
	if seg := s.Log.Segment(); seg != nil {
		u.Segment = seg.Number
	}
	return u
}

// doContinue ends the segment. The record that answers it is the beginning of the next
// one: the state under the label of all that the run held. The run stays the same run:
// its budget, its approvals, its key, its place in the tree.
func doContinue(_ context.Context, _ *Broker, s *Session, c *call) {
	var a abi.ContinueArgs
	if !args(c, &a) {
		return
	}
	if len(a.State) == 0 {
		invalid(c, "a state is needed")
		return
	}
	number := s.use().Segment + 1
	if most := s.growth().MaxSegments; number > most || !journal.RoomFor(c.n, s.Limits.Or(abi.DefaultLimits()).Calls) {
		c.denial = abi.Deny(abi.TooLarge, fmt.Sprintf("the run has %d segments, no more are allowed", number-1), "end the run and start another one with what is left to do")
		return
	}
	c.next = &journal.Body{State: a.State, Seed: make([]byte, 32), Segment: number}
	_, _ = rand.Read(c.next.Seed) // never fails (crypto/rand)
	c.result = struct{}{}
}
