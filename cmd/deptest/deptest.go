// Package deptest holds a program to what it may link.
//
// It knows the import graph. It must not know what a program does.
package deptest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Module is the path of this module.
const Module = "github.com/getmonroe/monroe/"

// Check fails the test if the package in the current directory links a banned
// package, cgo, or a module that deps.txt does not list. A banned package that does
// not exist any more fails too: the ban would be void. A new dependency is a line of
// deps.txt, so that it is reviewed; UPDATE=1 writes the file.
func Check(t *testing.T, banned ...string) {
	t.Helper()
	linked := list(t.Context(), t, "-deps", ".")
	for _, b := range banned {
		if len(list(t.Context(), t, b)) == 0 {
			t.Errorf("%s is banned but does not exist: correct the list", b)
		}
		for _, p := range linked {
			if p == b || strings.HasPrefix(p, b+"/") {
				t.Errorf("the program links %s", p)
			}
		}
	}
	if slices.Contains(linked, "runtime/cgo") {
		t.Error("the program links cgo")
	}
	golden(t, modules(t.Context(), t))
}

// list runs go list for a Linux build without cgo.
func list(ctx context.Context, t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(ctx, "go", append([]string{"list"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

func modules(ctx context.Context, t *testing.T) []string {
	t.Helper()
	all := list(ctx, t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
	slices.Sort(all)
	return slices.Compact(all)
}

func golden(t *testing.T, have []string) {
	t.Helper()
	text := strings.Join(have, "\n") + "\n"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("deps.txt", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text {
		t.Errorf("the modules that the program links are not those of deps.txt; if that is meant: UPDATE=1 go test\nlinked:\n%s\ndeps.txt:\n%s", text, want)
	}
}
