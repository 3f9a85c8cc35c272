package runner

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Start is what is sealed of a run's beginning: what the guest's world is made of.
type Start struct {
	Limits abi.Limits      `json:"limits"`
	Seed   []byte          `json:"seed"`
	TimeNS int64           `json:"time_ns"`
	Input  json.RawMessage `json:"input"`
	// Tree is how many host calls the whole tree of the run may make; 0 means
	// Limits.Calls.
	Tree   uint32         `json:"tree,omitempty"`
	Growth journal.Growth `json:"growth"`
}

// StartSlot is where a run's Start is sealed.
func StartSlot(id host.RunID) vault.Slot {
	return vault.Slot{Table: "run", Column: "start", Row: string(id), Version: 1}
}

// LabelSlot is where the label of a run's input is sealed.
func LabelSlot(id host.RunID) vault.Slot {
	return vault.Slot{Table: "run", Column: "label", Row: string(id), Version: 1}
}

// ResultSlot is where a run's result is sealed; its label lies beside it.
func ResultSlot(id host.RunID) vault.Slot {
	return vault.Slot{Table: "run", Column: "result", Row: string(id), Version: 1}
}

// ResultLabelSlot is where the label of a run's result is sealed.
func ResultLabelSlot(id host.RunID) vault.Slot {
	return vault.Slot{Table: "run", Column: "result_label", Row: string(id), Version: 1}
}

// fault is a guest that could not end well: the run fails, the host is fine.
type fault struct{ wire.Fault }

func (f *fault) Error() string {
	return fmt.Sprintf("%s: %s", f.Code, visible(f.Message))
}

// visible bounds text that may be a guest's and keeps it on one line.
func visible(s string) string {
	if len(s) > 1024 {
		s = s[:1024] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
}

// prepared is a run that is ready for a worker.
type prepared struct {
	row     store.Run
	start   Start
	session *broker.Session
	past    []*journal.Answer
	chain   []grant.Subject // the runs above it, nearest first
	base    uint32          // calls before this segment; the worker counts from the one after
}

// run drives one run from its record to its next stop.
func (r *Runner) run(ctx context.Context, id host.RunID, d *drive) error {
	diverged, lost, past := 0, 0, 0
	for {
		p, err := r.prepare(ctx, id)
		if newer := new(journal.NewerError); errors.As(err, &newer) {
			pins := host.Pins{Engine: p.row.Engine, ABI: p.row.ABI, Record: newer.Version}
			return r.hold(p, &pinned{pins.Unmet(p.row.Engine, p.row.ABI)})
		}
		if err != nil || p == nil {
			return err
		}
		if n := len(p.past); n > past {
			lost, past = 0, n
		}
		err = r.work(ctx, p, d)
		if errors.Is(err, broker.ErrFreed) { // the answer is recorded; a worker is needed again
			if err := r.seat(ctx, d); err != nil {
				return err
			}
			diverged = 0
			continue
		}
		// A process can be killed by somebody else, or by the kernel for want of memory.
		// What it did is in the journal, so another one goes on.
		if (errors.Is(err, errGone) || errors.Is(err, errStart)) && !errors.Is(err, ErrLimit) && lost < maxLost && ctx.Err() == nil {
			lost++
			r.Log.Warn("a worker is gone, another one goes on", slog.String("run", string(id)), slog.String("error", visible(err.Error())))
			continue
		}
		if unmet := new(pinned); errors.As(err, &unmet) {
			return r.hold(p, unmet)
		}
		if f := new(fault); errors.As(err, &f) {
			return r.finish(id, p.session, ending{state: host.StateFailed, failure: f.Error()})
		}
		if c := new(broker.CancelledError); errors.As(err, &c) {
			return r.finish(p.row.ID, p.session, ending{state: host.StateCancelled, failure: c.Why})
		}
		if errors.Is(err, broker.ErrContinued) { // durable: a fresh instance begins with the state
			diverged, lost, past = 0, 0, 0
			continue
		}
		if !errors.Is(err, journal.ErrDiverged) {
			return err
		}
		// One divergence is no proof: a worker may have been broken. A second, from a
		// fresh replay, is.
		if diverged++; diverged > 1 {
			return r.finish(id, p.session, ending{state: host.StateDiverged, failure: err.Error()})
		}
	}
}

// prepare loads a run and moves it to running. It returns nil if there is nothing
// to do, and with an error of the journal the run without it.
func (r *Runner) prepare(ctx context.Context, id host.RunID) (*prepared, error) {
	p := &prepared{}
	var mod store.Module
	var kin store.Kin
	now := r.Now()
	err := r.Store.Write(ctx, func(tx *store.Tx) (err error) {
		if p.row, err = tx.Run(id); err != nil || p.idle() || p.row.Cancel != "" {
			return err
		}
		if mod, err = tx.Module(p.row.Module); err != nil {
			return err
		}
		if mod.Image != p.row.Image || sha256.Sum256([]byte(mod.Manifest)) != p.row.ManifestSHA256 {
			return fmt.Errorf("the stored module %s is not the one that the run began with", p.row.Module)
		}
		if p.chain, err = chain(tx, &p.row); err != nil {
			return err
		}
		if kin, err = tx.Kin(p.row.Root, id); err != nil {
			return err
		}
		return tx.SetState(id, host.StateRunning, "", time.Time{}, now, host.StateQueued, host.StateWaiting, host.StateRunning)
	})
	if err != nil || p.row.State.Ended() {
		return nil, err
	}
	if p.row.Cancel != "" {
		return nil, &halted{p.row.Cancel}
	}
	if p.idle() {
		if now.Before(p.row.WakeAt) || p.row.WakeAt.IsZero() { // as a restore of before its end was kept wrote
			return nil, nil
		}
		return nil, r.finish(id, nil, ending{state: host.StateFailed, failure: "nobody let it go on in time after a backup was restored"})
	}
	key, err := r.Keys.OpenRunKey(id, p.row.Key)
	if err != nil {
		return nil, err
	}
	log, err := r.journal(ctx, id, key)
	if err != nil {
		return p, err
	}
	if err := r.unseal(p, key); err != nil {
		return nil, err
	}
	p.begin(log.Segment())
	manifest, err := abi.ParseManifest([]byte(mod.Manifest))
	if err != nil {
		return nil, err
	}
	p.past = log.Answered()
	if p.start.Tree == 0 {
		p.start.Tree = p.start.Limits.Calls
	}
	p.session = &broker.Session{
		Run: p.row.Run, Log: log, Key: key, Limits: p.start.Limits, Growth: p.start.Growth, Held: p.row.Label, Emit: r.emit(p),
		Tree: p.start.Tree, Others: broker.Others(kin, &p.row),
		Subject: grant.Subject{
			Run: id, Skill: p.row.Skill, Module: p.row.Module, Manifest: manifest, For: p.row.OnBehalfOf, Attended: p.row.Attended, Chain: p.chain,
		},
	}
	p.session.Emit(host.Event{Kind: host.EventState, State: host.StateRunning, Text: startText(log.Segment(), len(p.past))})
	return p, nil
}

// journal loads the current segment of a run that is running: nobody else writes to it
// any more, and to read it holds up nobody who writes.
func (r *Runner) journal(ctx context.Context, id host.RunID, key *vault.RunKey) (log *journal.Log, err error) {
	err = r.Store.Read(ctx, func(tx *store.Tx) error {
		row, err := tx.Run(id)
		if err == nil {
			log, err = journal.Load(tx, &row, key)
		}
		return err
	})
	return log, err
}

// chain loads the runs above one, which have to be covered as well.
func chain(tx *store.Tx, row *store.Run) (list []grant.Subject, err error) {
	for up := row.Parent; up != ""; {
		if len(list) >= broker.MaxDepth {
			return nil, fmt.Errorf("the runs above %s are more than %d", row.ID, broker.MaxDepth)
		}
		r, err := tx.Run(up)
		if err != nil {
			return nil, err
		}
		mod, err := tx.Module(r.Module)
		if err != nil {
			return nil, err
		}
		manifest, err := abi.ParseManifest([]byte(mod.Manifest))
		if err != nil {
			return nil, err
		}
		if sha256.Sum256([]byte(mod.Manifest)) != r.ManifestSHA256 {
			return nil, fmt.Errorf("the stored module %s is not the one that %s began with", r.Module, up)
		}
		list = append(list, grant.Subject{Run: up, Skill: r.Skill, Module: r.Module, Manifest: manifest, For: r.OnBehalfOf, Attended: r.Attended})
		up = r.Parent
	}
	return list, nil
}

// emit tells those who watch a run, and those who watch one above it what it waits for.
func (r *Runner) emit(p *prepared) func(host.Event) {
	own := r.feed(p.row.ID)
	return func(e host.Event) {
		own.add(e)
		if e.State != host.StateWaiting {
			return
		}
		e.Text = fmt.Sprintf("%s, %s: %s", p.row.Skill, p.row.ID, e.Text)
		for _, up := range p.chain {
			r.feed(up.Run).add(e)
		}
	}
}

// idle reports whether there is nothing to do for a worker: the run has ended, or a
// person has not let it go on yet.
func (p *prepared) idle() bool {
	return p.row.State.Ended() || p.row.State == host.StateWaiting && p.row.Wait == host.WaitRestored
}

func startText(seg *journal.Segment, past int) string {
	switch {
	case past == 0 && seg == nil:
		return "started"
	case past == 0:
		return fmt.Sprintf("begins segment %d", seg.Number)
	}
	return fmt.Sprintf("continues after %d recorded calls", past)
}

// begin lets a segment's state take the place of the run's input.
func (p *prepared) begin(seg *journal.Segment) {
	if seg == nil {
		return
	}
	p.base = seg.Call
	p.start.Input, p.start.Seed, p.start.TimeNS = seg.State, seg.Seed, seg.At.UnixNano()
	p.row.Label = seg.Label
}

func (r *Runner) unseal(p *prepared, key *vault.RunKey) error {
	start, err := key.Open(StartSlot(p.row.ID), p.row.Start)
	if err != nil {
		return err
	}
	lab, err := key.Open(LabelSlot(p.row.ID), p.row.StartLabel)
	if err != nil {
		return err
	}
	return errors.Join(json.Unmarshal(start, &p.start), json.Unmarshal(lab, &p.row.Label))
}

// work gives the run a worker and serves it. Where a call frees the worker, the time
// that the run may take stops as well, and so does the worker's place.
func (r *Runner) work(ctx context.Context, p *prepared, d *drive) (err error) {
	w, err := r.Spawner.Spawn(ctx, r.code(p))
	if errors.Is(err, errCode) { // another worker would find the same
		return err
	}
	if e := new(EscapeError); errors.As(err, &e) { // and another would be taken over as well
		return r.escaped(p, e.Tried)
	}
	if problem := new(host.Problem); errors.As(err, &problem) { // which none has that starts here
		return problem
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errStart, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wall := time.AfterFunc(p.start.Limits.Wall, func() { cancel(errWall) }) // a start has limits of its own
	defer wall.Stop()
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer func() {
		stop()
		ended := w.Close()
		if tried := w.Violations(); len(tried) > 0 {
			err = r.escaped(p, tried)
		} else if errors.Is(context.Cause(ctx), errWall) {
			err = &fault{wire.Fault{Code: wire.FaultLimit, Message: fmt.Sprintf("the run took longer than %v without waiting", p.start.Limits.Wall)}}
		} else if errors.Is(err, errGone) && errors.Is(ended, ErrLimit) { // another process would reach it as well
			err = &fault{wire.Fault{Code: wire.FaultLimit, Message: ended.Error()}}
		} else if errors.Is(err, errGone) && ended != nil {
			err = fmt.Errorf("%w: %w", err, ended)
		}
	}()
	pins := host.Pins{Engine: p.row.Engine, ABI: p.row.ABI}
	if unmet := pins.Unmet(w.Ready().Engine, abi.Version); unmet != "" {
		return &pinned{unmet}
	}
	p.session.Free = func() {
		wall.Stop()
		stop()
		_ = w.Close() // nobody reads what it would say
		r.leave(d)
	}
	s := &serving{r: r, p: p, w: w, from: wire.NewReader(w, 4<<10)}
	return s.serve(ctx)
}

// code is what a run's worker loads. It reads the row each time, as the artefact may
// have been made again since.
func (r *Runner) code(p *prepared) Code {
	kit := Kit{Module: p.row.Module, Image: p.row.Image, CPU: p.start.Limits.CPU}
	spare := audit.Leaf{Kind: audit.KindAlarm, Skill: p.row.Skill, Module: kit.Module.String()}
	return Code{Kit: kit, Escaped: func(tried []string) {
		r.loads.RLock() // the store is open
		defer r.loads.RUnlock()
		r.alarm(spare, "a spare worker: "+strings.Join(tried, "; "))
	}, Dir: func(ctx context.Context) (string, error) {
		r.loads.RLock()
		defer r.loads.RUnlock()
		if err := r.ctx.Err(); err != nil {
			return "", err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(r.ctx, cancel)()
		var m store.Module
		err := r.Store.Read(ctx, func(tx *store.Tx) (err error) { m, err = tx.Module(kit.Module); return err })
		if err == nil && m.Image != kit.Image {
			err = fmt.Errorf("the stored module %s is not the one that the run began with", kit.Module)
		}
		var dir string
		if err == nil {
			dir, err = r.Shelf.Dir(ctx, m)
		}
		if err != nil {
			return "", fmt.Errorf("%w: %w", errCode, err)
		}
		return dir, nil
	}}
}

// pinned says that this host cannot replay a run.
type pinned struct{ why string }

func (p *pinned) Error() string { return p.why }

// HeldLife is how long a run waits after a restore for a person who lets it go on.
const HeldLife = 30 * 24 * time.Hour

// pinnedLife is how long a run waits for a host that can replay it.
const pinnedLife = 7 * 24 * time.Hour

// hold parks a run until another binary takes it up, and ends it when none has come.
// It is never tried on another engine: that the answers fit would be luck.
func (r *Runner) hold(p *prepared, why *pinned) error {
	until := p.row.WakeAt
	if p.row.Wait != host.WaitPinned {
		until = r.Now().Add(pinnedLife)
	}
	if !r.Now().Before(until) {
		return r.finish(p.row.ID, p.session, ending{state: host.StateFailed, failure: why.why})
	}
	err := r.Store.Write(r.ctx, func(tx *store.Tx) error {
		return tx.SetState(p.row.ID, host.StateWaiting, host.WaitPinned, until, r.Now(), host.StateRunning)
	})
	if err != nil {
		return err
	}
	r.emit(p)(host.Event{Kind: host.EventState, State: host.StateWaiting, Text: why.why + "; start the binary that it began under, or cancel it"})
	return broker.ErrSuspended
}

// maxLost is how many workers a run may lose in a row without an answer in between.
const maxLost = 2

// ErrLimit is wrapped by Worker.Close if the process was ended by a limit of its own:
// another one would come to the same end.
var ErrLimit = errors.New("the run's process reached a limit")

var (
	errWall  = errors.New("wall clock limit")
	errStart = errors.New("the worker did not start")
	errCode  = errors.New("the module cannot be loaded")
	errGone  = errors.New("the worker ended without a word")
)

// escaped is the end of a run whose worker tried what it may not: a guest that got this
// far has left its engine.
func (r *Runner) escaped(p *prepared, tried []string) error {
	text := strings.Join(tried, "; ")
	r.alarm(audit.Leaf{Kind: audit.KindAlarm, Run: p.row.ID, Skill: p.row.Skill, Module: p.row.Module.String()}, text)
	p.session.Emit(host.Event{Kind: host.EventWarning, Text: "the worker tried what it may not: " + visible(text)})
	return &fault{wire.Fault{Code: wire.FaultInternal, Message: "the worker was stopped because it tried what it may not: " + text}}
}

// alarm names in the log and in the audit log what a worker tried.
func (r *Runner) alarm(leaf audit.Leaf, text string) {
	leaf.TimeMS, leaf.Detail = r.Now().UnixMilli(), visible(text)
	r.Log.Warn("a worker tried what it may not", slog.String("run", string(leaf.Run)), slog.String("module", leaf.Module), slog.String("calls", text))
	if err := r.Store.Write(context.WithoutCancel(r.ctx), func(tx *store.Tx) error { _, err := audit.Append(tx, leaf); return err }); err != nil {
		r.Log.Error("the alarm could not be recorded", slog.String("error", err.Error()))
	}
}

// serving is the conversation with one worker.
type serving struct {
	r    *Runner
	p    *prepared
	w    Worker
	from *wire.Reader // w
	past uint32       // recorded answers
	seen uint32       // those that the guest has asked for
	next uint32       // number of the next live call
	logs int
}

func (s *serving) serve(ctx context.Context) error {
	past := s.p.past
	s.p.past, s.past = nil, uint32(len(past)) // the log has them, until it lets go of them
	s.next = s.past + 1
	start := wire.Start{Limits: s.p.start.Limits, Seed: s.p.start.Seed, TimeNS: s.p.start.TimeNS, Past: s.past}
	if err := wire.WriteFrame(s.w, wire.KindStart, wire.EncodeJSON(start)); err != nil {
		return gone(err)
	}
	if err := wire.WriteFrame(s.w, wire.KindInput, s.p.start.Input); err != nil {
		return gone(err)
	}
	// Pushed ahead from another goroutine: the worker reports what it has seen while
	// more is on its way, and neither side may block the other.
	pushed := make(chan error, 1)
	go func() { pushed <- s.push(past) }()
	err := s.frames(ctx)
	if err != nil {
		_ = s.w.Close() // unblocks push
	}
	return errors.Join(err, ignoreGone(<-pushed, err))
}

func ignoreGone(pushErr, err error) error {
	if err != nil {
		return nil
	}
	return pushErr
}

func gone(err error) error { return fmt.Errorf("%w: %w", errGone, err) }

func (s *serving) push(past []*journal.Answer) error {
	w := bufio.NewWriterSize(s.w, 16<<10)
	for i, a := range past {
		if err := wire.WriteFrame(w, wire.KindPast, wire.AppendReply(nil, uint32(i)+1, a.At.UnixNano()), a.Reply); err != nil {
			return gone(err)
		}
	}
	if err := w.Flush(); err != nil {
		return gone(err)
	}
	return nil
}

// frames answers the worker until it is done.
func (s *serving) frames(ctx context.Context) error {
	for {
		k, payload, err := s.from.Frame(wire.KindSeen, wire.KindCall, wire.KindLog, wire.KindDone, wire.KindFault)
		if err != nil {
			if errors.Is(err, wire.ErrProtocol) || errors.Is(err, wire.ErrTooLarge) {
				return &fault{wire.Fault{Code: wire.FaultInternal, Message: "the worker broke the protocol: " + err.Error()}}
			}
			return gone(err)
		}
		switch k {
		case wire.KindSeen:
			err = s.onSeen(payload)
		case wire.KindCall:
			err = s.onCall(ctx, payload)
		case wire.KindLog:
			s.onLog(payload)
		case wire.KindDone:
			return s.onDone(payload)
		case wire.KindFault:
			f := &fault{}
			if json.Unmarshal(payload, &f.Fault) != nil || f.Code == "" {
				f.Fault = wire.Fault{Code: wire.FaultInternal, Message: "the worker sent a fault that cannot be read"}
			}
			return f
		default:
			err = &fault{wire.Fault{Code: wire.FaultInternal, Message: "unexpected frame"}}
		}
		if err != nil {
			return err
		}
	}
}

func protocol(format string, args ...any) error {
	return &fault{wire.Fault{Code: wire.FaultInternal, Message: "the worker broke the protocol: " + fmt.Sprintf(format, args...)}}
}

// onSeen checks that the guest asked for a recorded answer with the request that it
// was recorded for.
func (s *serving) onSeen(payload []byte) error {
	seq, fp, err := wire.ParseSeen(payload)
	if err != nil {
		return protocol("%v", err)
	}
	if seq != s.seen+1 || seq > s.past {
		return protocol("it saw recorded answer %d after %d of %d", seq, s.seen, s.past)
	}
	e, err := s.p.session.Log.Recall(s.p.base+seq, fp)
	if err != nil {
		return err
	}
	s.seen = seq
	s.p.session.Restore(e.Answer)
	return nil
}

func (s *serving) onCall(ctx context.Context, payload []byte) error {
	seq, request, err := wire.ParseCall(payload)
	if err != nil {
		return protocol("%v", err)
	}
	if s.seen != s.past {
		return fmt.Errorf("%w: a live call came after %d of %d recorded ones", journal.ErrDiverged, s.seen, s.past)
	}
	if seq != s.next {
		return protocol("call %d came, %d was next", seq, s.next)
	}
	if seq > s.p.start.Limits.Calls {
		return &fault{wire.Fault{Code: wire.FaultLimit, Message: fmt.Sprintf("the run made more than %d calls", s.p.start.Limits.Calls)}}
	}
	if uint64(seq)+uint64(s.p.session.Others) > uint64(s.p.start.Tree) {
		return &fault{wire.Fault{Code: wire.FaultLimit, Message: fmt.Sprintf("the run and those that belong to it made more than %d calls", s.p.start.Tree)}}
	}
	s.next++
	s.p.session.Log.LetGo(s.p.base + seq - 1) // a worker has no way to ask for them again
	reply, err := s.r.Broker.Do(ctx, s.p.session, s.p.base+seq, bytes.Clone(request))
	if errors.Is(err, broker.ErrBroke) {
		return &fault{wire.Fault{Code: wire.FaultCode(abi.Budget), Message: err.Error()}}
	}
	if errors.Is(err, broker.ErrLoop) || errors.Is(err, broker.ErrOvergrown) {
		return &fault{wire.Fault{Code: wire.FaultLimit, Message: err.Error()}}
	}
	if err != nil {
		return err
	}
	if err := wire.WriteFrame(s.w, wire.KindReply, wire.AppendReply(nil, seq, reply.At.UnixNano()), reply.Bytes); err != nil {
		return gone(err)
	}
	return nil
}

// onLog shows what the guest printed, up to the limit of the ABI.
func (s *serving) onLog(text []byte) {
	if s.logs >= abi.MaxLog {
		return
	}
	s.logs += len(text)
	for line := range strings.Lines(string(text)) {
		s.p.session.Emit(host.Event{Kind: host.EventLog, Text: visible(line), Guest: true})
	}
}

func (s *serving) onDone(payload []byte) error {
	status, result, err := wire.ParseDone(payload)
	if err != nil {
		return protocol("%v", err)
	}
	if s.seen != s.past {
		return fmt.Errorf("%w: the guest ended after %d of %d recorded calls", journal.ErrDiverged, s.seen, s.past)
	}
	e := ending{state: host.StateSucceeded, result: result, label: s.p.session.Held}
	if status != 0 {
		e.state, e.failure = host.StateFailed, fmt.Sprintf("the guest ended with status %d", status)
	}
	return s.r.finish(s.p.row.ID, s.p.session, e)
}

// ending is how a run ends.
type ending struct {
	state   host.RunState
	failure string
	result  []byte
	label   label.Set
}
