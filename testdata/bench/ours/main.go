// Command ours measures monroe on the machine at hand, each figure beside a peer
// that was measured in the same run:
//
//	go run ./testdata/bench/ours -peers testdata/bench/peers
//
// It prints one JSON object a line. The real thing is measured: real workers, the
// real broker, store and runner; only the outside world is a fake that does nothing.
//
// It knows how to time. It must not know a shortcut that a workspace does not take.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := measure(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ours:", err)
		os.Exit(1)
	}
}

// Line is one figure.
type Line struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	N       int     `json:"n"`
	Peer    string  `json:"peer,omitempty"`
	PeerP50 float64 `json:"peer_p50,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
	Target  string  `json:"target,omitempty"`
	Met     *bool   `json:"met,omitempty"`
}

// bench is one invocation.
type bench struct {
	dir     string
	spawner *spawn.Spawner
	guest   []byte // testdata/guests/bench with its manifest
	dozer   []byte // testdata/guests/dozer with its manifest
	peers   map[string]Line
	enc     *json.Encoder
	monroed string // the program
	runs    int    // how many are suspended
}

func measure(ctx context.Context, out io.Writer) (err error) {
	parent := flag.String("dir", "", "where to write; the file system counts, and a tmpfs measures nothing")
	peers := flag.String("peers", "testdata/bench/peers", "folder of the peers' module; empty leaves them out")
	only := flag.String("only", "", "run one group alone: worker, engines, layers, parts, leases, decide, first, calls, effects, replay, records, suspended")
	b := &bench{peers: map[string]Line{}, enc: json.NewEncoder(out)}
	flag.StringVar(&b.monroed, "monroed", "bin/monroed", "the daemon that suspends runs")
	flag.IntVar(&b.runs, "runs", 10_000, "how many runs it suspends")
	flag.Parse()
	if b.dir, err = os.MkdirTemp(*parent, "monroe-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if *peers != "" {
		if err := b.runPeers(ctx, *peers); err != nil {
			return fmt.Errorf("peers: %w", err)
		}
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	defer b.spawner.Close() //nolint:errcheck // the process ends
	for _, g := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"worker", b.worker}, {"engines", b.engines}, {"layers", b.layers}, {"parts", b.parts}, {"leases", b.leases}, {"decide", b.decide}, {"first", b.within(b.firstCall)}, {"calls", b.within(b.mediatedCalls)}, {"effects", b.within(b.effects)}, {"replay", b.replay}, {"records", b.records}, {"suspended", b.suspended},
	} {
		if *only == "" || *only == g.name {
			if err := g.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	return nil
}

// runPeers measures the peers and repeats their lines.
func (b *bench) runPeers(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "run", ".", "-dir", b.dir)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var l Line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return err
		}
		b.peers[l.Name] = l
		if err := b.enc.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

// build makes the worker and the guest.
func (b *bench) build(ctx context.Context) error {
	program, err := spawntest.Build(ctx, b.dir, spawntest.Worker)
	if err != nil {
		return err
	}
	if b.spawner, err = spawn.New(program, false); err != nil {
		return err
	}
	guests := filepath.Join(b.dir, "guests")
	cmd := exec.CommandContext(ctx, "go", "run", "./guest/build", "-o", guests, "./testdata/guests/bench", "./testdata/guests/dozer")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	b.guest, err = os.ReadFile(filepath.Join(guests, "bench.wasm"))
	if err != nil {
		return err
	}
	b.dozer, err = os.ReadFile(filepath.Join(guests, "dozer.wasm"))
	return err
}

// peer is what a figure is held against.
type peer struct {
	name string
	p50  float64
}

// of is a peer's line, times a factor.
func (b *bench) of(name, shown string) (peer, error) {
	l, ok := b.peers[name]
	if !ok && len(b.peers) > 0 {
		return peer{}, fmt.Errorf("no peer is called %s", name)
	}
	return peer{shown, l.P50}, nil
}

// at is a percentile of durations in a unit.
func at(samples []time.Duration, percent int, unit time.Duration) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return round(float64(s[(len(s)-1)*percent/100]) / float64(unit))
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }

// number prints a single figure. most is the target, none if it is negative.
func (b *bench) number(name, unit string, value, most float64) error {
	l := Line{Name: name, Unit: unit, P50: round(value), P99: round(value), N: 1}
	if most >= 0 {
		met := value <= most
		l.Target, l.Met = fmt.Sprintf("<= %g", most), &met
	}
	return b.enc.Encode(l)
}

// atLeast prints a single figure that should be no less than least.
func (b *bench) atLeast(name, unit string, value, least float64) error {
	met := value >= least
	return b.enc.Encode(Line{Name: name, Unit: unit, P50: round(value), P99: round(value), N: 1, Target: fmt.Sprintf(">= %g", least), Met: &met})
}

// report prints a figure. most is the target in the line's unit, or for a ratio if
// relative; 0 means that there is none.
func (b *bench) report(name string, unit time.Duration, samples []time.Duration, p peer, most float64, relative bool) error {
	if len(samples) == 0 {
		return fmt.Errorf("%s: nothing was measured", name)
	}
	l := Line{Name: name, Unit: map[time.Duration]string{time.Microsecond: "us", time.Millisecond: "ms"}[unit], P50: at(samples, 50, unit), P99: at(samples, 99, unit), N: len(samples)}
	if p.p50 > 0 {
		l.Peer, l.PeerP50, l.Ratio = p.name, round(p.p50), round(l.P50/p.p50)
	}
	if most > 0 {
		value, what := l.P50, "p50"
		if relative {
			value, what = l.Ratio, "ratio"
		}
		met := value <= most
		l.Target, l.Met = fmt.Sprintf("%s <= %g", what, most), &met
	}
	return b.enc.Encode(l)
}
