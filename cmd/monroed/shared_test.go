package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Bin holds the programs under test: monroed, monroe, monroe-worker and the built-in
// guests. MONROE_BIN names one that was built before.
var Bin = os.Getenv("MONROE_BIN")

// Scratch is for what several tests use. TestMain makes and removes it.
var Scratch string

// built is held while a plugin is built.
var built sync.Mutex

// BuildPlugin builds one of testdata/plugins as third parties do, each in a module of its
// own, and returns its path and digest. The next one with the same flags is the same file.
func BuildPlugin(ctx context.Context, name, flags string) (path, digest string, err error) {
	built.Lock()
	defer built.Unlock()
	path = filepath.Join(Scratch, fmt.Sprintf("%s-%x", name, sha256.Sum256([]byte(flags))))
	b, err := os.ReadFile(path)
	if err != nil {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags="+flags, "-o", path, ".")
		cmd.Dir = filepath.Join("..", "..", "testdata", "plugins", name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("%w\n%s", err, out)
		}
		b, err = os.ReadFile(path)
	}
	return path, fmt.Sprintf("%x", sha256.Sum256(b)), err
}
