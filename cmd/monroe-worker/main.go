// Command monroe-worker compiles or runs one WebAssembly guest in a process that
// has given up everything but one socket. monroed starts it; it is of no use by hand.
//
//	monroe-worker [--cpu 120s] [--memory bytes] [--parent pid] [--insecure-dev] run <dir>
//	monroe-worker [--cpu 20s]  [--memory bytes] [--parent pid] [--insecure-dev] compile <outdir>
//	monroe-worker [--without wall,…] canary <dir>
//	monroe-worker [--memory bytes] [--parent pid] [--insecure-dev] plugin <dir>
//	monroe-worker --engine
//
// It knows the order: confine, then read. It must not know hosts, connectors,
// credentials or the network; deps_test.go looks after that.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/confine"
	"github.com/getmonroe/monroe/sandbox/worker"
)

func main() {
	// Not by the environment, of which a worker has none. The memory limit makes the
	// collector work before the kernel does; threads beyond two help no guest.
	debug.SetMemoryLimit(1 << 30)
	runtime.GOMAXPROCS(2)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 after an orderly end, whatever the guest did, 1 if
// something failed or the host is gone, 2 for wrong arguments, wire.ExitUnconfined if the
// kernel lacks a part of the minimum.
func run(args []string, stdout, stderr io.Writer) int {
	var cfg confine.Config
	flags := flag.NewFlagSet("monroe-worker", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&cfg.CPU, "cpu", 0, "processor time, rounded up to seconds; 0 means no limit")
	flags.Int64Var(&cfg.Memory, "memory", 0, "bytes that may be writable; 0 means no limit")
	flags.IntVar(&cfg.Parent, "parent", 0, "process id that must be the parent")
	flags.BoolVar(&cfg.Insecure, "insecure-dev", false, "go on where the kernel cannot confine; for development only")
	without := flags.String("without", "", "walls to leave out, for a canary")
	engine := flags.Bool("engine", false, "print what runs of this worker are pinned to, and end")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *engine {
		fmt.Fprintln(stdout, sandbox.Fingerprint())
		return 0
	}
	if flags.NArg() != 2 {
		fmt.Fprintln(stderr, "monroe-worker: a mode (run or compile) and a directory are needed; this program is started by monroed")
		return 2
	}
	cfg.Mode, cfg.Dir = confine.Mode(flags.Arg(0)), flags.Arg(1)
	if *without != "" {
		cfg.Without = strings.Split(*without, ",")
	}
	if err := work(cfg, stderr); err != nil {
		fmt.Fprintln(stderr, "monroe-worker:", err)
		if errors.Is(err, confine.ErrUnsupported) {
			return wire.ExitUnconfined
		}
		return 1
	}
	return 0
}

func work(cfg confine.Config, stderr io.Writer) error {
	if cfg.Mode == confine.ModeRun || cfg.Mode == confine.ModeCompile {
		cfg.Files = worker.Files()
	}
	c, err := confine.Enter(cfg)
	if err != nil {
		return err
	}
	for _, m := range c.Missing() {
		fmt.Fprintln(stderr, "monroe-worker: INSECURE:", m)
	}
	// os.NewFile, unlike net.FileConn, asks the kernel nothing that the filter refuses.
	// Reads block: one guest waits for one answer, and a poller would add two system
	// calls to each.
	host := os.NewFile(wire.FD, "host")
	switch cfg.Mode {
	case confine.ModeCompile:
		err = worker.Compile(host, c)
	case confine.ModeCanary:
		err = worker.Canary(host, c)
	case confine.ModePlugin:
		err = worker.Launch(host, c)
	default:
		err = worker.Run(host, c)
	}
	if errors.Is(err, io.EOF) { // the host needs this worker no more
		return nil
	}
	return err
}
