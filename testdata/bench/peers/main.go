// Command peers measures what monroe is compared with, on the machine at hand:
// the Extism Go SDK with a Go guest, a bare SQLite commit, and a bare fdatasync.
// It prints one JSON object a line:
//
//	{"name":"extism_start_to_first_host_call","unit":"us","p50":…,"p99":…,"n":…}
//
// It is a module of its own, so that a peer's dependencies are nobody else's.
//
// It knows how a peer is used by its own documentation. It must not know monroe.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := measure(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, out io.Writer) (err error) {
	parent := flag.String("dir", "", "where to write; the file system counts, and a tmpfs measures nothing")
	starts := flag.Int("starts", 100, "instances of the guest")
	calls := flag.Int("calls", 20_000, "host calls of one instance")
	commits := flag.Int("commits", 1000, "commits, and appends")
	flag.Parse()
	dir, err := os.MkdirTemp(*parent, "peers-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	first, trips, err := extismGuest(ctx, dir, *starts, *calls)
	if err != nil {
		return fmt.Errorf("extism: %w", err)
	}
	commit, err := bareCommit(ctx, dir, *commits)
	if err != nil {
		return fmt.Errorf("sqlite: %w", err)
	}
	sync, err := bareFdatasync(dir, *commits)
	if err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	enc := json.NewEncoder(out)
	return errors.Join(
		enc.Encode(summary("extism_start_to_first_host_call", first)),
		enc.Encode(summary("extism_host_call_round_trip_100B", trips)),
		enc.Encode(summary("bare_commit", commit)),
		enc.Encode(summary("bare_fdatasync", sync)),
	)
}

// Line is one line of output, in microseconds.
type Line struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	N    int     `json:"n"`
}

func summary(name string, samples []time.Duration) Line {
	slices.Sort(samples)
	at := func(percent int) float64 {
		if len(samples) == 0 {
			return 0
		}
		return float64(samples[(len(samples)-1)*percent/100].Nanoseconds()) / 1000
	}
	return Line{name, "us", at(50), at(99), len(samples)}
}
