package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// cut takes one safety out of one file. The text has to be there exactly once: where
// the code has changed, the sabotage has to be thought about again.
type cut struct{ file, old, new string }

// cuts are the sabotages. Each takes out one of the things that a run's survival
// hangs on, and has to turn this program red.
func cuts() map[string][]cut {
	return map[string][]cut{
		// Whoever lost the lease goes on writing.
		"fence": {{
			"host/store/store.go",
			"if errors.Is(err, sql.ErrNoRows) || err == nil && epoch != s.epoch {\n\t\treturn renewed, ErrFenced\n\t}",
			"if errors.Is(err, sql.ErrNoRows) {\n\t\treturn renewed, nil\n\t}",
		}},
		// An attempt has no last moment.
		"not_after": {
			{"host/egress/perform.go", "if a.notAfter.IsZero() {", "if true {"},
			{"host/egress/perform.go", "if !a.notAfter.IsZero() {", "if false {"},
			{"host/egress/perform.go", "context.WithTimeout(ctx, a.plan.TimeLimit())", "context.WithTimeout(ctx, time.Hour)"},
		},
		// A repeated attempt is not known again.
		"key": {{
			"connectors/http/endpoint.go",
			"header = append(header, connectors.Header{Name: e.KeyHeader, Value: c.Key})", "_ = c.Key",
		}},
	}
}

func sabotages() []string { return slices.Sorted(maps.Keys(cuts())) }

// build builds the sabotaged daemon into a folder of its own, beside the programs of
// bin. The sources stay as they are: the compiler is given other ones.
func build(ctx context.Context, name, bin string) (dir string, err error) {
	list := cuts()[name]
	if list == nil {
		return "", fmt.Errorf("there is no sabotage %q", name)
	}
	if dir, err = os.MkdirTemp("", "mnr-sabotage-"); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	texts := map[string][]byte{}
	for _, c := range list {
		path, err := filepath.Abs(c.file)
		if err != nil {
			return "", err
		}
		text, ok := texts[path]
		if !ok {
			if text, err = os.ReadFile(path); err != nil {
				return "", err
			}
		}
		if n := bytes.Count(text, []byte(c.old)); n != 1 {
			return "", fmt.Errorf("sabotage %s: %s holds the text %d times, not once: %s", name, c.file, n, c.old)
		}
		texts[path] = bytes.Replace(text, []byte(c.old), []byte(c.new), 1)
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for path, text := range texts {
		to := filepath.Join(dir, fmt.Sprintf("%d.go", len(overlay.Replace)))
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return "", err
		}
		overlay.Replace[path] = to
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-overlay", file, "-o", filepath.Join(dir, "monroed"), "./cmd/monroed")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("sabotage %s: %w: %s", name, err, out)
	}
	var errs []error
	for _, p := range []string{"monroe", "monroe-worker", "guests"} {
		errs = append(errs, os.Symlink(filepath.Join(bin, p), filepath.Join(dir, p)))
	}
	return dir, errors.Join(errs...)
}
