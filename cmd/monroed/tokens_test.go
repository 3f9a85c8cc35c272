package main_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host/api/client"
)

// raw sends one request on the daemon's socket and returns status, content type and
// problem.
func (d *daemon) raw(method, hostname, path, authorization string) (int, string, client.Problem) {
	d.t.Helper()
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.dir, "api.sock"))
	}}}
	r, err := http.NewRequestWithContext(d.ctx(), method, "http://"+hostname+path, strings.NewReader("{}"))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	resp, err := h.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	var p client.Problem
	if strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(b, &p); err != nil {
			d.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), p
}

// routes reads every route from the daemon's own description.
func (d *daemon) routes(token string) (list [][2]string) {
	d.t.Helper()
	h := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.dir, "api.sock"))
	}}}
	r, err := http.NewRequestWithContext(d.ctx(), http.MethodGet, "http://monroe/openapi.json", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := h.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		d.t.Fatal(err)
	}
	for path, methods := range doc.Paths {
		for m := range methods {
			list = append(list, [2]string{strings.ToUpper(m), strings.NewReplacer("{id}", "x", "{name}", "x").Replace(path)})
		}
	}
	return list
}

func TestLinuxEveryRequestBearsAToken(t *testing.T) {
	d := serve(t, "")
	file := filepath.Join(d.dir, "owner.token")
	token := strings.TrimSpace(string(read(t, file)))
	for _, path := range []string{file, filepath.Join(d.dir, "api.sock"), filepath.Join(d.dir, "keyset.json"), filepath.Join(d.dir, "monroe.db")} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), err)
		}
	}
	if st, err := os.Stat(d.dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the workspace's directory: %v, %v", st.Mode(), err)
	}
	routes := d.routes(token)
	if len(routes) < 16 {
		t.Fatalf("the description names %d routes", len(routes))
	}
	routes = append(routes, [2]string{"GET", "/openapi.json"}, [2]string{"GET", "/openapi.yaml"}, [2]string{"GET", "/openapi-3.0.json"}, [2]string{"GET", "/docs"}, [2]string{"GET", "/schemas/Run.json"}, [2]string{"GET", "/"},
		[2]string{"GET", "/nothing/here"}, [2]string{"POST", "/v1/../openapi.json"}, [2]string{"DELETE", "/v1/workspace"}, [2]string{"OPTIONS", "/v1/runs"})
	last := "A"
	if strings.HasSuffix(token, "A") {
		last = "B"
	}
	for _, r := range routes {
		for _, authorization := range []string{"", "Bearer", "Bearer ", "Basic " + token, "bearer " + token, token, "Bearer wrong", "Bearer " + token[:len(token)-1] + last, "Bearer " + token + "x", "Bearer  " + token} {
			status, kind, p := d.raw(r[0], "monroe", r[1], authorization)
			if status != 401 || kind != "application/problem+json" || p.Code != "TOKEN" || p.Remedy == "" || p.Status != 401 {
				t.Errorf("%s %s with %.16q: %d %s %+v", r[0], r[1], authorization, status, kind, p)
			}
		}
		for _, name := range []string{"evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:7070", "[::2]"} {
			if status, kind, p := d.raw(r[0], name, r[1], "Bearer "+token); status != 403 || kind != "application/problem+json" || p.Code != "HOST" {
				t.Errorf("%s %s at %s: %d %s %+v", r[0], r[1], name, status, kind, p)
			}
		}
	}
	for _, name := range []string{"monroe", "localhost", "127.0.0.1:7070", "[::1]:7070"} {
		if status, _, _ := d.raw("GET", name, "/v1/workspace", "Bearer "+token); status != 200 {
			t.Errorf("%s with the token: %d", name, status)
		}
	}
	if v, err := d.Workspace(d.ctx()); err != nil || v.Version != 1 {
		t.Errorf("something changed: version %d, %v", v.Version, err)
	}
	// The token does not change when the daemon starts again.
	d.kill()
	d.up()
	if again := strings.TrimSpace(string(read(t, file))); again != token {
		t.Error("a restart minted another token")
	}
}

func TestLinuxWhatIsUnknownIsAProblemToo(t *testing.T) {
	d := serve(t, "")
	token := "Bearer " + strings.TrimSpace(string(read(t, filepath.Join(d.dir, "owner.token"))))
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v1/runs/run_00000000000000000000000000", 404, "RUN"},
		{"POST", "/v1/runs/x/cancel", 404, "RUN"},
		{"GET", "/v1/skills/nobody", 404, "SKILL"},
		{"GET", "/v1/skills/nobody/estimate", 404, "SKILL"},
		{"GET", "/v1/approvals/x", 404, "APPROVAL"},
		{"GET", "/v1/runs?limit=0", 422, "REQUEST"},
		{"GET", "/v1/audit?from=-1", 422, "REQUEST"},
		{"GET", "/v1/approvals?state=maybe", 422, "REQUEST"},
		{"POST", "/v1/runs", 422, "REQUEST"},
		{"GET", "/", 404, "ROUTE"},
		{"GET", "/nothing/here", 404, "ROUTE"},
		{"DELETE", "/v1/workspace", 404, "ROUTE"},
		{"PUT", "/v1/workspace", 422, "REQUEST"},
	} {
		status, kind, p := d.raw(c.method, "monroe", c.path, token)
		if status != c.status || kind != "application/problem+json" || p.Code != c.code || p.Remedy == "" {
			t.Errorf("%s %s: %d %s %+v", c.method, c.path, status, kind, p)
		}
	}
}

func TestLinuxLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:80", "example.com:80", "nonsense"} {
		d := newDaemon(t, "")
		d.args = []string{"--listen", address}
		d.launch()
		if err := d.end(); err == nil || !strings.Contains(d.said.String(), "loopback") {
			t.Errorf("%s: %v\n%s", address, err, d.said)
		}
	}
	d := newDaemon(t, "")
	d.args = []string{"--listen", "127.0.0.1:0"}
	d.up()
}

func TestLinuxDoctor(t *testing.T) {
	d := serve(t, "")
	v, err := d.Doctor(d.ctx())
	if err != nil || !v.OK {
		t.Errorf("%+v, %v", v, err)
	}
	if err := os.Chmod(filepath.Join(d.dir, "owner.token"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, status := cli(t, "--home", d.home, "-w", "team", "doctor")
	if status != 1 || !strings.Contains(out, "chmod 600 "+filepath.Join(d.dir, "owner.token")) {
		t.Errorf("status %d\n%s", status, out)
	}
}
