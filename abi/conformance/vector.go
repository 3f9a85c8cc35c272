package conformance

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/abi"
)

// A Vector is one conversation with a host and the transcript that the SPEC owes to
// it. The zero values of its fields mean: an empty input, the host's own limits, a
// seed and a time of zero, nothing recorded, and {"ok":{}} as the answer to every call.
type Vector struct {
	Name    string
	Clauses string // of the SPEC, with spaces between

	// One of these says what is asked. A module is run, or only compiled; a manifest is
	// read, or a call of its skill decided.
	Module   func() []byte
	Compile  bool // the module must be accepted or refused; it is not run
	Request  []byte
	Manifest []byte
	Decide   *Decision
	Covers   [2]string // pattern, resource

	Input  []byte
	Limits abi.Limits
	Seed   byte // first byte of the seed
	TimeNS int64
	Past   []Past
	Answer func(n int, request []byte) Answer // n counts live calls from 1

	// Want is the transcript, one line for each thing that the host says:
	//
	//	compiled
	//	call "…"              a live request
	//	log "…"               what the guest printed, if anything
	//	done 0 "…"            status and result
	//	fault CODE
	//	read FINGERPRINT      of a request that is well formed
	//	read FINGERPRINT CODE of one that is not
	//	manifest, manifest INVALID
	//	covers, covers not
	//	decided, decided CODE  the call is carried out, or a person is asked; or it is refused
	//
	// Long bytes are given by length and hash. A * at the end stands for anything.
	Want []string
	// Again says what else has to hold where the bytes are the host's own choice:
	// another run with the same seed gives the same transcript, with another seed it does not.
	Again bool
}

// An Answer is a reply and its time stamp.
type Answer struct {
	Reply string
	AtNS  int64
}

// A Finding is the outcome of one vector.
type Finding struct {
	Vector *Vector
	Got    []string
	Err    error // nil: the host conforms
	lost   bool  // the host ended or said what it may not: it cannot go on
}

// Check holds a host to one vector.
func Check(h *Host, v *Vector) Finding {
	f := Finding{Vector: v}
	if f.Got, f.Err = h.play(v, v.Seed); f.Err != nil {
		f.lost = true
		return f
	}
	if !matches(f.Got, v.Want) {
		f.Err = fmt.Errorf("want\n\t%s\ngot\n\t%s", strings.Join(v.Want, "\n\t"), strings.Join(f.Got, "\n\t"))
		return f
	}
	if !v.Again {
		return f
	}
	same, err := h.play(v, v.Seed)
	other, err2 := h.play(v, v.Seed+1)
	switch {
	case err != nil || err2 != nil:
		f.Err, f.lost = errors.Join(err, err2), true
	case !slices.Equal(same, f.Got):
		f.Err = fmt.Errorf("the same run gives another transcript\n\t%s\nthan before\n\t%s", strings.Join(same, "\n\t"), strings.Join(f.Got, "\n\t"))
	case slices.Equal(other, f.Got):
		f.Err = fmt.Errorf("another seed gives the same transcript\n\t%s", strings.Join(f.Got, "\n\t"))
	}
	return f
}

func matches(got, want []string) bool {
	return slices.EqualFunc(got, want, func(g, w string) bool {
		if stem, ok := strings.CutSuffix(w, "*"); ok {
			return strings.HasPrefix(g, stem)
		}
		return g == w
	})
}

// command is what the kit says first.
func (v *Vector) command(seed byte) Message {
	switch {
	case v.Module != nil && v.Compile:
		return Message{Do: "compile", Module: v.Module()}
	case v.Module != nil:
		return Message{
			Do: "run", Module: v.Module(), Input: v.Input, Limits: &v.Limits,
			Seed: append([]byte{seed}, make([]byte, 31)...), TimeNS: v.TimeNS, Past: v.Past,
		}
	case v.Request != nil:
		return Message{Do: "read", Request: v.Request}
	case v.Decide != nil:
		return Message{Do: "decide", Manifest: v.Manifest, Decide: v.Decide}
	case v.Manifest != nil:
		return Message{Do: "manifest", Manifest: v.Manifest}
	}
	return Message{Do: "covers", Pattern: v.Covers[0], Resource: v.Covers[1]}
}

// play has the conversation and returns its transcript.
func (h *Host) play(v *Vector, seed byte) (lines []string, err error) {
	m, err := h.ask(v.command(seed))
	for n := 1; err == nil && m.Is == "call"; n++ {
		lines = append(lines, "call "+show(m.Request))
		a := Answer{Reply: `{"ok":{}}`}
		if v.Answer != nil {
			a = v.Answer(n, m.Request)
		}
		m, err = h.ask(Message{Do: "reply", Reply: []byte(a.Reply), AtNS: a.AtNS})
	}
	if err != nil {
		return lines, err
	}
	if len(m.Log) > 0 {
		lines = append(lines, "log "+show(m.Log))
	}
	last, err := ending(m)
	return append(lines, last), err
}

func ending(m Message) (string, error) {
	switch m.Is {
	case "compiled":
		return m.Is, nil
	case "done":
		return fmt.Sprintf("done %d %s", m.Status, show(m.Result)), nil
	case "fault":
		return "fault " + m.Code, nil
	case "read":
		return strings.TrimSpace("read " + m.Fingerprint + " " + m.Code), nil
	case "manifest":
		return strings.TrimSpace("manifest " + m.Code), nil
	case "decided":
		return strings.TrimSpace("decided " + m.Code), nil
	case "covers":
		if m.Covers {
			return "covers", nil
		}
		return "covers not", nil
	}
	return "", fmt.Errorf("the host says %q, which the protocol does not have here", m.Is)
}

// show writes bytes for a transcript.
func show(b []byte) string {
	if len(b) > 200 {
		return fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b))[:len(fmt.Sprint(len(b)))+7+8]
	}
	return fmt.Sprintf("%q", b)
}
