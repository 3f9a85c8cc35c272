// Command build compiles the built-in guests with the Go toolchain alone, joins
// their data segments so that they start faster, and attaches the manifest beside
// each to its module:
//
//	go run ./guest/build -o bin/guests
//	go run ./guest/build -o bin/guests ./my/skill    # any other guest in Go
//	go run ./guest/build -o out.wasm -attach manifest.json in.wasm
//
// The last form is for a module that another toolchain compiled.
//
// A guest is a folder with a main package and a manifest.json; its module is
// named after the manifest. What did not change is not linked again.
//
// It knows how a guest is compiled. It must not know what a guest does.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/getmonroe/monroe/abi"
)

// guests are built when no folder is named.
func guests() []string { return []string{"./guest/skills/digest", "./guest/agents/assistant"} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(doMain(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func doMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "bin/guests", "folder that the modules are written to; with -attach, the file")
	manifest := flags.String("attach", "", "only attach this manifest to the module named as argument")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	dirs := flags.Args()
	if *manifest != "" {
		if len(dirs) != 1 {
			fmt.Fprintln(stderr, "build: -attach takes one module")
			return 2
		}
		module, err := attach(*manifest, dirs[0], *out)
		return report(stdout, stderr, dirs[0], *out, module, err)
	}
	if len(dirs) == 0 {
		dirs = guests()
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		fmt.Fprintln(stderr, "build:", err)
		return 1
	}
	for _, dir := range dirs {
		path, module, err := build(ctx, dir, *out)
		if code := report(stdout, stderr, dir, path, module, err); code != 0 {
			return code
		}
	}
	return 0
}

// report tells of one module and returns the exit code.
func report(stdout, stderr io.Writer, from, path string, module []byte, err error) int {
	if err != nil {
		fmt.Fprintf(stderr, "build: %s: %v\n", from, err)
		return 1
	}
	fmt.Fprintf(stdout, "%s  %d bytes  sha256 %x\n", path, len(module), sha256.Sum256(module))
	return 0
}

// attach writes a module that was compiled elsewhere together with its manifest.
func attach(manifestPath, in, out string) ([]byte, error) {
	manifest, err := os.ReadFile(manifestPath)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(in)
	if err != nil {
		return nil, err
	}
	module, err := abi.AttachManifest(b, manifest)
	if err != nil {
		return nil, err
	}
	return module, replace(out, module)
}

// build compiles one guest and writes its module.
func build(ctx context.Context, dir, out string) (path string, module []byte, err error) {
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return "", nil, err
	}
	m, err := abi.ParseManifest(manifest)
	if err != nil {
		return "", nil, err
	}
	bare, err := filepath.Abs(filepath.Join(out, "."+m.Name+".bare")) // kept, so that go sees what is unchanged
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-buildmode=c-shared", "-o", bare, ".")
	cmd.Dir = dir
	cmd.Env = environ()
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Run(); err != nil {
		return "", nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(text.String()))
	}
	b, err := os.ReadFile(bare)
	if err != nil {
		return "", nil, err
	}
	if b, err = mergeData(b); err != nil {
		return "", nil, err
	}
	if module, err = abi.AttachManifest(b, manifest); err != nil {
		return "", nil, err
	}
	if len(module) > abi.MaxModule {
		return "", nil, fmt.Errorf("the module has %d bytes, a host accepts %d", len(module), abi.MaxModule)
	}
	path = filepath.Join(out, m.Name+".wasm")
	return path, module, replace(path, module)
}

// environ is ours without what would make the module depend on this machine.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOFLAGS", "GOWASM", "GOEXPERIMENT", "GOOS", "GOARCH", "CGO_ENABLED", "GODEBUG":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
}

// replace writes the file whole or not at all, and not where it is the same: a
// newer time stamp would make others work again.
func replace(path string, b []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".module-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(tmp.Name()))
	}
	return err
}
