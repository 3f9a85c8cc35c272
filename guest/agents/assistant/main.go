// Command assistant is an agent: it gives a task in words to a model, offers the
// model the operations that the run is granted, performs the calls that the model
// wants, and returns the model's answer.
//
// It does not decide what is allowed. Whatever the model asks for goes to the
// host, and a refusal goes back to the model as text with its reason and remedy.
// What tools return is given to the model as data: it may hold other people's
// words, and instructions in them are not the task's.
//
// It knows how to talk with a model. It must not know any connector but by its
// description.
package main

import (
	"fmt"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {}

const (
	defaultSteps = 12
	mostSteps    = 50
	mostInput    = 200 << 10 // bytes of task and context together
	mostAnswer   = 200 << 10 // bytes
)

// input is what a run is started with.
type input struct {
	Task     string `json:"task"`
	Context  string `json:"context"`
	Model    string `json:"model"`
	MaxSteps int    `json:"max_steps"`
}

// result is what a run returns.
type result struct {
	Answer string `json:"answer"`
	// Steps is how often the model was asked, ToolCalls how many calls were made.
	Steps        int          `json:"steps"`
	ToolCalls    int          `json:"tool_calls"`
	CostMicroUSD abi.MicroUSD `json:"cost_micro_usd"`
	// Stopped says why the model did not end by itself.
	Stopped string `json:"stopped,omitempty"`
	// Calls are the calls made, in order, with "ok" or the code of the refusal.
	Calls []callRecord `json:"calls,omitempty"`
}

type callRecord struct {
	Operation string `json:"operation"`
	Outcome   string `json:"outcome"`
}

func run(r *guest.Run) error {
	var in input
	if err := r.Input(&in); err != nil {
		return err
	}
	in.Task = strings.TrimSpace(in.Task)
	switch {
	case in.Task == "":
		return fmt.Errorf("the input needs %q: what to do, in words", "task")
	case len(in.Task)+len(in.Context) > mostInput:
		return fmt.Errorf("task and context have %d bytes, at most %d are allowed", len(in.Task)+len(in.Context), mostInput)
	case in.MaxSteps == 0:
		in.MaxSteps = defaultSteps
	case in.MaxSteps < 0 || in.MaxSteps > mostSteps:
		return fmt.Errorf("max_steps is %d, 1 to %d are allowed", in.MaxSteps, mostSteps)
	}
	granted, err := r.Tools()
	if err != nil {
		return err
	}
	a := &agent{run: r, in: in, tools: offer(granted), seen: map[string]int{}}
	if err := a.work(); err != nil {
		return err
	}
	a.res.Answer = cut(a.res.Answer, mostAnswer)
	return r.Result(a.res)
}
