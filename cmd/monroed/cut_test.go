package main_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxKilledInTheMiddleOfSending kills the daemon while a blind request is on its
// way: after its header, inside its body, and before its answer. Nobody can tell what
// the other side made of it: a person is asked, also after the recovery was killed, and
// nothing is sent a second time.
func TestLinuxKilledInTheMiddleOfSending(t *testing.T) {
	t.Parallel() // most of it is waiting
	const size = 200 << 10
	for name, reads := range map[string]int{"after the header": 0, "inside the body": size / 2, "before the answer": size} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var connections atomic.Int32
			reached, dead := make(chan string, 1), make(chan struct{})
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if connections.Add(1) > 1 {
						_ = c.Close()
						continue
					}
					_ = c.(*net.TCPConn).SetReadBuffer(4 << 10) // so that the rest stays with the daemon
					var got bytes.Buffer
					one := make([]byte, 1)
					for !bytes.HasSuffix(got.Bytes(), []byte("\r\n\r\n")) {
						if _, err := c.Read(one); err != nil {
							break
						}
						got.Write(one)
					}
					_, err = io.CopyN(&got, c, int64(reads))
					if err != nil {
						got.Reset()
					}
					reached <- got.String()
					<-dead
					_ = c.Close()
				}
			}()
			at := "http://" + l.Addr().String()
			d := newDaemon(t, fmt.Sprintf("http:\n  private: [%q]\n  endpoints: [{name: blind, timeout: 4s, url: %q}]\n", l.Addr(), at+"/**"))
			d.up()
			body := strings.Repeat("0123456789", size/10)
			d.push(does("poster", `"send"`, []abi.OperationUse{{Operation: "http.blind", Effect: abi.EffectSend, Resource: "http:**"}},
				fmt.Sprintf(`{"op":"send","v":1,"args":{"operation":"http.blind","args":{"url":"%s/x","body":%q,"content_type":"text/plain"}}}`, at, body)))
			d.apply(d.config(`skill: poster, operation: http.blind, resource: "http:**"`))
			id := d.start("poster", "")
			a := d.asked(id)
			if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
				t.Fatal(err)
			}
			got := <-reached
			d.kill()
			close(dead)
			if !strings.HasPrefix(got, "POST /x HTTP/1.1\r\n") || !strings.HasSuffix(got, body[:reads]) {
				t.Fatalf("arrived before the crash: %.100q", got)
			}
			unknown := func() {
				t.Helper()
				for end := time.Now().Add(limit); ; {
					if v := d.run(id); v.State == host.StateWaiting && v.Wait == host.WaitUnknown {
						return
					} else if v.State.Ended() || time.Now().After(end) {
						t.Fatalf("the run is %s %s: %s", v.State, v.Wait, v.Failure)
					}
				}
			}
			d.up()
			d.kill() // in its recovery
			d.up()
			unknown()
			d.kill()
			d.up()
			unknown()
			if n := connections.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
			resolve := func(status int, says string, args ...string) {
				t.Helper()
				out, got := cli(t, append([]string{"--home", d.home, "-w", "team", "runs", "resolve", string(id)}, args...)...)
				if got != status || !strings.Contains(out, says) {
					t.Fatalf("resolve %v: status %d, want %d and %q in\n%s", args, got, status, says, out)
				}
			}
			resolve(1, "RUN_OTHER_CALL", "--happened", "--call", "2")
			unknown()
			resolve(0, string(id), "--happened", "--call", "1")
			resolve(1, "RUN_NOT_IN_DOUBT", "--did-not-happen")
			r := answers(t, d.finished(id))
			if len(r) != 1 || string(r[0].OK) != `{"resolved":"happened"}` || connections.Load() != 1 {
				t.Errorf("%+v, %d connections", r, connections.Load())
			}
			d.verified()
		})
	}
}
