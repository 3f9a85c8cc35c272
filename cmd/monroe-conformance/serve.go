package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/conformance"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// A server is this repository's host as the kit sees it: confined workers, the frames
// of package wire, the readers of package abi, and what package grant decides.
type server struct {
	in     *bufio.Reader
	out    io.Writer
	spawn  *spawn.Spawner
	engine string
}

// errDiverged is a request that differs from the recorded one.
var errDiverged = &spawn.FaultError{Fault: wire.Fault{Code: conformance.FaultDiverged, Message: "the guest asked for something else than was recorded"}}

func serve(ctx context.Context, in io.Reader, out io.Writer, worker string, insecure bool) error {
	s, err := spawn.New(worker, insecure)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // the workers are gone either way
	srv := &server{in: bufio.NewReaderSize(in, 64<<10), out: out, spawn: s}
	for {
		m, err := conformance.ReadLine(srv.in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := srv.answer(ctx, m)
		if f := new(spawn.FaultError); errors.As(err, &f) {
			answer, err = conformance.Message{Is: "fault", Code: string(f.Code), Message: f.Message}, nil
		}
		if err != nil {
			return err
		}
		if err := conformance.WriteLine(out, answer); err != nil {
			return err
		}
	}
}

func (s *server) answer(ctx context.Context, m conformance.Message) (conformance.Message, error) {
	switch m.Do {
	case "hello":
		return conformance.Message{Is: "hello", Protocol: conformance.Protocol, Name: "monroe"}, nil
	case "compile":
		dir, err := s.compile(ctx, m.Module)
		_ = os.RemoveAll(dir)
		return conformance.Message{Is: "compiled", Engine: s.engine}, err
	case "run":
		dir, err := s.compile(ctx, m.Module)
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
		if err != nil {
			return conformance.Message{}, err
		}
		return s.run(ctx, dir, m)
	case "read":
		digest, _, denial := abi.ReadRequest(m.Request)
		r := conformance.Message{Is: "read", Fingerprint: digest.String()}
		if denial != nil {
			r.Code, r.Message = string(denial.Code), denial.Reason
		}
		return r, nil
	case "manifest":
		r := conformance.Message{Is: "manifest"}
		if _, err := abi.ParseManifest(m.Manifest); err != nil {
			r.Code, r.Message = string(abi.Invalid), err.Error()
		}
		return r, nil
	case "decide":
		return decide(m)
	case "covers":
		return conformance.Message{Is: "covers", Covers: abi.Pattern(m.Pattern).Covers(m.Resource)}, nil
	}
	return conformance.Message{}, fmt.Errorf("the kit says %q, which protocol %d does not have", m.Do, conformance.Protocol)
}

// compile leaves the compiled module in a directory of its own.
func (s *server) compile(ctx context.Context, module []byte) (string, error) {
	dir, err := os.MkdirTemp("", "monroe-conformance-")
	if err != nil {
		return "", err
	}
	c, err := s.spawn.Compile(ctx, module, dir)
	if err == nil {
		s.engine = c.Engine
	}
	return dir, err
}

// A game is one run: the worker, the kit, and what was recorded.
type game struct {
	*server
	p    *spawn.Process
	past []conformance.Past
	seen int
	log  []byte
}

// run plays one run, and kills the worker when its running time is over.
func (s *server) run(ctx context.Context, dir string, m conformance.Message) (conformance.Message, error) {
	limits := abi.DefaultLimits()
	if m.Limits != nil {
		limits = m.Limits.Or(limits).Min(limits)
	}
	p, err := s.spawn.Spawn(ctx, spawn.ModeRun, dir, limits.CPU)
	if err != nil {
		return conformance.Message{}, err
	}
	defer p.Close() //nolint:errcheck // the outcome is known by then
	g := &game{server: s, p: p, past: m.Past}
	start := wire.Start{Limits: limits, Seed: m.Seed, TimeNS: m.TimeNS, Past: uint32(len(m.Past))}
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_ = g.open(start, m.Input) // its errors show in play, too
	}()
	answer, err := g.play(limits.Wall)
	p.Kill() // the writer may be blocked
	ended := p.Wait()
	<-wrote
	if errors.Is(err, errWall) || errors.Is(ended, spawn.ErrCPULimit) {
		return conformance.Message{Is: "fault", Code: conformance.FaultKilled}, nil
	}
	if err == nil && g.seen < len(g.past) && answer.Is != "fault" {
		err = errDiverged
	}
	if v := p.Violations(); err == nil && len(v) > 0 {
		err = fmt.Errorf("the worker made a forbidden system call: %v", v)
	}
	answer.Log = g.log
	return answer, err
}

// open is what precedes the calls.
func (g *game) open(start wire.Start, input []byte) error {
	err := wire.WriteFrame(g.p.Conn, wire.KindStart, wire.EncodeJSON(start))
	if err == nil {
		err = wire.WriteFrame(g.p.Conn, wire.KindInput, input)
	}
	for i, r := range g.past {
		if err == nil {
			err = wire.WriteFrame(g.p.Conn, wire.KindPast, wire.AppendReply(nil, uint32(i)+1, r.AtNS), r.Reply)
		}
	}
	return err
}

var errWall = errors.New("the running time is over")

// play serves the worker until it ends. Waiting for the kit is not running time.
func (g *game) play(wall time.Duration) (conformance.Message, error) {
	over := make(chan struct{})
	timer := time.AfterFunc(wall, func() { close(over); g.p.Kill() })
	defer timer.Stop()
	for {
		kind, payload, err := wire.ReadFrame(g.p.Conn, wire.KindSeen, wire.KindCall, wire.KindLog, wire.KindDone, wire.KindFault)
		if err != nil {
			select {
			case <-over:
				return conformance.Message{}, errWall
			default:
				return conformance.Message{}, fmt.Errorf("the worker ended: %w; it printed: %s", err, g.p.Stderr())
			}
		}
		switch kind {
		case wire.KindLog:
			g.log = append(g.log, payload...)
		case wire.KindSeen:
			_, digest, err := wire.ParseSeen(payload)
			if err != nil {
				return conformance.Message{}, err
			}
			if g.seen >= len(g.past) || digest.String() != g.past[g.seen].Fingerprint {
				return conformance.Message{}, errDiverged
			}
			g.seen++
		case wire.KindCall:
			if !timer.Stop() {
				return conformance.Message{}, errWall
			}
			if err := g.relay(payload); err != nil {
				return conformance.Message{}, err
			}
			timer.Reset(wall)
		case wire.KindDone:
			status, result, err := wire.ParseDone(payload)
			return conformance.Message{Is: "done", Status: status, Result: result}, err
		default:
			var f wire.Fault
			err := json.Unmarshal(payload, &f)
			return conformance.Message{Is: "fault", Code: string(f.Code), Message: f.Message}, err
		}
	}
}

// relay gives a live call to the kit and its reply to the worker.
func (g *game) relay(payload []byte) error {
	seq, request, err := wire.ParseCall(payload)
	if err != nil {
		return err
	}
	if err := conformance.WriteLine(g.out, conformance.Message{Is: "call", Request: request}); err != nil {
		return err
	}
	m, err := conformance.ReadLine(g.in)
	if err != nil {
		return err
	}
	if m.Do != "reply" {
		return fmt.Errorf("the kit says %q instead of a reply", m.Do)
	}
	return wire.WriteFrame(g.p.Conn, wire.KindReply, wire.AppendReply(nil, seq, m.AtNS), m.Reply)
}
