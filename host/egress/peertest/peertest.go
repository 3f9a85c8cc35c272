// Package peertest starts servers that others wrote, for tests to talk to.
// .ci/peers.sh installs them and prints the variables that name them; without one its
// test is skipped by name.
package peertest

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FreePort is a loopback address that was free a moment ago.
func FreePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Start runs a peer until the test ends and waits for the first answer of probe, for
// at most two minutes.
func Start(t *testing.T, probe string, command ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the test's context has killed it
	Await(t, probe)
}

// Await waits for the first answer of a peer, for at most two minutes.
func Await(t *testing.T, probe string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, probe, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := new(http.Client).Do(req); err == nil {
			_ = resp.Body.Close()
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not begin to answer", probe)
		case <-tick.C:
		}
	}
}

// Mailpit starts a mail server that others wrote, and returns where its web side and its
// SMTP side listen.
func Mailpit(t *testing.T) (web, smtp string) {
	t.Helper()
	command := os.Getenv("MONROE_MAILPIT")
	if command == "" {
		t.Skip("MONROE_MAILPIT is not set: install mailpit with .ci/peers.sh")
	}
	web, smtp = FreePort(t), FreePort(t)
	Start(t, "http://"+web+"/readyz", command, "--listen", web, "--smtp", smtp, "--disable-version-check", "--quiet")
	return web, smtp
}

// Aimock starts the OpenAI-compatible server with fixtures, which are its JSON, and
// returns its address. It takes the first fixture that matches and relaxes turn
// numbers, so the answer to a tool's result comes before the call of the tool.
func Aimock(t *testing.T, fixtures string) string {
	t.Helper()
	command := os.Getenv("MONROE_AIMOCK")
	if command == "" {
		t.Skip("MONROE_AIMOCK is not set: install aimock with .ci/peers.sh")
	}
	file := filepath.Join(t.TempDir(), "fixtures.json")
	if err := os.WriteFile(file, []byte(fixtures), 0o600); err != nil {
		t.Fatal(err)
	}
	address := FreePort(t)
	_, port, _ := net.SplitHostPort(address)
	argv := []string{command, "--host", "127.0.0.1", "-p", port, "-f", file, "--chunk-size", "12"}
	if strings.HasSuffix(command, ".js") {
		argv = append([]string{"node"}, argv...)
	}
	Start(t, "http://"+address+"/health", argv...)
	return address
}
