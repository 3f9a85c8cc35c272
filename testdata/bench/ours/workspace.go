package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

const (
	firstCalls    = 30
	mediated      = 20_000
	effectRounds  = 6
	effectsARound = 100
	// pairs of bare commits that fill more than the 1000 pages of a checkpoint
	untilCheckpoint = 600
	// and effects that fill more than the 4000 of the store
	effectsUntilCheckpoint = 400
	replayed               = 1000
	replays                = 20
	writers                = 64 // runs that make effects at once
	effectsAWriter         = 200
)

// Requests, canonical as the SDK makes them.
const (
	describe = `{"args":{},"op":"host.describe","v":1}`
	sleep    = `{"args":{"ms":50},"op":"time.sleep","v":1}`
	effect   = `{"args":{"args":{},"operation":"` + meter + `"},"op":"send","v":1}`
)

// asks is a guest without a library: it sends each request n times.
func asks(name, more string, requests ...request) []byte {
	b, im := &wasmtest.Builder{}, wasmtest.Imports{}
	im.Call = b.Import("monroe_v1", "call", "iiii", "I")
	b.Memory(2)
	b.Export("memory", wasmtest.KindMemory, 0)
	b.Custom("monroe.manifest", fmt.Appendf(nil, `{"abi":1,"name":%q,"version":"1.0.0"%s}`, name, more))
	var code [][]byte
	for i, r := range requests {
		from := int32(i * 4096)
		b.Data(from, []byte(r.text))
		code = append(code,
			wasmtest.I32Const(int32(r.n)), wasmtest.LocalSet(0), wasmtest.Loop,
			wasmtest.I32Const(from), wasmtest.I32Const(int32(len(r.text))), wasmtest.I32Const(65536), wasmtest.I32Const(65536), wasmtest.Call(im.Call), wasmtest.Drop,
			wasmtest.LocalGet(0), wasmtest.I32Const(-1), wasmtest.Add, []byte{0x22, 0}, wasmtest.BrIf(0), wasmtest.End)
	}
	b.Export("monroe_run", wasmtest.KindFunc, b.Func("", "i", 1, append(code, wasmtest.I32Const(0))...))
	return b.Bytes()
}

type request struct {
	text string
	n    int
}

// within runs a measurement in a workspace of its own, so that none pays for the heap or
// the database of another.
func (b *bench) within(f func(context.Context, *rig) error) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		dir, err := os.MkdirTemp(b.dir, "workspace-")
		if err != nil {
			return err
		}
		r, err := b.open(ctx, dir, 0, 4)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return f(ctx, r)
	}
}

// firstCall is from the request for a run to the guest's first call, with the
// module's compiled code in the cache and no process there yet; and its parts: until a
// worker is asked for, until it is ready, and from then on.
func (b *bench) firstCall(ctx context.Context, r *rig) error {
	skill, err := r.push(ctx, b.guest, false)
	if err != nil {
		return err
	}
	var took, accepted, worker, guest []time.Duration
	for range firstCalls {
		// bench.echo is not an op of a real host: the guest is refused and ends.
		begin, l, err := r.play(ctx, skill, `{"n":1}`, host.StateFailed)
		if err != nil {
			return err
		}
		if len(l.calls) == 0 {
			return errors.New("the guest made no call")
		}
		took = append(took, l.calls[0].Sub(begin))
		accepted = append(accepted, l.asked.Sub(begin))
		worker = append(worker, l.ready.Sub(l.asked))
		guest = append(guest, l.calls[0].Sub(l.ready))
	}
	return errors.Join(
		b.report("run_to_first_call", time.Millisecond, took, peer{}, 150, false),
		b.report("run_to_first_call_host", time.Millisecond, accepted, peer{}, 0, false),
		b.report("run_to_first_call_worker", time.Millisecond, worker, peer{}, 0, false),
		b.report("run_to_first_call_guest", time.Millisecond, guest, peer{}, 0, false),
	)
}

// mediatedCalls is the time between two calls of a guest that only calls: over the
// socket, through every stage of the door, and back. One in 257 commits what waits.
func (b *bench) mediatedCalls(ctx context.Context, r *rig) error {
	skill, err := r.push(ctx, asks("describe", "", request{describe, mediated + 1}), false)
	if err != nil {
		return err
	}
	_, l, err := r.play(ctx, skill, "{}", host.StateSucceeded)
	if err != nil {
		return err
	}
	var cycle, door []time.Duration
	for i := range mediated {
		cycle = append(cycle, l.calls[i+1].Sub(l.calls[i]))
		door = append(door, l.answers[i].Sub(l.calls[i]))
	}
	p, err := b.of("extism_host_call_round_trip_100B", "extism: host call in the host's own process, which nothing decides or records")
	if err != nil {
		return err
	}
	return errors.Join(
		b.report("hostcall_mediated", time.Microsecond, cycle, p, 60, false),
		b.report("hostcall_mediated_door", time.Microsecond, door, peer{}, 0, false),
	)
}

// replay measures what a run that made 1000 calls costs again: its journal is opened, and
// a worker is fed.
func (b *bench) replay(ctx context.Context) (err error) {
	r, err := b.open(ctx, filepath.Join(b.dir, "replay"), 0, 4)
	if err != nil {
		return err
	}
	id, resumes, feeds, err := b.resume(ctx, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	opens, err := b.journals(ctx, r, id)
	if err != nil {
		return err
	}
	both := make([]time.Duration, len(feeds))
	for i := range feeds {
		both[i] = feeds[i] + opens[i]
	}
	return errors.Join(
		b.report("replay_1000", time.Millisecond, both, peer{}, 15, false),
		b.report("replay_1000_journal_open", time.Millisecond, opens, peer{}, 0, false),
		b.report("replay_1000_worker", time.Millisecond, feeds, peer{}, 0, false),
		b.report("resume_1000", time.Millisecond, resumes, peer{}, 0, false),
	)
}

// resume lets a guest make 1000 calls and then sleep again and again: each time a
// new worker is fed everything before. feeds is from a ready worker to its first
// live call, resumes from the wake-up on.
func (b *bench) resume(ctx context.Context, r *rig) (id host.RunID, resumes, feeds []time.Duration, err error) {
	skill, err := r.push(ctx, asks("replay", `,"ops":["time.sleep"]`, request{describe, replayed}, request{sleep, replays}), false)
	if err != nil {
		return "", nil, nil, err
	}
	r.clock.reset()
	run, err := r.StartRun(ctx, r.owner, api.StartInput{Skill: skill, Input: []byte("{}")})
	if err != nil {
		return "", nil, nil, err
	}
	var swept []time.Time
	for {
		row, err := r.Run(ctx, r.owner, run.ID)
		if err != nil {
			return "", nil, nil, err
		}
		if row.State.Ended() {
			if row.State != host.StateSucceeded {
				return "", nil, nil, fmt.Errorf("the run %s: %s", row.State, row.Failure)
			}
			break
		}
		if row.State != host.StateWaiting {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		time.Sleep(5 * time.Millisecond) // its worker ends
		swept = append(swept, time.Now())
		if err := r.Sweep(ctx); err != nil {
			return "", nil, nil, err
		}
		time.Sleep(100 * time.Millisecond) // nothing polls while it is measured
	}
	for _, l := range r.clock.reset()[1:] { // the first had nothing to replay
		feeds = append(feeds, l.calls[0].Sub(l.ready))
		var woken time.Time
		for _, t := range swept {
			if t.Before(l.asked) {
				woken = t
			}
		}
		resumes = append(resumes, l.calls[0].Sub(woken))
	}
	return run.ID, resumes, feeds, nil
}

// records is how many records become durable in a second when many runs make effects
// at once: of each effect its call, its attempt and its result.
func (b *bench) records(ctx context.Context) (err error) {
	r, err := b.open(ctx, filepath.Join(b.dir, "records"), 0, writers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	guest := asks("effects", fmt.Sprintf(`,"ops":["send"],"operations":[{"operation":%q,"effect":"metered","resource":"bench:**"}]`, meter), request{effect, effectsAWriter})
	skill, err := r.push(ctx, guest, true)
	if err != nil {
		return err
	}
	r.clock.reset()
	var runs []host.RunID
	for range writers {
		run, err := r.StartRun(ctx, r.owner, api.StartInput{Skill: skill, Input: []byte("{}")})
		if err != nil {
			return err
		}
		runs = append(runs, run.ID)
	}
	for _, id := range runs {
		if state, err := r.finish(ctx, id); err != nil || state != host.StateSucceeded {
			return errors.Join(err, fmt.Errorf("a run ended as %s", state))
		}
	}
	var answers []time.Time
	for _, l := range r.clock.reset() {
		answers = append(answers, l.answers...)
	}
	slices.SortFunc(answers, time.Time.Compare)
	// The first and the last tenth are those of fewer runs.
	tenth := len(answers) / 10
	middle := answers[tenth : len(answers)-tenth]
	rate := 3 * float64(len(middle)-1) / middle[len(middle)-1].Sub(middle[0]).Seconds()
	return b.atLeast(fmt.Sprintf("durable_records_%d_runs", writers), "1/s", rate, 5000)
}

// journals opens a run's journal as the runner does: read, verify, decrypt, fold.
func (b *bench) journals(ctx context.Context, r *rig, id host.RunID) (took []time.Duration, err error) {
	s, err := store.Open(ctx, filepath.Join(r.dir, "monroe.db"), rigName, "bench", time.Now())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	keys, err := vault.OpenKeyset(filepath.Join(r.dir, "keyset.json"), rigName)
	if err != nil {
		return nil, err
	}
	for range replays {
		begin := time.Now()
		err := s.Read(ctx, func(tx *store.Tx) error {
			row, err := tx.Run(id)
			if err != nil {
				return err
			}
			key, err := keys.OpenRunKey(id, row.Key)
			if err == nil {
				_, err = journal.Load(tx, &row, key)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}
