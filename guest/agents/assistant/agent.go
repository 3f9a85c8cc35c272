package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

const (
	mostCalls    = 16 // that one message of the model may ask for
	mostRepeats  = 5  // refused repetitions until the model is made to answer
	mostTries    = 3  // of one question to the model
	longestWait  = time.Minute
	mostMessages = 300 << 10 // bytes of the conversation; a request may have 1 MiB
	outputTokens = 4096
)

// agent is one conversation.
type agent struct {
	run      *guest.Run
	in       input
	tools    *toolbox
	messages []guest.Message
	seen     map[string]int // canonical call → the step that made it
	repeats  int
	res      result
}

// work holds the conversation until the model answers or has to.
func (a *agent) work() error {
	a.messages = []guest.Message{
		{Role: "system", Content: systemPrompt(a.tools)},
		{Role: "user", Content: taskPrompt(a.in)},
	}
	empty := false
	for a.res.Steps < a.in.MaxSteps {
		// The last question offers no tools, so that what was found out is not lost.
		last := a.res.Steps == a.in.MaxSteps-1 || a.repeats >= mostRepeats
		if last && a.res.Steps > 0 {
			a.stop()
		}
		m, err := a.ask(!last)
		if err != nil {
			return a.giveUp(err)
		}
		if last || len(m.ToolCalls) == 0 && m.Content != "" {
			a.finish(m)
			return nil
		}
		if len(m.ToolCalls) == 0 { // neither words nor calls
			if empty {
				a.res.Stopped = "the model answered nothing, twice"
				a.finish(m)
				return nil
			}
			empty = true
			a.say("Your reply was empty. Give your answer, or call a tool.")
			continue
		}
		a.messages = append(a.messages, m)
		for i, c := range m.ToolCalls {
			text := fmt.Sprintf("Not done: at most %d calls fit in one message.", mostCalls)
			if i < mostCalls {
				text = a.perform(c)
			}
			a.messages = append(a.messages, guest.Message{Role: "tool", ToolCallID: c.ID, Content: text})
		}
	}
	return nil
}

func (a *agent) say(text string) {
	a.messages = append(a.messages, guest.Message{Role: "user", Content: text})
}

// stop asks for an answer with what is there.
func (a *agent) stop() {
	if a.res.Stopped != "" {
		return
	}
	a.res.Stopped = fmt.Sprintf("the limit of %d steps was reached", a.in.MaxSteps)
	if a.repeats >= mostRepeats {
		a.res.Stopped = "the model repeated calls that had been answered"
	}
	a.say("No more tool calls are possible. Answer now with what you have, and say what is missing.")
}

func (a *agent) finish(m guest.Message) {
	a.res.Answer = strings.TrimSpace(m.Content)
	if a.res.Answer == "" {
		a.res.Answer = "(no answer)"
		if a.res.Stopped == "" {
			a.res.Stopped = "the model had no step left to answer in"
		}
	}
}

// giveUp ends the conversation when the model cannot be asked any more. What was
// done until then is told; a run that did nothing fails.
func (a *agent) giveUp(err error) error {
	if a.res.ToolCalls == 0 {
		return err
	}
	a.res.Stopped = err.Error()
	a.res.Answer = "The task was not finished: the model could not be asked any more."
	return nil
}

// ask puts the conversation to the model and returns its message, made fit to be
// part of the next question.
func (a *agent) ask(withTools bool) (guest.Message, error) {
	args := guest.ChatArgs{Model: a.in.Model, MaxOutputTokens: outputTokens}
	if withTools {
		args.Tools = a.tools.chat
	}
	a.shorten()
	args.Messages = a.messages
	a.run.Progress("Step %d of at most %d: asking the model", a.res.Steps+1, a.in.MaxSteps)
	for try := 1; ; try++ {
		reply, err := a.run.Chat(args)
		if err == nil {
			a.res.Steps++
			a.res.CostMicroUSD += reply.CostMicroUSD
			return a.fit(reply.Message), nil
		}
		d, denied := guest.Denied(err)
		if !denied || try == mostTries || d.RetryAfterMS <= 0 {
			return guest.Message{}, err
		}
		wait := min(time.Duration(d.RetryAfterMS)*time.Millisecond, longestWait)
		a.run.Progress("The model is busy (%s); trying again in %s", d.Code, wait.Round(time.Second))
		if err := a.run.Sleep(wait); err != nil {
			a.run.Log(guest.LevelWarn, "not waited: %v", err)
		}
	}
}

var (
	goodID  = regexp.MustCompile(`^[A-Za-z0-9_.:|-]{1,128}$`)
	badName = regexp.MustCompile(`[^A-Za-z0-9_-]`)
)

// fit makes the model's message acceptable in the next question: calls get ids
// that differ, and names of the form that the host takes. A name that is no tool's
// stays none.
func (a *agent) fit(m guest.Message) guest.Message {
	m.Role, m.ToolCallID = "assistant", ""
	ids := map[string]bool{}
	for i := range m.ToolCalls {
		c := &m.ToolCalls[i]
		if !goodID.MatchString(c.ID) || ids[c.ID] {
			c.ID = fmt.Sprintf("call_%d_%d", a.res.Steps, i+1)
		}
		ids[c.ID] = true
		c.Name = badName.ReplaceAllString(c.Name, "_")
		if c.Name == "" || !isLetter(c.Name[0]) {
			c.Name = "x" + c.Name
		}
		c.Name = c.Name[:min(len(c.Name), 64)]
	}
	return m
}

func isLetter(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }

// perform makes one call and returns the text that the model gets for it.
func (a *agent) perform(c guest.ToolCall) string {
	t, ok := a.tools.byName[c.Name]
	if !ok {
		return fmt.Sprintf("Error: there is no tool %q. The tools are: %s.", c.Name, strings.Join(a.tools.names(), ", "))
	}
	args, why := arguments(c.Arguments)
	if why != "" {
		return "Error: the call was not made, because its arguments are wrong: " + why + ". Correct them and call again."
	}
	key := t.Operation + " " + string(args)
	if step := a.seen[key]; step > 0 {
		a.repeats++
		return fmt.Sprintf("Not done again: step %d made exactly this call, and its result is above. Use that result, or do something else.", step)
	}
	a.run.Progress("Step %d: %s", a.res.Steps, t.Operation)
	reply, err := a.tools.call(a.run, t, args)
	a.res.ToolCalls++
	record := callRecord{t.Operation, "ok"}
	text, again := "", false
	if d, denied := guest.Denied(err); denied {
		record.Outcome = string(d.Code)
		text, again = refusal(d)
	} else if err != nil {
		record.Outcome = "error"
		text = "Error: " + cut(err.Error(), 1000)
	} else {
		text = asData(t.Operation, show(reply))
	}
	if !again {
		a.seen[key] = a.res.Steps
	}
	if len(a.res.Calls) < 200 {
		a.res.Calls = append(a.res.Calls, record)
	}
	return text
}

// refusal tells the model of a denial, and reports whether the same call may be
// tried again.
func refusal(d *abi.Denial) (text string, again bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "Refused. code: %s. reason: %s.", d.Code, strings.TrimSuffix(d.Reason, "."))
	if d.Remedy != "" {
		fmt.Fprintf(&b, " remedy: %s.", strings.TrimSuffix(d.Remedy, "."))
	}
	switch d.Effect {
	case abi.OutcomeSent:
		b.WriteString(" It was carried out before the failure.")
	case abi.OutcomeMay:
		b.WriteString(" It may have been carried out.")
	default:
		b.WriteString(" Nothing was done.")
		again = d.RetryAfterMS > 0 || d.Code == abi.Upstream || d.Code == abi.Timeout
	}
	if again {
		b.WriteString(" You may try once more.")
	} else {
		b.WriteString(" Do not repeat this call; go another way, or tell the user.")
	}
	return b.String(), again
}

// shorten leaves out the oldest tool results while the conversation is too long
// for one request.
func (a *agent) shorten() {
	total := 0
	for _, m := range a.messages {
		total += size(m)
	}
	const gone = "(This result was left out to save space. Call the tool with other arguments if you need a part of it.)"
	for i := range a.messages {
		if total <= mostMessages {
			return
		}
		m := &a.messages[i]
		if m.Role == "tool" && len(m.Content) > len(gone) {
			total -= len(m.Content) - len(gone)
			m.Content = gone
		}
	}
}

func size(m guest.Message) int {
	n := len(m.Content)
	for _, c := range m.ToolCalls {
		n += len(c.Arguments)
	}
	return n
}
