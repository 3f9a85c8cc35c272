package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

type runCmd struct {
	Skill  string `arg:"" help:"Name of the skill."`
	Input  string `short:"i" help:"Input as JSON, @file or - for standard input."`
	Task   string `short:"t" help:"A task in words, for an agent: the same as the input {\"task\":…}."`
	MaxUSD string `name:"max-usd" help:"Ceiling of this run in dollars."`
	Watch  bool   `help:"Follow the run until it ends or waits for a person."`
}

func (r runCmd) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	in, err := r.input(e)
	if err != nil {
		return err
	}
	est, err := c.Estimate(e.ctx, r.Skill, r.MaxUSD)
	if err != nil {
		return err
	}
	if !e.json {
		fmt.Fprintf(e.err, "estimate: %s\n", estimate(est))
	}
	run, err := c.StartRun(e.ctx, api.StartInput{Skill: r.Skill, Input: in, MaxUSD: r.MaxUSD})
	if err != nil {
		return err
	}
	if !r.Watch {
		return e.show(run, func() { e.printf("%s started; follow it: monroe runs watch %s\n", run.ID, run.ID) })
	}
	return e.follow(c, run.ID, true)
}

func (r runCmd) input(e *env) (json.RawMessage, error) {
	switch {
	case r.Task != "" && r.Input != "":
		return nil, fmt.Errorf("give a task or an input, not both")
	case r.Task != "":
		return json.Marshal(map[string]string{"task": r.Task})
	case r.Input == "-":
		return io.ReadAll(e.in)
	case strings.HasPrefix(r.Input, "@"):
		return os.ReadFile(r.Input[1:])
	}
	return json.RawMessage(r.Input), nil
}

// estimate says what a run is expected to cost.
func estimate(v host.Estimate) string {
	switch {
	case v.Ceiling == 0:
		return "$0.00: the skill asks for nothing that costs money"
	case v.Runs == 0:
		return fmt.Sprintf("at most %s; there is no earlier run of this module to compare with", v.Ceiling)
	}
	return fmt.Sprintf("%s, rarely more than %s (from %d earlier runs of this module); at most %s", v.P50, v.P95, v.Runs, v.Ceiling)
}

// follow prints a run's events until it ends or, if stop is set, waits for somebody.
func (e *env) follow(c *client.Client, id host.RunID, stop bool) error {
	var last, asked host.Event
	err := c.Watch(e.ctx, id, 0, func(ev host.Event) error {
		last = ev
		if ev.Approval != "" {
			asked = ev
		}
		e.event(ev)
		if ev.State != host.StateWaiting {
			return nil
		}
		v, err := c.Run(e.ctx, id) // the event may be of an earlier wait
		if err != nil || v.State != host.StateWaiting || v.Wait == host.WaitModel || v.Wait == host.WaitSkill && !calleeWaits(v) {
			return err
		}
		if stop {
			return errWaiting
		}
		if !e.json {
			e.waiting(ev, id)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errWaiting) {
		return err
	}
	v, runErr := c.Run(e.ctx, id)
	if runErr != nil {
		return runErr
	}
	if err != nil {
		if v.Wait == host.WaitSkill && asked.Approval != "" { // what a run asks that it called
			last = asked
		}
		return orStatus(e.show(v, func() { e.waiting(last, id) }), 3)
	}
	err = e.show(v, func() { e.ended(v) })
	if v.State != host.StateSucceeded {
		return orStatus(err, 1)
	}
	return err
}

// calleeWaits reports whether one of the runs that belong to a run waits for anything
// but another of them, or a model.
func calleeWaits(v api.RunView) bool {
	return slices.ContainsFunc(v.Tree, func(n host.Node) bool {
		return n.State == host.StateWaiting && n.Wait != host.WaitSkill && n.Wait != host.WaitModel
	})
}

// tree shows the runs that belong together, each below the one that called it.
func (e *env) tree(v api.RunView) {
	if len(v.Tree) < 2 {
		return
	}
	depth := map[host.RunID]int{}
	var rows [][]string
	for _, n := range v.Tree {
		if n.Parent != "" {
			depth[n.ID] = depth[n.Parent] + 1
		}
		state := string(n.State)
		if n.Wait != "" {
			state += ": " + string(n.Wait)
		}
		mark := ""
		if n.ID == v.ID {
			mark = "← this run"
		}
		rows = append(rows, []string{strings.Repeat("  ", depth[n.ID]) + string(n.ID), n.Skill, state, fmt.Sprint(n.Calls), n.Budget.String(), n.Spent.String(), mark})
	}
	e.table([]string{"RUN", "SKILL", "STATE", "CALLS", "BUDGET", "SPENT", ""}, rows)
	e.printf("\n")
}

var errWaiting = errors.New("the run waits")

func orStatus(err error, status int) error {
	if err != nil {
		return err
	}
	return exitError(status)
}

func (e *env) event(ev host.Event) {
	if e.json {
		return
	}
	text := plain(ev.Text)
	switch ev.Kind {
	case host.EventStream:
		fmt.Fprint(e.err, strings.TrimRight(block(ev.Text, ""), "\n"))
	case host.EventProgress:
		if ev.Percent > 0 {
			text = fmt.Sprintf("%3d %% %s", ev.Percent, text)
		}
		fmt.Fprintf(e.err, "  guest: %s\n", text)
	case host.EventLog:
		fmt.Fprintf(e.err, "  guest: %s\n", text)
	case host.EventCall, host.EventState, host.EventApproval, host.EventWarning:
		fmt.Fprintf(e.err, "  %s\n", text)
	}
}

// waiting says what to do about a run that waits.
func (e *env) waiting(ev host.Event, id host.RunID) {
	e.printf("\n%s waits: %s\n", id, plain(ev.Text))
	if ev.Approval != "" {
		e.printf("  look:    monroe approvals show %s\n  approve: monroe approvals approve %s\n  reject:  monroe approvals reject %s\n", ev.Approval, ev.Approval, ev.Approval)
	}
	e.printf("  follow:  monroe runs watch %s\n", id)
}

// doubt says what to do about an attempt whose outcome is unknown.
func (e *env) doubt(v api.RunView) {
	for _, x := range v.Log {
		if x.Outcome == string(host.WaitUnknown) {
			e.printf("\ncall %d, %s on %s, may have happened: %s\n", x.Call, x.Operation, x.Resource, plain(x.Reason))
		}
	}
	e.printf(`look at the other side, then say what you found; nothing is sent again before that:
  it is there:      monroe runs resolve %[1]s --happened
  it is not there:  monroe runs resolve %[1]s --did-not-happen
  nobody can tell:  monroe runs resolve %[1]s --abandon
without an answer the guest is told on %[2]s that nobody knows
`, v.ID, when(v.WakeAt))
}

func (e *env) ended(v api.RunView) {
	e.printf("\n%s %s\n", v.ID, v.State)
	if v.Failure != "" {
		e.printf("%s\n", plain(v.Failure))
	}
	if len(v.Result) > 0 {
		e.printf("result (written by the guest):\n%s", block(pretty(v.Result), "  "))
	}
	if v.Receipt != "" {
		e.printf("receipt:\n%s", block(v.Receipt, "  "))
	}
}

func pretty(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return string(raw)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return string(raw)
	}
	return string(b)
}

type runsCmd struct {
	List   runsList   `cmd:"" help:"List the newest runs."`
	Show   runsShow   `cmd:"" help:"Show one run with its calls."`
	Watch  runsWatch  `cmd:"" help:"Follow a run."`
	Cancel runsCancel `cmd:"" help:"End a run."`

	Release runsRelease `cmd:"" help:"Let runs go on that are held since the workspace was restored from a backup."`
	Erase   runsErase   `cmd:"" help:"Take the content of a run that has ended away for good."`
	Resolve runsResolve `cmd:"" help:"Say what became of an attempt whose outcome is unknown."`
}

type runsList struct {
	Limit int `default:"20" help:"How many."`
}

func (r runsList) Run(e *env) error {
	return answer(e, func(c *client.Client) ([]host.Run, error) { return c.Runs(e.ctx, r.Limit) }, func(list []host.Run) {
		var rows [][]string
		for _, v := range list {
			state := string(v.State)
			if v.Wait != "" {
				state += ": " + string(v.Wait)
			}
			if !v.ErasedAt.IsZero() {
				state += ", erased"
			}
			rows = append(rows, []string{string(v.ID), v.Skill, state, fmt.Sprint(v.Calls), v.Spent.String(), when(v.CreatedAt), v.OnBehalfOf.Name})
		}
		e.table([]string{"RUN", "SKILL", "STATE", "CALLS", "COST", "STARTED", "FOR"}, rows)
	})
}

type runsShow struct {
	ID host.RunID `arg:""`
}

func (r runsShow) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.RunView, error) { return c.Run(e.ctx, r.ID) }, func(v api.RunView) {
		e.printf("%s of %s for %s: %s %s\nmodule %s\nestimate %s; spent %s, reserved %s\njournal %d records, %d bytes\n\n", v.ID, v.Skill, plain(v.OnBehalfOf.Name), v.State, v.Wait, v.Module, estimate(v.Estimate), v.Spent, v.Reserved, v.Records, v.JournalBytes)
		for _, s := range v.Segments {
			e.printf("segment %d since %s, after call %d\n", s.Number, when(s.Since), s.After)
		}
		if v.Notice != "" {
			e.printf("warning: %s\n", plain(v.Notice))
		}
		if w := v.Waiting; w != nil {
			e.printf("waits for %s: it is the turn of %s", w.Kind, w.Owner)
			if !w.Expires.IsZero() {
				e.printf("; looked at again by %s, ends %s", when(w.Next), when(w.Expires))
			}
			e.printf("\n\n")
		}
		e.tree(v)
		var rows [][]string
		for _, x := range v.Log {
			what := x.Operation
			if what == "" {
				what = string(x.Op)
			}
			rows = append(rows, []string{fmt.Sprint(x.Call), x.Time.Local().Format("15:04:05"), what, x.Resource, string(x.Effect), strings.TrimSpace(x.Outcome + " " + x.Reason), x.Cost.String(), string(x.Receipt)})
		}
		e.table([]string{"CALL", "TIME", "WHAT", "ON", "EFFECT", "OUTCOME", "COST", "RECEIPT"}, rows)
		if v.State == host.StateWaiting && v.Wait == host.WaitUnknown {
			e.doubt(v)
		}
		if v.State == host.StateWaiting && v.Wait == host.WaitRestored {
			e.printf("\nheld since the workspace was restored from a backup; look at what was done since, then: monroe runs release %s\n", v.ID)
		}
		e.ended(v)
	})
}

type runsWatch struct {
	ID host.RunID `arg:""`
}

func (r runsWatch) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	v, err := c.Run(e.ctx, r.ID)
	if err != nil {
		return err
	}
	if v.State == host.StateWaiting { // what it waits for is no news: follow what comes next
		fmt.Fprintf(e.err, "%s waits: %s\n", r.ID, v.Wait)
	}
	return e.follow(c, r.ID, false)
}

type runsCancel struct {
	ID host.RunID `arg:""`
}

func (r runsCancel) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	if err := c.CancelRun(e.ctx, r.ID); err != nil {
		return err
	}
	return e.show(map[string]any{"cancelled": r.ID}, func() { e.printf("%s is being cancelled\n", r.ID) })
}

type runsRelease struct {
	IDs []host.RunID `arg:"" name:"id" help:"The runs; look first at what was done since the backup."`
}

func (r runsRelease) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	var released []host.Run
	for _, id := range r.IDs {
		v, err := c.ReleaseRun(e.ctx, id)
		if err != nil { // those before it go on all the same
			return errors.Join(e.released(released), err)
		}
		released = append(released, v)
	}
	return e.released(released)
}

func (e *env) released(list []host.Run) error {
	return e.show(list, func() {
		for _, v := range list {
			e.printf("%s goes on; follow it: monroe runs watch %s\n", v.ID, v.ID)
		}
	})
}

type runsErase struct {
	ID host.RunID `arg:""`
}

func (r runsErase) Run(e *env) error {
	return answer(e, func(c *client.Client) (host.Run, error) { return c.EraseRun(e.ctx, r.ID) }, func(v host.Run) {
		e.printf("%s: the content is erased; headers, digests and the audit log stay\n", v.ID)
	})
}

type runsResolve struct {
	ID           host.RunID `arg:""`
	Call         uint32     `help:"The call that you looked at; it is refused if the run waits for another."`
	Happened     bool       `xor:"what" required:"" help:"It happened: the skill is told so, and nothing is sent again."`
	DidNotHappen bool       `xor:"what" required:"" help:"It did not happen: it may be attempted again; where nothing tells two sends apart, only after a new approval."`
	Abandon      bool       `xor:"what" required:"" help:"Nobody can tell: the skill is told that."`
}

func (r runsResolve) Run(e *env) error {
	in := api.ResolveInput{Outcome: host.Abandoned, Call: r.Call}
	switch {
	case r.Happened:
		in.Outcome = host.Happened
	case r.DidNotHappen:
		in.Outcome = host.DidNotHappen
	}
	return answer(e, func(c *client.Client) (host.Run, error) { return c.Resolve(e.ctx, r.ID, in) }, func(host.Run) {
		e.printf("%s goes on; follow it: monroe runs watch %s\n", r.ID, r.ID)
	})
}
