// Package spawntest lets tests use real workers: it builds them, and it is a small
// host that answers a run.
//
// It knows the frames of a run. It must not know policy, and nothing but tests may
// import it.
package spawntest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// Worker is the package of the real worker.
const Worker = "github.com/getmonroe/monroe/cmd/monroe-worker"

// Build builds a program without cgo and returns its path. dir has to be readable by
// whoever the worker is to run as. extra goes into the environment of the go command.
func Build(ctx context.Context, dir, pkg string, extra ...string) (string, error) {
	path := filepath.Join(dir, filepath.Base(pkg))
	return path, build(ctx, path, pkg, nil, extra)
}

// Main builds programs, each by its package, where another user can read them, and runs
// the tests. It is for TestMain, which exits with what it returns.
func Main(m interface{ Run() int }, programs map[*string]string) int {
	dir, err := os.MkdirTemp("", "monroe-spawntest-")
	if err == nil {
		defer os.RemoveAll(dir) //nolint:errcheck // what is left is in a temporary directory
		err = os.Chmod(dir, 0o755)
	}
	for path, pkg := range programs {
		if err == nil {
			*path, err = Build(context.Background(), dir, pkg)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// BuildGuest builds a Go package as a guest, without its manifest.
func BuildGuest(ctx context.Context, dir, pkg string) ([]byte, error) {
	path := filepath.Join(dir, "guest.wasm")
	err := build(ctx, path, pkg, []string{"-ldflags=-s -w", "-buildmode=c-shared"}, []string{"GOOS=wasip1", "GOARCH=wasm"})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func build(ctx context.Context, path, pkg string, flags, extra []string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-o", path}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), extra...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// A Reply is an answer and the time stamp that moves the guest's clock.
type Reply struct {
	Body []byte
	At   int64
}

// A Script is a run as a test wants it.
type Script struct {
	Limits abi.Limits
	Seed   [32]byte
	TimeNS int64
	Input  []byte
	Past   []Reply
	// Answer answers live calls; nil echoes.
	Answer func(seq uint32, request []byte) Reply
}

// An Outcome is how a run ended.
type Outcome struct {
	Status int32
	Result []byte
	Fault  *wire.Fault // nil if the guest returned
	Seen   []abi.Digest
	Calls  [][]byte // live requests
	Log    []byte
}

// Play is a host: it serves the run of a worker that is ready, to its end.
func Play(p *spawn.Process, s Script) (*Outcome, error) {
	wrote := make(chan error, 1)
	go func() { wrote <- open(p, s) }()
	out, err := serve(p, s)
	if err != nil {
		p.Kill() // the writer may be blocked
	}
	return out, errors.Join(err, <-wrote)
}

func open(p *spawn.Process, s Script) error {
	start := wire.Start{Limits: s.Limits, Seed: s.Seed[:], TimeNS: s.TimeNS, Past: uint32(len(s.Past))}
	if err := wire.WriteFrame(p.Conn, wire.KindStart, wire.EncodeJSON(start)); err != nil {
		return err
	}
	if err := wire.WriteFrame(p.Conn, wire.KindInput, s.Input); err != nil {
		return err
	}
	for i, r := range s.Past {
		if err := wire.WriteFrame(p.Conn, wire.KindPast, wire.AppendReply(nil, uint32(i)+1, r.At), r.Body); err != nil {
			return err
		}
	}
	return nil
}

func serve(p *spawn.Process, s Script) (*Outcome, error) {
	out := &Outcome{}
	for {
		kind, payload, err := wire.ReadFrame(p.Conn, wire.KindSeen, wire.KindCall, wire.KindLog, wire.KindDone, wire.KindFault)
		if err != nil {
			return out, err
		}
		switch kind {
		case wire.KindSeen:
			seq, digest, err := wire.ParseSeen(payload)
			if err != nil || int(seq) != len(out.Seen)+1 {
				return out, fmt.Errorf("seen %d after %d: %w", seq, len(out.Seen), errors.Join(err))
			}
			out.Seen = append(out.Seen, digest)
		case wire.KindCall:
			if len(out.Seen) != len(s.Past) {
				return out, fmt.Errorf("a live call after %d of %d recorded ones", len(out.Seen), len(s.Past))
			}
			seq, request, err := wire.ParseCall(payload)
			if err != nil {
				return out, err
			}
			out.Calls = append(out.Calls, request)
			r := Reply{Body: request}
			if s.Answer != nil {
				r = s.Answer(seq, request)
			}
			if err := wire.WriteFrame(p.Conn, wire.KindReply, wire.AppendReply(nil, seq, r.At), r.Body); err != nil {
				return out, err
			}
		case wire.KindLog:
			out.Log = append(out.Log, payload...)
		case wire.KindDone:
			out.Status, out.Result, err = wire.ParseDone(payload)
			return out, err
		default:
			out.Fault = &wire.Fault{}
			return out, json.Unmarshal(payload, out.Fault)
		}
	}
}

// Attempt lets a canary try something and returns its answer.
func Attempt(p *spawn.Process, what string) (string, error) {
	if err := wire.WriteFrame(p.Conn, wire.KindInput, []byte(what)); err != nil {
		return "", err
	}
	_, answer, err := wire.ReadFrame(p.Conn, wire.KindLog)
	return string(answer), err
}
