package spawn_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// TestCompileWall: a compilation that uses no processor and never ends is ended, and is
// the author's to change.
func TestCompileWall(t *testing.T) { forkers(t, exerciseCompileWall) }

func exerciseCompileWall(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, badPath, true)
	s.CompileWall = 1500 * time.Millisecond // in which it has to start, too
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := s.Compile(ctx, []byte("a module"), named(t, "insecure stalls"))
	var f *spawn.FaultError
	if !errors.As(err, &f) || f.Code != wire.FaultTooLarge || !strings.Contains(f.Message, "longer than 1.5s") {
		t.Errorf("it came to %v", err)
	}
	p, err := s.Spawn(ctx, spawn.ModeCompile, named(t, "insecure stalls"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	select {
	case <-p.Done():
		if err := p.Wait(); !errors.Is(err, spawn.ErrWallLimit) {
			t.Errorf("it ended with %v", err)
		}
	case <-ctx.Done():
		t.Error("it lives")
	}
}

// TestCompileWallByDefault: what holds where nobody says otherwise.
func TestCompileWallByDefault(t *testing.T) {
	if spawn.CompileWall <= 0 || spawn.CompileWall >= 20*time.Second {
		t.Errorf("a hostile upload would take %v", spawn.CompileWall)
	}
}

// TestRootHostileFlood: there is a bound on the workers that live, and room again when
// one has ended.
func TestRootHostileFlood(t *testing.T) {
	flood(t, newHostile(t, spawn.ServerConfig{Program: workerPath, MaxLive: 3}), 3, "dir")
}

// TestRootHostileFloodByDefault: as many workers as a server allows write without an end
// to a daemon that does not read, and the server answers all the same.
func TestRootHostileFloodByDefault(t *testing.T) {
	h := newHostile(t, spawn.ServerConfig{Program: badPath})
	dir := named(t, "floods without an end")
	opened(t, dir)
	f, err := os.Open(dir)
	h.put("floods", f, err)
	flood(t, h, spawn.MaxLive, "floods")
}

// flood starts as many workers as there may be and asks for more; dir names their
// directory.
func flood(t *testing.T, h *hostile, most int, dir string) {
	files := []string{"control", "stream", "pipe", dir}
	began := time.Now()
	var controls []*net.UnixConn
	for range most {
		answer, control := h.send(goodCanary, files...)
		if !strings.Contains(answer, `"pid":`) {
			t.Fatalf("worker %d: %s", len(controls), answer)
		}
		controls = append(controls, control)
	}
	each := time.Since(began) / time.Duration(most)
	for range 20 {
		if answer, _ := h.send(goodCanary, files...); !strings.Contains(answer, fmt.Sprintf("%d workers already", most)) {
			t.Fatalf("beyond the bound: %s", answer)
		}
	}
	if _, err := controls[0].Write([]byte{1}); err != nil { // a byte is a kill
		t.Fatal(err)
	}
	buf := make([]byte, 1<<10)
	n, err := controls[0].Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), `"ended":true`) {
		t.Fatalf("%s, %v", buf[:n], err)
	}
	if answer, _ := h.send(goodCanary, files...); !strings.Contains(answer, `"pid":`) {
		t.Errorf("there is no room again: %s", answer)
	}
	t.Logf("%d workers, %v each", most, each)
}

// TestCompileMemory: a compilation that needs more memory than it may have is the
// author's to change, whichever wall ended it.
func TestCompileMemory(t *testing.T) { forkers(t, exerciseCompileMemory) }

func exerciseCompileMemory(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, badPath, true)
	s.Memory = 160 << 20
	for name, how := range map[string]string{"the host ends it": "insecure devours", "the kernel gives no more": "insecure exhausts"} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Compile(t.Context(), []byte("a module"), named(t, how))
			var f *spawn.FaultError
			if !errors.As(err, &f) || f.Code != wire.FaultTooLarge || !strings.Contains(f.Message, "more than 160 MiB; split") {
				t.Errorf("it came to %v", err)
			}
		})
	}
}
