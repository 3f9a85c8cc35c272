// Command engine times the engine that it was built with, wazero or with the tag
// wasmtime the other, on a module that was compiled before, and prints a timing.Times:
//
//	engine <folder of the compiled module> <starts> <calls>
//
// testdata/bench/ours runs it, once for each engine and by turns.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/worker"
	"github.com/getmonroe/monroe/testdata/bench/timing"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("a folder, how many starts and how many calls are needed")
	}
	starts, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	calls, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	code, err := os.ReadFile(filepath.Join(args[0], worker.ModuleFile))
	if err != nil {
		return err
	}
	compiled, err := os.ReadFile(filepath.Join(args[0], worker.CodeFile))
	if err != nil {
		return err
	}
	engine, err := sandbox.NewEngine(sandbox.EngineConfig{Compiled: compiled})
	if err != nil {
		return err
	}
	defer engine.Close() //nolint:errcheck // frees memory only
	module, err := engine.Compile(code)
	if err != nil {
		return err
	}
	t, err := timing.Guest(module, starts, calls)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(t)
}
