package main_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// unified is where control groups of version 2 are mounted.
func unified(t *testing.T) (at string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			at = f[4]
		}
	}
	return at
}

// intrude connects from within the daemon's control group, as a library would that
// does not know of leases.
func (d *daemon) intrude(proto, address string) error {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", d.inner()))
	if err != nil {
		d.t.Fatal(err)
	}
	_, path, _ := strings.Cut(string(text)[strings.Index(string(text), "0::"):], "::")
	dir, err := os.Open(filepath.Join(unified(d.t), strings.TrimSpace(path)))
	if err != nil {
		d.t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("bash", "-c", "exec 3<>/dev/"+proto+"/"+strings.Replace(address, ":", "/", 1))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd.Run()
}

// wired is a guarded daemon beside a server that a run may send to, of which it holds
// what comes for /held until the test is over.
type wired struct {
	*daemon
	url, address string
	arrived      chan struct{}
}

func newWired(t *testing.T, args ...string) wired {
	t.Helper()
	x := wired{arrived: make(chan struct{}, 1)}
	over := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/held") {
			x.arrived <- struct{}{}
			<-over // a connection that is cut says no goodbye
		}
	}))
	t.Cleanup(func() { close(over); s.CloseClientConnections(); s.Close() })
	x.url, x.address = s.URL, strings.TrimPrefix(s.URL, "http://")
	more := fmt.Sprintf("egress: {kill_runs: true}\nhttp:\n  private: [%q]\n  endpoints:\n", x.address)
	for _, e := range []string{"name: keyed, effect: write, replay: keyed, window: 1h", "name: conditional, effect: write, replay: conditional", "name: blind", "name: late", "name: metered, effect: metered"} {
		more += fmt.Sprintf("    - {%s, url: \"http://%s/**\"}\n", e, x.address)
	}
	x.daemon = guarded(t, more, args...)
	x.push(sender(t))
	x.apply(x.config(`skill: sender, operation: http.keyed, resource: "http:**"`))
	return x
}

// send starts a run that sends to a path, with a person's yes.
func (x wired) send(path string) host.RunID {
	x.t.Helper()
	id := x.start("sender", fmt.Sprintf(`{"steps":[{"operation":"http.keyed","args":{"url":"%s/%s","body":"hello","content_type":"text/plain"}}]}`, x.url, path))
	a := x.asked(id)
	if _, err := x.Decide(x.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		x.t.Fatal(err)
	}
	return id
}

// alarming are the violations that are one: not what a daemon tried at its start.
func alarming(e api.EgressView) (list []api.EgressViolation) {
	for _, v := range e.Violations {
		if v.By == "daemon" || v.By == "worker" {
			list = append(list, v)
		}
	}
	return list
}

// violated waits until a certain violation is known.
func (x wired) violated(by, hook, proto, to string) (found api.EgressViolation) {
	x.t.Helper()
	x.eventually(func() bool {
		e, err := x.Egress(x.ctx())
		for _, v := range e.Violations {
			if v.By == by && v.Hook == hook && v.Proto == proto && v.To == to {
				found = v
			}
		}
		return err != nil || found.Count > 0
	})
	return found
}

// witnessed is the audit log in one text.
func (d *daemon) witnessed() (said string) {
	d.t.Helper()
	log, err := d.Audit(d.ctx(), 0, 100)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, l := range log.Leaves {
		said += string(l.Body) + "\n"
	}
	return said
}

// TestRootFlows: what the kernel counted belongs to the call that it was for; what
// belongs to none is refused, shown and witnessed, and ends the run if that is asked for.
func TestRootFlows(t *testing.T) {
	d := newWired(t)
	id := d.send("x")
	if v := d.finished(id); v.State != host.StateSucceeded {
		t.Fatalf("the run %s: %s %s", v.State, v.Failure, v.Result)
	}
	e, err := d.Egress(d.ctx())
	if err != nil || len(e.Flows) != 1 || e.Matched != 1 || len(alarming(e)) != 0 {
		t.Fatalf("%+v, %v", e, err)
	}
	if f := e.Flows[0]; f.Run != id || f.Call == 0 || f.Operation != "http.keyed" || f.To != d.address || f.BytesOut < 100 || f.BytesIn < 100 || f.Ended == nil {
		t.Errorf("%+v", f)
	}

	held := d.send("held")
	<-d.arrived
	if err := d.intrude("tcp", d.address); err == nil {
		t.Error("a connection without a lease passed")
	}
	if v := d.finished(held); v.State != host.StateCancelled || !strings.Contains(v.Failure, "egress that belongs to no call") {
		t.Errorf("the run %s", v.State)
	}
	if v := d.violated("daemon", "connect4", "tcp", d.address); !v.Denied {
		t.Errorf("%+v", v)
	}
	out, status := cli(t, "--home", d.home, "-w", "team", "egress")
	if status != 0 || !strings.Contains(out, "denied daemon connect4 tcp "+d.address) || !strings.Contains(out, string(id)+" call ") {
		t.Errorf("status %d: %s", status, out)
	}
	// A resolver asks the routing table by a connect that is refused like any other: it is
	// shown, and no alarm. Another datagram socket is.
	for _, to := range []string{"192.0.2.1:9", d.address} {
		if err := d.intrude("udp", to); err == nil {
			t.Errorf("a datagram socket without a lease passed to %s", to)
		}
	}
	resolver, stray := d.violated("resolver", "connect4", "udp", ""), d.violated("daemon", "connect4", "udp", d.address)
	if !resolver.Denied || !stray.Denied {
		t.Errorf("%+v, %+v", resolver, stray)
	}
	alarm := "egress without a call: daemon connect4 udp " + d.address
	d.eventually(func() bool { return strings.Contains(d.witnessed(), alarm) })
	if said := d.witnessed(); !strings.Contains(said, "egress without a call: daemon connect4 tcp "+d.address) || !strings.Contains(said, "the run is ended: egress") || strings.Contains(said, "resolver") {
		t.Errorf("the audit log:\n%s", said)
	}
	d.verified()
}

// TestRootFlowsAudit: where nothing is refused, what left for no call is an alarm all the
// same: when it connects, and by what the kernel counted of it.
func TestRootFlowsAudit(t *testing.T) {
	d := newWired(t, "--egress", "audit")
	if v := d.finished(d.send("x")); v.State != host.StateSucceeded {
		t.Fatalf("the run %s: %s %s", v.State, v.Failure, v.Result)
	}
	if e, err := d.Egress(d.ctx()); err != nil || e.Mode != "audit" || e.Matched != 1 || len(alarming(e)) != 0 {
		t.Fatalf("%+v, %v", e, err)
	}
	if err := d.intrude("tcp", d.address); err != nil {
		t.Errorf("audit refused it: %v", err)
	}
	attempt, flow := d.violated("daemon", "connect4", "tcp", d.address), d.violated("daemon", "flow", "tcp", d.address)
	if attempt.Denied || flow.Denied || flow.Bytes == 0 {
		t.Errorf("%+v, %+v", attempt, flow)
	}
	out, status := cli(t, "--home", d.home, "-w", "team", "egress")
	for _, hook := range []string{"connect4", "flow"} {
		alarm := "egress without a call: daemon " + hook + " tcp " + d.address
		d.eventually(func() bool { return strings.Contains(d.witnessed(), alarm) })
		if want := "PASSED daemon " + hook + " tcp " + d.address; status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %s: %s", status, want, out)
		}
	}
	d.verified()
}
