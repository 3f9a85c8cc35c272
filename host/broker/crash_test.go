package broker_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// steps are what a program of these tests is made of: one of each replay class, what has
// none, and what a person has to do something about.
var steps = map[string]func(to string) []byte{
	"read":   func(to string) []byte { return use(abi.OpToolCall, "notes.read", to, 0) },
	"model":  func(to string) []byte { return use(abi.OpSend, "model.ask", to, 10) },
	"blind":  func(to string) []byte { return use(abi.OpSend, "mail.send", to, 10) },
	"keyed":  func(to string) []byte { return use(abi.OpSend, "docs.write", to, 10) },
	"large":  large,
	"probe":  func(to string) []byte { return use(abi.OpSend, "box.send", to, 10) },
	"put":    func(to string) []byte { return use(abi.OpSend, "page.put", to, 0) },
	"time":   func(string) []byte { return request(abi.OpTimeNow, "{}") },
	"memory": func(to string) []byte { return request(abi.OpKVPut, fmt.Sprintf(`{"key":%q,"value":1}`, to)) },
	// What is sent is what a person made of it.
	"edit": func(to string) []byte { return use(abi.OpSend, "mail.send", draft+to, 10) },
	// More than a month has until a person raises its cap.
	"budget":   func(to string) []byte { return use(abi.OpSend, "model.ask", to, lowCap+10) },
	"continue": func(string) []byte { return request(abi.OpRunContinue, `{"state":"left"}`) },
	"sleep":    func(string) []byte { return request(abi.OpTimeSleep, `{"ms":5000}`) },
	"skill":    func(string) []byte { return request(abi.OpSkillCall, callDigest) },
	"batch": func(to string) []byte {
		return request(abi.OpBatch, fmt.Sprintf(`{"requests":[%s,%s]}`, use(abi.OpToolCall, "notes.read", to, 0), use(abi.OpSend, "mail.send", to, 0)))
	},
}

const (
	draft   = "draft-of-" // what a person changes the destination of
	lowCap  = 60          // enough for what the other steps of a program cost
	highCap = 10_000
)

// large is a keyed effect whose plan lies in a file.
func large(to string) []byte {
	return request(abi.OpSend, fmt.Sprintf(`{"operation":"docs.write","args":{"to":%q,"text":%q,"cost":10}}`, to, bulk))
}

// bulk does not compress to what a row holds.
var bulk = func() string {
	b := make([]byte, store.MaxInline+2048)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return fmt.Sprintf("%x", b)
}()

// failpoint stops the host when it has been passed often enough, or does something else
// to it; if that cannot be done at that moment, it is done at the next.
type failpoint struct {
	passed, at int
	hit        func() bool
}

type stopped struct{}

func (f *failpoint) pass() {
	if f.passed++; f.passed == f.at && !f.hit() {
		f.at++
	}
}

// play runs a program to its end. The host is stopped at the points of crashes, each
// counted from the stop before it; a truthful person answers whatever is asked.
func play(t *testing.T, program []string, crashes []int) (h *house, keys map[string]string, points int) {
	t.Helper()
	h = newHouse(t)
	keys, points = h.play(program, crashes)
	return h, keys, points
}

func (h *house) play(program []string, crashes []int) (keys map[string]string, points int) {
	t := h.t
	t.Helper()
	h.start(2000) // an attempt that a stop cuts off is paid
	if slices.Contains(program, "budget") {
		h.rules.Cap = lowCap
	}
	fp := &failpoint{hit: func() bool { panic(stopped{}) }}
	crash := h.crash
	if h.away != nil {
		fp.hit, crash = h.away.leaves, h.returns
	}
	arrived := map[string]bool{} // what the other side has, by operation and destination
	arm := func() {
		fp.at = 0
		if len(crashes) > 0 {
			fp.at, crashes = fp.passed+crashes[0], crashes[1:]
		}
		h.door.Now = func() time.Time { fp.pass(); return h.now }
	}
	found := false
	h.world.found = &found
	h.world.before = func(connectors.Call) { fp.pass() }
	h.world.hook = func(s sent) {
		arrived[s.operation+s.to] = true
		h.left = fp.passed + 1
		fp.pass()
	}
	h.kin.pass, h.pass = fp.pass, fp.pass
	arm()
	for n := 1; n <= len(program); {
		to := fmt.Sprintf("to%d", n)
		raw := steps[program[n-1]](to)
		found = arrived["box.send"+to]
		err := attempt(h, uint32(n), raw)
		again, continued := errors.Is(err, broker.ErrSuspended), errors.Is(err, broker.ErrContinued)
		switch {
		case again:
			err = unless(func() error { h.help(arrived); return nil })
		case continued:
			err = unless(func() error { h.resume(); return nil })
		}
		switch {
		case errors.Is(err, errStopped), err != nil && h.away.is():
			crash()
			arm()
			n = int(h.s.Log.Base()) + 1 // replayed: what had no effect may be lost
		case err != nil:
			t.Fatalf("%v: call %d: %v", program, n, err)
		case !again:
			n++
		}
	}
	if h.away.is() {
		crash()
	}
	h.door.Now, h.pass = func() time.Time { return h.now }, func() {}
	// A skill is called once and a segment begun once, whatever happened; what was called has
	// ended.
	calls, segments := 0, 0
	for _, step := range program {
		switch step {
		case "skill":
			calls++
		case "continue":
			segments++
		}
	}
	h.read(func(tx *store.Tx) error {
		marks, err := tx.Marks(h.run)
		if len(marks) != segments {
			t.Errorf("%v: %d segments were begun", program, len(marks))
		}
		return err
	})
	tree := h.tree()
	if len(tree) != 1+calls {
		t.Errorf("%v: %d runs were called", program, len(tree)-1)
	}
	for _, r := range tree[1:] {
		if !r.State.Ended() {
			t.Errorf("%v: a run that was called is %s", program, r.State)
		}
	}
	return counted(t, h, program), fp.passed
}

// counted returns what left and with which key, and sees that nothing left twice that must not.
func counted(t *testing.T, h *house, program []string) map[string]string {
	t.Helper()
	keys := map[string]string{}
	count := map[string]int{}
	for _, s := range h.world.performed {
		what := s.operation + s.to
		count[what]++
		// The key is the run's own: what must not change is that all attempts share it.
		if k, ok := keys[what]; ok && k != s.key {
			t.Errorf("%v: %s left with two keys", program, what)
		}
		keys[what] = s.key
		if strings.HasPrefix(s.to, draft) {
			t.Errorf("%v: what a person has changed was sent as it was: %s", program, what)
		}
		if exact := strings.HasPrefix(what, "mail.send") || strings.HasPrefix(what, "box.send"); exact && count[what] > 1 {
			t.Errorf("%v: %s was sent %d times", program, what, count[what])
		}
	}
	return keys
}

var errStopped = errors.New("the host was stopped")

// attempt makes a call that the host may not survive.
func attempt(h *house, n uint32, raw []byte) error {
	return unless(func() error {
		r, err := h.door.Do(h.t.Context(), h.s, n, raw)
		if err == nil && !strings.HasPrefix(string(r.Bytes), `{"ok"`) {
			h.t.Errorf("call %d was refused: %s", n, r.Bytes)
		}
		return err
	})
}

// unless does something unless the host is stopped amidst it.
func unless(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(stopped); !ok {
				panic(r)
			}
			err = errStopped
		}
	}()
	return do()
}

// help gives a run what it waits for.
func (h *house) help(arrived map[string]bool) {
	h.t.Helper()
	var row store.Run
	var open []store.Approval
	h.read(func(tx *store.Tx) (err error) {
		if row, err = tx.Run(h.run); err != nil {
			return err
		}
		open, err = tx.Approvals(host.ApprovalPending)
		return err
	})
	switch row.Wait {
	case host.WaitApproval:
		for _, a := range open {
			_, err := approval.Open(h.keys, &a) // where it would go is sealed
			h.must(err)
			if strings.HasPrefix(a.Destination, draft) {
				h.pass()
				h.must(h.amend(person, a.Call, fmt.Sprintf(`{"to":%q}`, strings.TrimPrefix(a.Destination, draft))))
				h.pass()
				continue
			}
			h.answer(a.Call, true)
		}
	case host.WaitBudget:
		h.pass()
		h.rules.Cap = highCap
		h.pass()
	case host.WaitTurn, host.WaitTimer:
		h.now = row.WakeAt
	case host.WaitUnknown:
		now := h.door.Now
		h.resume()
		e := h.s.Log.InDoubt()
		said := host.DidNotHappen
		if arrived[e.Operation+e.Plan.Destination] {
			said = host.Happened
		}
		h.resolve(said)
		h.door.Now = now
	case host.WaitConnector, host.WaitPinned, host.WaitSkill, host.WaitModel, host.WaitRestored:
		h.t.Fatalf("the run waits for %s", row.Wait)
	}
	h.resume()
}

// settled holds the end of a run that was stopped to that of one that was not.
func settled(t *testing.T, h *house, keys, want map[string]string) {
	t.Helper()
	if len(keys) != len(want) {
		t.Errorf("%d effects left, without a stop %d", len(keys), len(want))
	}
	for what := range want {
		if keys[what] == "" {
			t.Errorf("%s did not leave", what)
		}
	}
	for _, v := range broker.Views(h.s.Log.Entries(), false) {
		if v.Outcome != "ok" {
			t.Errorf("call %d ended %s", v.Call, v.Outcome)
		}
	}
	if got := h.totals(); got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	if b := h.books(); b.InDoubt() != 0 {
		t.Errorf("%d effects are in doubt", b.InDoubt())
	}
}

// The host stops at every point between two of its steps, once each: before and after
// each record, before and after each send.
func TestAStopAtEveryPointEndsTheSame(t *testing.T) {
	for _, program := range [][]string{{"read", "blind", "time"}, {"keyed"}, {"probe"}, {"put"}, {"model", "memory"}, {"batch"}, {"time", "sleep"}, {"blind", "skill", "time"}, {"edit"}, {"budget"}, {"read", "continue", "blind"}} {
		t.Run(strings.Join(program, ","), func(t *testing.T) {
			t.Parallel() // a database of another process leaves a processor idle
			h, want, points := play(t, program, nil)
			h.close()
			if points < 4 {
				t.Fatalf("only %d points", points)
			}
			for at := 1; at <= points; at++ {
				h, keys, _ := play(t, program, []int{at})
				settled(t, h, keys, want)
				h.close()
				if t.Failed() {
					t.Fatalf("stopped at point %d of %d", at, points)
				}
			}
		})
	}
}

// Each way to make an attempt good, stopped at every point, and stopped again at every point of
// what makes that stop good.
func TestAStopAtEveryPointOfTheRecoveryEndsTheSame(t *testing.T) {
	classes := []string{"blind", "keyed", "probe"}
	if os.Getenv(storetest.Switch) == "" { // over PostgreSQL each pair takes most of a second
		classes = append(classes, "read", "model", "put", "edit", "budget", "continue")
	}
	for _, step := range classes {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			program := []string{step}
			h, want, points := play(t, program, nil)
			h.close()
			for first := 1; first <= points; first += storetest.Stride {
				for second := 1 + first%storetest.Stride; ; second += storetest.Stride {
					h, keys, passed := play(t, program, []int{first, second})
					settled(t, h, keys, want)
					h.close()
					if t.Failed() {
						t.Fatalf("stopped at point %d of %d, and at point %d after that", first, points, second)
					}
					if passed < first+second { // the second stop lies behind the end
						break
					}
				}
			}
		})
	}
}

// Any program, stopped any number of times, also while it makes good an earlier stop.
func TestAnyProgramThatIsStoppedEndsTheSame(t *testing.T) {
	// Each check is a few dozen commits that reach the disk.
	checks := flag.Lookup("rapid.checks").Value
	before := checks.String()
	if err := checks.Set("10"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = checks.Set(before) }()
	names := slices.Sorted(maps.Keys(steps)) // sorted, so that a failure can be repeated
	rapid.Check(t, func(rt *rapid.T) {
		program := rapid.SliceOfN(rapid.SampledFrom(names), 1, 4).Draw(rt, "program")
		crashes := rapid.SliceOfN(rapid.IntRange(1, 12), 0, 4).Draw(rt, "crashes")
		h, want, _ := play(t, program, nil)
		h.close()
		h, keys, _ := play(t, program, crashes)
		settled(t, h, keys, want)
		h.close()
		if t.Failed() {
			rt.Fatalf("%v stopped at %v", program, crashes)
		}
	})
}
