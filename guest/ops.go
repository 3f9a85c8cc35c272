package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
)

// Level is how important a line of the log is.
type Level string

const (
	LevelDebug Level = "debug"
	LevelInfo  Level = "info"
	LevelWarn  Level = "warn"
	LevelError Level = "error"
)

// Describe returns what the host offers and which grants are in force.
func (r *Run) Describe() (abi.DescribeResult, error) {
	var d abi.DescribeResult
	err := r.Call(abi.OpDescribe, struct{}{}, &d)
	return d, err
}

// Progress tells the person who watches what the run is doing. It is a message,
// so a refusal is ignored.
func (r *Run) Progress(format string, a ...any) {
	_ = r.Call(abi.OpProgress, abi.ProgressArgs{Text: fmt.Sprintf(format, a...)}, nil)
}

// Log writes a line for the author of the guest. A refusal is ignored.
func (r *Run) Log(level Level, format string, a ...any) {
	_ = r.Call(abi.OpLog, abi.LogArgs{Level: string(level), Text: fmt.Sprintf(format, a...)}, nil)
}

// Now is the wall clock. It is recorded, unlike time.Now, which only counts on
// from the last reply.
func (r *Run) Now() (time.Time, error) {
	var t abi.TimeResult
	if err := r.Call(abi.OpTimeNow, struct{}{}, &t); err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(t.UnixMS).UTC(), nil
}

// Sleep waits durably: a long wait ends the instance and costs no memory.
func (r *Run) Sleep(d time.Duration) error {
	return r.Call(abi.OpTimeSleep, abi.SleepArgs{MS: d.Milliseconds()}, nil)
}

// Random returns n fresh random bytes, 1 to 1024. Use it for anything that must
// not be guessed; math/rand repeats itself when a run is replayed.
func (r *Run) Random(n int) ([]byte, error) {
	var out abi.RandomResult
	err := r.Call(abi.OpRandom, abi.RandomArgs{N: n}, &out)
	return out.Base64, err
}

// Tools lists the operations that are granted, as a model can be offered them.
func (r *Run) Tools() ([]abi.Tool, error) {
	var out abi.ToolListResult
	err := r.Call(abi.OpToolList, struct{}{}, &out)
	return out.Tools, err
}

// CallSkill runs another skill, gives it an input and reads its result into out, which
// may be nil. The skill can do only what this run may do as well, and spends at most
// budget of what is left of this run's; a negative one is all of it. That it did not
// succeed is an error, in which Denied finds the host's refusal.
func (r *Run) CallSkill(skill string, budget abi.MicroUSD, input, out any) error {
	raw, err := encode(input)
	if err != nil {
		return fmt.Errorf("%s: the input: %w", skill, err)
	}
	args := abi.SkillArgs{Skill: skill, Input: raw}
	if budget >= 0 {
		args.Budget = &budget
	}
	var res abi.SkillResult
	if err := r.Call(abi.OpSkillCall, args, &res); err != nil {
		return fmt.Errorf("%s: %w", skill, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(res.Result, out); err != nil {
		return fmt.Errorf("%s: its result: %w", skill, err)
	}
	return nil
}

// Continue ends this instance and starts the next one with a state in the place of the
// run's input: Input reads it there. It does not return, unless the host refuses: what
// has to live on belongs into the state, and a program that may continue begins by
// asking which of the two it was given. Use it between two pieces of work, before the
// journal that host.describe tells of is full.
func (r *Run) Continue(state any) error {
	raw, err := encode(state)
	if err == nil {
		err = r.Call(abi.OpRunContinue, abi.ContinueArgs{State: raw}, nil)
	}
	if err == nil {
		err = errors.New("the host answered and did not end the segment")
	}
	return fmt.Errorf("continue: %w", err)
}

// Batch makes several requests in one crossing and returns one reply for each, in
// their order. A refused one does not stop those after it.
func (r *Run) Batch(requests ...abi.Request) ([]abi.Reply, error) {
	var out abi.BatchResult
	if err := r.Call(abi.OpBatch, abi.BatchArgs{Requests: requests}, &out); err != nil {
		return nil, err
	}
	if len(out.Replies) != len(requests) {
		return nil, fmt.Errorf("batch: %d replies for %d requests", len(out.Replies), len(requests))
	}
	return out.Replies, nil
}

// KV is what this skill remembers in its workspace from one run to the next.
type KV struct{ r *Run }

// KV returns the skill's memory.
func (r *Run) KV() KV { return KV{r} }

// Get reads a value into v, a pointer, and reports whether there is one.
func (k KV) Get(key string, v any) (bool, error) {
	var out abi.KVResult
	if err := k.r.Call(abi.OpKVGet, abi.KVArgs{Key: key}, &out); err != nil || !out.Found {
		return false, err
	}
	if err := json.Unmarshal(out.Value, v); err != nil {
		return false, fmt.Errorf("kv.get: %s: %w", key, err)
	}
	return true, nil
}

// Put writes a value. Its numbers have to be integers, as everywhere in the ABI.
func (k KV) Put(key string, v any) error {
	raw, err := encode(v)
	if err != nil {
		return fmt.Errorf("kv.put: %s: %w", key, err)
	}
	return k.r.Call(abi.OpKVPut, abi.KVArgs{Key: key, Value: raw}, nil)
}

// Delete removes a value; an absent one is no error.
func (k KV) Delete(key string) error {
	return k.r.Call(abi.OpKVDelete, abi.KVArgs{Key: key}, nil)
}

// Keys lists the keys that begin with prefix, sorted.
func (k KV) Keys(prefix string) ([]string, error) {
	var out abi.KVResult
	err := k.r.Call(abi.OpKVList, abi.KVArgs{Prefix: prefix}, &out)
	return out.Keys, err
}
