// Command monroe-conformance holds hosts and guests to abi/SPEC.md.
//
//	monroe-conformance host [-transcript file] [-v] command [argument…]
//	monroe-conformance guest [-worker file] [-input file] module.wasm
//	monroe-conformance serve [-worker file] [-insecure-dev]
//	monroe-conformance list
//
// host runs every vector against a host that speaks the protocol of
// docs/conformance.md; serve is that protocol over this repository's own worker; guest
// runs a module there and holds it to the clauses that bind guests.
//
// It knows the protocol, how to start workers and what decides. It must not know the daemon.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/getmonroe/monroe/abi/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns the exit code: 0 if everything conforms, 1 if something does not, 2 for
// wrong arguments.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{""}
	}
	flags := flag.NewFlagSet("monroe-conformance "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	transcript := flags.String("transcript", "", "write what the host said to this file")
	verbose := flags.Bool("v", false, "name what passes, too")
	worker := flags.String("worker", beside("monroe-worker"), "worker program of the host serve")
	insecure := flags.Bool("insecure-dev", false, "serve even where the kernel cannot confine workers")
	input := flags.String("input", "", "file with the guest's input")
	if err := flags.Parse(args[1:]); err != nil {
		return 2
	}
	err := errors.New("use monroe-conformance host, guest, serve or list")
	switch {
	case args[0] == "list" && flags.NArg() == 0:
		for _, v := range conformance.Vectors() {
			fmt.Fprintf(stdout, "%-32s %s\n", v.Clauses, v.Name)
		}
		return 0
	case args[0] == "serve" && flags.NArg() == 0:
		err = serve(ctx, stdin, stdout, *worker, *insecure)
	case args[0] == "host" && flags.NArg() > 0:
		return checkHost(ctx, flags.Args(), *transcript, *verbose, stdout, stderr)
	case args[0] == "guest" && flags.NArg() == 1:
		err = checkGuest(ctx, flags.Arg(0), *worker, *input, *insecure, stdout)
	default:
		fmt.Fprintln(stderr, "monroe-conformance:", err)
		return 2
	}
	if err != nil {
		fmt.Fprintln(stderr, "monroe-conformance:", err)
		return 1
	}
	return 0
}

// beside is a program in the same directory as this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

func checkHost(ctx context.Context, command []string, transcript string, verbose bool, stdout, stderr io.Writer) int {
	var said bytes.Buffer
	passed, failed := 0, 0
	err := conformance.Run(ctx, command, func(f conformance.Finding) {
		fmt.Fprintf(&said, "# %s\n%s\n", f.Vector.Name, strings.Join(f.Got, "\n"))
		if f.Err != nil {
			failed++
			fmt.Fprintf(stdout, "FAIL %s (SPEC %s)\n%v\n", f.Vector.Name, f.Vector.Clauses, f.Err)
			return
		}
		passed++
		if verbose {
			fmt.Fprintf(stdout, "pass %s\n", f.Vector.Name)
		}
	})
	if err == nil && transcript != "" {
		err = os.WriteFile(transcript, said.Bytes(), 0o644)
	}
	if err != nil {
		failed++
		fmt.Fprintln(stderr, "monroe-conformance:", err)
	}
	fmt.Fprintf(stdout, "%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return 1
	}
	return 0
}

// checkGuest runs a module on this repository's own host.
func checkGuest(ctx context.Context, path, worker, input string, insecure bool, stdout io.Writer) error {
	module, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var in []byte
	if input != "" {
		if in, err = os.ReadFile(input); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	command := []string{self, "serve", "-worker", worker}
	if insecure {
		command = append(command, "-insecure-dev")
	}
	return conformance.CheckGuest(ctx, command, module, in, func(line string) { fmt.Fprintln(stdout, line) })
}
