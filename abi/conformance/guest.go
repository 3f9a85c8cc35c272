package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/abi"
)

// maxGuestCalls is after how many calls the kit refuses everything, so that a guest
// that never stops asking comes to an end.
const maxGuestCalls = 1000

// CheckGuest holds a guest to the clauses that bind guests, on a host that is taken
// to conform. Every request is answered with UNSUPPORTED, for which a guest must be
// ready (3.12). The guest must be accepted; its requests must be well formed; a second
// run and a run that is cut at each call must make the same requests and come to the
// same end. said gets one line for each finding that is good.
func CheckGuest(ctx context.Context, host []string, module, input []byte, said func(string)) error {
	h, err := Start(ctx, host...)
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // the finding is there by then
	m, err := h.ask(Message{Do: "compile", Module: module})
	if err != nil {
		return err
	}
	if m.Is != "compiled" {
		return fmt.Errorf("the module is refused (SPEC 2.1, 2.2, 4.1, 9): %s: %s", m.Code, m.Message)
	}
	said("it is accepted: imports, exports, manifest and profile (2.1, 2.2, 4.1, 9)")

	g := &guestRun{module: module, input: input}
	whole, err := g.play(h)
	if err != nil {
		return err
	}
	for i, request := range g.requests {
		if _, d := abi.DecodeRequest(request); d != nil {
			return fmt.Errorf("request %d is not well formed (SPEC 3.2): %s: %.200q", i+1, d.Reason, request)
		}
	}
	said(fmt.Sprintf("it makes %d requests, all well formed (3.2), and ends with: %s", len(g.requests), whole[len(whole)-1]))
	for cut := range len(g.requests) + 1 {
		again := &guestRun{module: module, input: input, past: g.record(cut)}
		lines, err := again.play(h)
		if err != nil {
			return err
		}
		if !slices.Equal(lines, whole[cut:]) {
			return fmt.Errorf("continued after %d recorded calls it does something else (SPEC 6.4)\n\twant %s\n\tgot %s", cut, strings.Join(whole[cut:], "\n\t     "), strings.Join(lines, "\n\t    "))
		}
	}
	said(fmt.Sprintf("a second run, and a run continued after each of %d calls, do the same (6.1, 6.4)", len(g.requests)))
	return nil
}

// A guestRun is one run of a guest under test.
type guestRun struct {
	module, input []byte
	past          []Past
	requests      [][]byte
}

const unsupported = `{"error":{"code":"UNSUPPORTED","reason":"the conformance kit answers nothing","effect":"none"}}`

func (g *guestRun) play(h *Host) ([]string, error) {
	v := &Vector{
		Module: func() []byte { return g.module }, Input: g.input, Past: g.past, TimeNS: 1_700_000_000_000_000_000,
		Answer: func(n int, request []byte) Answer {
			g.requests = append(g.requests, request)
			return answerTo(n + len(g.past))
		},
	}
	lines, err := h.play(v, 1)
	// What is printed during a replay is printed again: it is not the guest's doing.
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "log ") })
	if err == nil && len(g.requests) > maxGuestCalls {
		err = errors.New("it makes more than 1000 requests that are all refused")
	}
	return lines, err
}

func answerTo(n int) Answer {
	return Answer{Reply: unsupported, AtNS: 1_700_000_000_000_000_000 + int64(n)*1_000_000}
}

// record is what a host would have recorded of the first n calls.
func (g *guestRun) record(n int) []Past {
	var past []Past
	for i, request := range g.requests[:n] {
		a := answerTo(i + 1)
		past = append(past, Past{Fingerprint: abi.Fingerprint(request).String(), Reply: []byte(a.Reply), AtNS: a.AtNS})
	}
	return past
}
