package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// heard is what was printed so far; two may touch it.
type heard struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(b)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.String()
}

// TestALongStepSaysThatItGoesOn, and nothing once it is over.
func TestALongStepSaysThatItGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said heard
		done := (&env{err: &said}).busy("checking and compiling")
		time.Sleep(busyEvery - time.Millisecond)
		synctest.Wait()
		if said.String() != "" {
			t.Errorf("a short step said %q", said.String())
		}
		time.Sleep(busyEvery + time.Millisecond)
		synctest.Wait()
		if want := "checking and compiling, 5s so far …\nchecking and compiling, 10s so far …\n"; said.String() != want {
			t.Errorf("%q", said.String())
		}
		done()
		time.Sleep(time.Minute)
		if n := strings.Count(said.String(), "\n"); n != 2 {
			t.Errorf("%d lines", n)
		}
	})
}
