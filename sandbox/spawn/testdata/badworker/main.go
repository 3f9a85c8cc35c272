//go:build linux

// Badworker misbehaves as the last element of its directory says. It exists for
// tests.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

func main() {
	if slices.Contains(os.Args, "--engine") { // so that it is seen that it runs in namespaces
		return
	}
	host := os.NewFile(wire.FD, "host")
	send := func(b []byte) { _, _ = host.Write(b) }
	ready := func(r wire.Ready) { _ = wire.WriteFrame(host, wire.KindReady, wire.EncodeJSON(r)) }
	good := wire.Ready{Protocol: wire.Version, Engine: "bad", Enforced: []string{"no_new_privs"}}
	dir, _ := os.Readlink("/proc/self/cwd") // the worker's directory is named after what it does
	switch filepath.Base(dir) {
	case "silent":
	case "exits":
		fmt.Fprintln(os.Stderr, "out of order \x1b[31m")
		os.Exit(3)
	case "garbage":
		send([]byte(strings.Repeat("garbage ", 100)))
	case "hands over a file":
		_ = unix.Sendmsg(wire.FD, []byte{wire.HandoverListener}, unix.UnixRights(0), nil, 0)
		ready(good)
	case "hands over two files":
		_ = unix.Sendmsg(wire.FD, []byte{wire.HandoverListener}, unix.UnixRights(0, 1), nil, 0)
		ready(good)
	case "hands over nothing":
		send([]byte{wire.HandoverNone})
		ready(good)
	case "claims a listener":
		send([]byte{wire.HandoverListener})
		ready(good)
	case "insecure silent":
		send([]byte{wire.HandoverNone})
	case "insecure giant":
		send([]byte{wire.HandoverNone, 0xff, 0xff, 0xff, 0xff, byte(wire.KindReady)})
	case "insecure other kind":
		send([]byte{wire.HandoverNone, 2, 0, 0, 0, byte(wire.KindCompiled), 0})
	case "insecure other protocol":
		send([]byte{wire.HandoverNone})
		ready(wire.Ready{Protocol: 99, Engine: "bad"})
	case "insecure nonsense":
		send([]byte{wire.HandoverNone, 3, 0, 0, 0, byte(wire.KindReady), '[', ']'})
	case "insecure fault":
		send([]byte{wire.HandoverNone})
		_ = wire.WriteFrame(host, wire.KindFault, wire.EncodeJSON(wire.Fault{Code: wire.FaultInternal, Message: "no module"}))
	case "insecure floods":
		send([]byte{wire.HandoverNone})
		for range 1000 {
			_, _ = os.Stderr.WriteString(strings.Repeat("flood\n", 1000))
		}
		ready(good)
	case "insecure stalls":
		send([]byte{wire.HandoverNone})
		ready(good)
	case "insecure devours", "insecure exhausts":
		send([]byte{wire.HandoverNone})
		ready(good)
		if filepath.Base(dir) == "insecure exhausts" {
			_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: 128 << 20, Max: 128 << 20})
		}
		var held [][]byte
		for {
			more := make([]byte, 1<<20)
			for i := 0; i < len(more); i += 4096 {
				more[i] = 1
			}
			held = append(held, more)
		}
	case "floods without an end":
		go func() {
			for {
				_, _ = os.Stderr.WriteString(strings.Repeat("flood\n", 1000))
			}
		}()
		for {
			send([]byte(strings.Repeat("flood ", 1000)))
		}
	}
	// Stuck: it neither reads nor ends.
	_ = unix.Pause()
}
