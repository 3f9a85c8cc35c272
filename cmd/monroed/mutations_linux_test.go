package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/vault"
)

// request sends one request to the daemon and returns status and code.
func (d *daemon) request(network, address, method, path, token, body string) (int, string) {
	d.t.Helper()
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	r, err := http.NewRequestWithContext(d.ctx(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := h.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		d.t.Fatal(err)
	}
	var p struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(b, &p) // an answer that is no problem has no code
	return resp.StatusCode, p.Code
}

// mintToken puts a token of the owner's into the database of a daemon that is down.
func mintToken(t *testing.T, db, id, scopes string, expires time.Time) string {
	t.Helper()
	x, err := sql.Open("sqlite", db)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	text, hash := vault.NewToken()
	_, err = x.ExecContext(t.Context(), `INSERT INTO token (ws, token_id, principal_id, hash, scopes, created_at, expires_at)
		SELECT ws, ?, principal_id, ?, ?, created_at, ? FROM token LIMIT 1`, id, hash, scopes, expires.UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// children are the processes that the daemon started.
func (d *daemon) children() (list []int) {
	d.t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && f[1] == strconv.Itoa(d.cmd.Process.Pid) {
			list = append(list, pid)
		}
	}
	return list
}

var mapped = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) (r\S+)`)

// remembers reports whether a process has a text in its environment, its arguments or its
// memory. It needs root, as all of them are closed to others.
func remembers(t *testing.T, pid int, text string) bool {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	if strings.Contains(string(read(t, dir+"environ"))+string(read(t, dir+"cmdline")), text) {
		return true
	}
	mem, err := os.Open(dir + "mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	seen := 0
	for line := range strings.Lines(string(read(t, dir+"maps"))) {
		m := mapped.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, "[vvar") || strings.Contains(line, "[vsyscall") {
			continue
		}
		from, e1 := strconv.ParseInt(m[1], 16, 64)
		to, e2 := strconv.ParseInt(m[2], 16, 64)
		if e1 != nil || e2 != nil {
			t.Fatalf("a map %q", line)
		}
		const step = 1 << 20
		b := make([]byte, step+len(text)) // a text may lie over the end of a step
		for ; from < to; from += step {
			n, err := mem.ReadAt(b[:min(int64(len(b)), to-from)], from)
			if err != nil && n == 0 {
				continue
			}
			seen += n
			if bytes.Contains(b[:n], []byte(text)) {
				return true
			}
		}
	}
	if seen < 1<<20 {
		t.Fatalf("only %d bytes of process %d could be read", seen, pid)
	}
	return false
}

// TestLinuxNobodyElseChangesAnything is the test of law 12. Every operation of the
// daemon's own description that is no read is tried by a process of the daemon's own
// user, over the socket and over TCP, without a token and with each kind of a wrong
// one; and from within a plugin, which does not even get to a connection. 0 succeed.
func TestLinuxNobodyElseChangesAnything(t *testing.T) {
	d := compiled(t, hostileYAML(t, "")+"listen: 127.0.0.1:0\nspare_workers: 1\n")
	d.stop()
	db := filepath.Join(d.dir, "monroe.db")
	later := time.Now().Add(time.Hour)
	expired, reads := mintToken(t, db, "tok_expired", "read run approve admin", time.Now().Add(-time.Second)), mintToken(t, db, "tok_reads", "read", later)
	d.up()
	d.apply(d.config(digestGrants...))
	id := d.start("digest", `{"folder":"docs"}`)
	question := d.asked(id)
	owner := strings.TrimSpace(string(read(t, filepath.Join(d.dir, "owner.token"))))
	tcp := regexp.MustCompile(`address=(127\.0\.0\.1:[0-9]+)`).FindStringSubmatch(d.said.String())
	if tcp == nil {
		t.Fatal("the daemon does not listen on TCP")
	}
	socket := filepath.Join(d.dir, "api.sock")

	body, err := json.Marshal(api.Decision{Decision: api.Approve, Digest: question.Digest})
	if err != nil {
		t.Fatal(err)
	}
	type mutation struct{ method, path string }
	var all []mutation
	for _, r := range d.routes(owner) {
		if r[0] == http.MethodGet || r[0] == http.MethodHead {
			continue
		}
		at := "/v1/runs/" + string(id)
		path := strings.NewReplacer("/v1/runs/x", at, "/v1/approvals/x", "/v1/approvals/"+string(question.ID), "/v1/skills/x", "/v1/skills/digest").Replace(r[1])
		all = append(all, mutation{r[0], path})
	}
	if len(all) < 9 || !slices.Contains(all, mutation{"POST", "/v1/approvals/" + string(question.ID) + "/decision"}) {
		t.Fatalf("the description has the mutations %v", all)
	}
	state := func() string {
		w, e1 := d.Workspace(d.ctx())
		skills, e2 := d.Skills(d.ctx())
		runs, e3 := d.Runs(d.ctx(), 100)
		a, e4 := d.Approval(d.ctx(), question.ID)
		if e1 != nil || e2 != nil || e3 != nil || e4 != nil {
			t.Fatal(e1, e2, e3, e4)
		}
		return fmt.Sprintf("%d %d %d %s %s", w.Version, len(skills), len(runs), a.State, d.run(id).State)
	}
	before := state()
	tried, succeeded := 0, 0
	for _, m := range all {
		for network, address := range map[string]string{"unix": socket, "tcp": tcp[1]} {
			for name, c := range map[string]struct {
				token  string
				status int
				code   string
			}{
				"no token": {"", 401, "TOKEN"}, "wrong": {"mrt_" + strings.Repeat("A", 43), 401, "TOKEN"}, "expired": {expired, 401, "TOKEN"}, "other scope": {reads, 403, "TOKEN_SCOPE"},
			} {
				tried++
				status, code := d.request(network, address, m.method, m.path, c.token, string(body))
				if status < 400 {
					succeeded++
				}
				if status != c.status || code != c.code {
					t.Errorf("%s %s over %s, %s: %d %s", m.method, m.path, network, name, status, code)
				}
			}
		}
	}
	if succeeded != 0 || tried != len(all)*8 {
		t.Errorf("%d of %d attempts succeeded", succeeded, tried)
	}
	if after := state(); after != before {
		t.Errorf("something changed: %s, before %s", after, before)
	}

	// Neither a worker nor a plugin holds a token.
	var processes []int
	d.eventually(func() bool { processes = d.children(); return len(processes) >= 2 }) // a spare worker and a plugin
	if os.Geteuid() != 0 {
		processes = nil // their memory is closed to everybody but root
		t.Log("without root the memory of workers is not searched")
	}
	for _, pid := range processes {
		if remembers(t, pid, owner) {
			t.Errorf("process %d holds the owner's token", pid)
		}
	}
	if !remembers(t, os.Getpid(), owner) {
		t.Error("the search finds nothing in this process, which has it")
	}

	// The twins: with their tokens the same requests come through.
	for network, address := range map[string]string{"unix": socket, "tcp": tcp[1]} {
		if status, code := d.request(network, address, "GET", "/v1/workspace", reads, ""); status != 200 {
			t.Errorf("a read with the token for it over %s: %d %s", network, status, code)
		}
	}
	for _, m := range all {
		if status, code := d.request("unix", socket, m.method, m.path, owner, "{}"); status == 401 || status == 403 {
			t.Errorf("the owner's %s %s: %d %s", m.method, m.path, status, code)
		}
	}
	if v := d.finished(id); v.State != host.StateCancelled {
		t.Errorf("the owner's cancelling left the run %s", v.State)
	}

	// A plugin has no way to ask at all: each of its attempts ends it.
	var next int64
	_, next = d.alarms(0)
	for i, way := range []string{"connect-unix " + socket, "tcp " + tcp[1], "udp " + tcp[1], "abstract monroe", "datagram", "datagram-pair"} {
		d.stop()
		d.up()
		if now := regexp.MustCompile(`address=(127\.0\.0\.1:[0-9]+)`).FindStringSubmatch(d.said.String()); now != nil {
			way = strings.ReplaceAll(way, tcp[1], now[1])
		}
		if got, _ := d.asksHostile(fmt.Sprintf("way-%d", i), map[string]string{"try": way}); got.Code != abi.Upstream {
			t.Errorf("%s: %+v", way, got)
		}
		if told := d.named(&next); len(told) == 0 || !strings.Contains(told[0].Detail, "the plugin hostile: it tried ") {
			t.Errorf("%s: alarms %+v", way, told)
		}
	}
	d.verified()
}
