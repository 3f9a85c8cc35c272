package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	sdk "github.com/getmonroe/monroe/connectors/plugin"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/plugin"
)

func hostileYAML(t *testing.T, mode string) string {
	t.Helper()
	path, digest := pluginProgram(t, "hostile", "-X main.mode="+mode)
	return fmt.Sprintf(`plugins:
  - name: hostile
    kind: connector
    path: %s
    sha256: %s
    operations:
      - name: hostile.do
        version: 1
        summary: Does what it may not.
        effect: send
        replay: blind
        args: '{"type":"object"}'
        allow: [{method: POST, url: "http://127.0.0.1:1/**"}]
        headers: [Accept]
`, path, digest)
}

// asksHostile returns the code and the reason that a guest gets whose call lets the
// plugin do something, and when its run began.
func (d *daemon) asksHostile(name string, args any) (*abi.Denial, time.Time) {
	d.t.Helper()
	request, err := json.Marshal(map[string]any{"op": "send", "v": 1, "args": map[string]any{"operation": "hostile.do", "args": args}})
	if err != nil {
		d.t.Fatal(err)
	}
	d.push(does(name, `"send"`, []abi.OperationUse{{Operation: "hostile.do", Effect: abi.EffectSend, Resource: "http://127.0.0.1:1/**"}}, string(request)))
	run := d.start(name, "")
	r := answers(d.t, d.finished(run))[0]
	if r.Error == nil {
		d.t.Fatalf("%s succeeded: %s", name, r.OK)
	}
	return r.Error, d.running(run)
}

// running is when the host began to start a worker for a run. Whether an attempt is
// named in time is held against this, so that building, pushing and compiling on a busy
// machine are not counted.
func (d *daemon) running(run host.RunID) (at time.Time) {
	d.t.Helper()
	err := d.Watch(d.ctx(), run, 0, func(e host.Event) error {
		if e.Kind == host.EventState && e.State == host.StateRunning {
			at = e.Time
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		d.t.Fatalf("%s never ran: %v", run, err)
	}
	return at
}

// served is when the daemon began to serve, by its log.
func (d *daemon) served() time.Time {
	d.t.Helper()
	m := regexp.MustCompile(`(?m)^time=(\S+) .*msg=serving`).FindStringSubmatch(d.said.String())
	if m == nil {
		d.t.Fatalf("it does not say when:\n%s", d.said)
	}
	at, err := time.Parse(time.RFC3339Nano, m[1])
	if err != nil {
		d.t.Fatal(err)
	}
	return at
}

// named waits for the next alarms.
func (d *daemon) named(next *int64) (list []audit.Leaf) {
	d.t.Helper()
	for end := time.Now().Add(limit); len(list) == 0 && time.Now().Before(end); {
		list, *next = d.alarms(*next)
	}
	return list
}

// TestLinuxALyingPluginIsNamed: what a plugin claims or tries is refused with its code,
// and within a second the log and an alarm in the audit log say what it was. What it does
// before there is a store is in the log then, and in the audit log within a second of it.
// Its twin that plans within its pin is not named, and its call comes as far as the grants.
func TestLinuxALyingPluginIsNamed(t *testing.T) {
	d := newDaemon(t, hostileYAML(t, ""))
	d.up()
	var next int64
	number := 0
	ask := func(t *testing.T, args any, code abi.Code, reason, says string, within time.Duration) {
		t.Helper()
		number++
		got, began := d.asksHostile(fmt.Sprintf("asks-%d", number), args)
		if got.Code != code || !strings.Contains(got.Reason, reason) {
			t.Errorf("%+v, want %s %q", got, code, reason)
		}
		if says == "" {
			if told, n := d.alarms(next); len(told) > 0 {
				t.Errorf("an alarm for nothing: %+v, %d", told, n)
			}
			return
		}
		told := d.named(&next)
		if len(told) == 0 || !strings.HasPrefix(told[0].Detail, "the plugin hostile: "+says) || len(told[0].Module) != 64 {
			t.Fatalf("alarms %+v, want %q", told, says)
		}
		if after := time.UnixMilli(told[0].TimeMS).Sub(began); after > within {
			t.Errorf("it was named after %v", after)
		}
		if !strings.Contains(d.said.String(), "a plugin did what it may not") || !strings.Contains(d.said.String(), says) {
			t.Errorf("the log does not tell of %q", says)
		}
	}
	ask(t, map[string]string{"try": "fail"}, abi.Upstream, "the plugin hostile failed", "", 0) // honestly
	request := func(r sdk.Request) map[string]any { return map[string]any{"request": r} }
	const at = "http://127.0.0.1:1/x"
	ask(t, map[string]string{"try": "stdin"}, abi.Scope, "", "", 0)
	for name, c := range map[string]struct {
		args any
		says string
	}{
		"another host":       {request(sdk.Request{Method: "POST", URL: "http://127.0.0.1:2/x"}), "it planned what it may not: the request is not among those that are pinned"},
		"another method":     {request(sdk.Request{Method: "GET", URL: at}), "it planned what it may not: the request is not among those that are pinned"},
		"a credential":       {request(sdk.Request{Method: "POST", URL: at, Header: []sdk.Header{{Name: "Authorization", Value: "Bearer stolen"}}}), "it planned what it may not: it sets a header that is not pinned"},
		"a second header":    {request(sdk.Request{Method: "POST", URL: at, Header: []sdk.Header{{Name: "Accept", Value: "a\r\nCookie: x"}}}), "it planned what it may not: a header is not printable"},
		"no request":         {request(sdk.Request{}), "it planned what it may not: the URL is not a plain one"},
		"a huge request":     {map[string]string{"try": "giant"}, "it planned what it may not: the request is too large"},
		"beyond the message": {map[string]string{"try": "larger"}, "its answer is larger than the protocol allows"},
	} {
		within := time.Second
		if _, large := c.args.(map[string]string); large { // before it can be named it comes in, as long as a call may take
			within += plugin.CallWithin
		}
		t.Run(name, func(t *testing.T) { ask(t, c.args, abi.Upstream, "the plugin hostile", c.says, within) })
	}
	for try, call := range map[string]string{
		"tcp 127.0.0.1:80": "socket", "udp 127.0.0.1:53": "socket", "raw-ip": "socket", "packet": "socket", "netlink": "socket", "vsock": "socket",
		"abstract x": "socket", "connect-unix " + d.dir + "/api.sock": "connect", "socketpair": "socketpair", "datagram": "socket",
		"exec": "execve", "process": "clone", "ptrace 1": "ptrace", "signal 1": "kill", "bpf": "bpf", "namespaces": "unshare", "mount /tmp": "mount",
		"memory-file": "memfd_create", "write-exec": "mmap", "setuid": "setresuid",
		"read-system": "openat", "read-host " + d.dir + "/owner.token": "openat", "read-host ../../" + filepath.Base(d.dir): "openat",
		"write": "openat", "write-temp /tmp/monroe-must-not-exist": "openat", "symlink": "symlinkat",
	} {
		t.Run(try, func(t *testing.T) {
			d.stop() // so that the pause after the last attempt is over
			d.up()
			ask(t, map[string]string{"try": try}, abi.Upstream, "the plugin hostile failed", "it tried "+call+"(", time.Second)
		})
	}
	t.Run("no answer", func(t *testing.T) {
		d.stop()
		d.up()
		ask(t, map[string]string{"try": "hang"}, abi.Upstream, "did not answer in time", "it did not answer in time", plugin.CallWithin+2*time.Second)
	})
	d.verified()
	for mode, c := range map[string]struct {
		code abi.Code
		says string
	}{
		"differs": {abi.ConnectorRevoked, "it is not what the operator pinned: hostile.do: its effect differs"},
		"tcp":     {abi.Upstream, "it names something else than a socket in its directory"},
		"outside": {abi.Upstream, "it names something else than a socket in its directory"},
	} {
		t.Run("at its start "+mode, func(t *testing.T) {
			d := newDaemon(t, hostileYAML(t, mode))
			d.up()
			log, _, _ := strings.Cut(d.said.String(), "msg=serving")
			if !strings.Contains(log, "a plugin did what it may not") {
				t.Errorf("before it serves the log says %s", log)
			}
			var next int64
			told := d.named(&next)
			if len(told) != 1 || told[0].Detail != "the plugin hostile: "+c.says {
				t.Errorf("alarms %+v, want %q", told, c.says)
			}
			if after := time.UnixMilli(told[0].TimeMS).Sub(d.served()); after > time.Second { // the alarm waits for the store
				t.Errorf("it was named %v after it serves", after)
			}
			if got, _ := d.asksHostile("asks", map[string]string{"try": "stdin"}); got.Code != c.code {
				t.Errorf("%+v, want %s", got, c.code)
			}
			d.verified()
		})
	}
}

// TestLinuxALyingScannerIsNamed: it finds, or offers, what nobody pinned. What it was
// shown does not leave, nobody is asked for it, and it is named within a second.
func TestLinuxALyingScannerIsNamed(t *testing.T) {
	for mode, c := range map[string]struct{ reason, says string }{
		"finds":  {"the scanner liar found something that has no name", "it answered with a finding that is not pinned"},
		"offers": {"the scanner liar could not look, and nothing passes unseen", "it is not what the operator pinned: its findings differ"},
	} {
		t.Run(mode, func(t *testing.T) {
			path, digest := pluginProgram(t, "hostile", "-X main.mode="+mode)
			d := serve(t, fmt.Sprintf("plugins:\n  - name: liar\n    kind: scanner\n    path: %s\n    sha256: %s\n    findings: [{id: card_number, reason: a number}]\n", path, digest))
			d.push(does("writer", `"send"`, []abi.OperationUse{{Operation: "mail.send", Effect: abi.EffectSend, Resource: "mail:*"}},
				`{"op":"send","v":1,"args":{"operation":"mail.send","args":{"to":["ann@localhost"],"subject":"x","text":"y"}}}`))
			d.apply(d.config(`skill: writer, operation: mail.send, resource: "mail:ann@localhost"`))
			id := d.start("writer", "")
			if r := answers(t, d.finished(id))[0]; r.Error == nil || r.Error.Code != abi.Scan || r.Error.Reason != c.reason {
				t.Errorf("%+v", r.Error)
			}
			var next int64
			told := d.named(&next)
			if len(told) != 1 || told[0].Detail != "the plugin liar: "+c.says || told[0].Module != digest {
				t.Fatalf("alarms %+v, want %q", told, c.says)
			}
			since := d.running(id)
			if mode == "offers" { // at its start, and the alarm waits for the store
				since = d.served()
			}
			if after := time.UnixMilli(told[0].TimeMS).Sub(since); after > time.Second {
				t.Errorf("it was named after %v", after)
			}
			if m := d.mails(); len(m) != 0 {
				t.Errorf("%d mails", len(m))
			}
			d.verified()
		})
	}
}
