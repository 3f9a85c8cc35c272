// Package client calls the API of a workspace, for the command line and for tests.
//
// It knows HTTP and where a workspace's socket and token are. It must not know
// anything of the daemon's inside.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// Client speaks to one workspace. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// Problem is an answer that says no.
type Problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Remedy string `json:"remedy"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

// Error gives all that a person needs.
func (p *Problem) Error() string {
	s := p.Detail
	if s == "" {
		s = p.Title
	}
	for _, e := range p.Errors {
		s += fmt.Sprintf("; %s: %s", e.Location, e.Message)
	}
	if p.Code != "" {
		s = p.Code + ": " + s
	}
	if p.Remedy != "" {
		s += "\n  → " + p.Remedy
	}
	return s
}

// ErrNoDaemon is wrapped when nobody listens.
var ErrNoDaemon = errors.New("no daemon answers")

// Dial returns a client for a workspace's directory: its socket, and the owner's
// token unless another is given.
func Dial(dir, token string) (*Client, error) {
	if token == "" {
		b, err := os.ReadFile(filepath.Join(dir, "owner.token"))
		if err != nil {
			return nil, fmt.Errorf("no token: %w (start the workspace first: monroe up)", err)
		}
		token = strings.TrimSpace(string(b))
	}
	path := filepath.Join(dir, "api.sock")
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("%w at %s: %w (start it: monroe up)", ErrNoDaemon, path, err)
		}
		return c, nil
	}}
	return &Client{base: "http://monroe", token: token, http: &http.Client{Transport: t}}, nil
}

// New returns a client for an address such as http://127.0.0.1:7070.
func New(base, token string, h *http.Client) *Client {
	return &Client{base: strings.TrimSuffix(base, "/"), token: token, http: h}
}

// request performs one call. in is JSON, raw bytes or nil; out is filled from JSON.
func (c *Client) request(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	kind := "application/json"
	switch v := in.(type) {
	case nil:
	case []byte:
		body, kind = bytes.NewReader(v), "application/wasm"
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		r.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end, or given up
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func problem(resp *http.Response) error {
	p := &Problem{Status: resp.StatusCode, Title: resp.Status}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(b, p) != nil {
		p.Detail = strings.TrimSpace(string(b))
	}
	return p
}

func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	err = c.request(ctx, http.MethodGet, path, nil, &v)
	return v, err
}

type list[T any] struct {
	Items []T `json:"items"`
}

func all[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	l, err := get[list[T]](ctx, c, path)
	return l.Items, err
}

// Workspace returns the configuration in force.
func (c *Client) Workspace(ctx context.Context) (api.WorkspaceView, error) {
	return get[api.WorkspaceView](ctx, c, "/v1/workspace")
}

// Apply replaces the configuration.
func (c *Client) Apply(ctx context.Context, in api.ApplyInput) (r api.ApplyResult, err error) {
	err = c.request(ctx, http.MethodPut, "/v1/workspace", in, &r)
	return r, err
}

// PushSkill uploads a module.
func (c *Client) PushSkill(ctx context.Context, module []byte) (s host.Skill, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/skills", module, &s)
	return s, err
}

// Skills lists the skills.
func (c *Client) Skills(ctx context.Context) ([]host.Skill, error) {
	return all[host.Skill](ctx, c, "/v1/skills")
}

// Skill returns one skill.
func (c *Client) Skill(ctx context.Context, name string) (host.Skill, error) {
	return get[host.Skill](ctx, c, "/v1/skills/"+url.PathEscape(name))
}

// Estimate tells what a run is expected to cost under a ceiling in dollars; empty
// means the daemon's own.
func (c *Client) Estimate(ctx context.Context, name, maxUSD string) (host.Estimate, error) {
	path := "/v1/skills/" + url.PathEscape(name) + "/estimate"
	if maxUSD != "" {
		path += "?max_usd=" + url.QueryEscape(maxUSD)
	}
	return get[host.Estimate](ctx, c, path)
}

// StartRun starts a run.
func (c *Client) StartRun(ctx context.Context, in api.StartInput) (r host.Run, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/runs", in, &r)
	return r, err
}

// Runs lists the newest runs.
func (c *Client) Runs(ctx context.Context, limit int) ([]host.Run, error) {
	return all[host.Run](ctx, c, fmt.Sprintf("/v1/runs?limit=%d", limit))
}

// Run returns one run.
func (c *Client) Run(ctx context.Context, id host.RunID) (api.RunView, error) {
	return get[api.RunView](ctx, c, "/v1/runs/"+url.PathEscape(string(id)))
}

// CancelRun ends a run.
func (c *Client) CancelRun(ctx context.Context, id host.RunID) error {
	return c.request(ctx, http.MethodPost, "/v1/runs/"+url.PathEscape(string(id))+"/cancel", nil, nil)
}

// EraseRun takes the content of an ended run away for good.
func (c *Client) EraseRun(ctx context.Context, id host.RunID) (r host.Run, err error) {
	err = c.request(ctx, http.MethodDelete, "/v1/runs/"+url.PathEscape(string(id))+"/content", nil, &r)
	return r, err
}

// ReleaseRun lets a run go on that is held since a restore.
func (c *Client) ReleaseRun(ctx context.Context, id host.RunID) (r host.Run, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/runs/"+url.PathEscape(string(id))+"/release", nil, &r)
	return r, err
}

// Keys tells of the workspace's keys.
func (c *Client) Keys(ctx context.Context) (api.KeysView, error) {
	return get[api.KeysView](ctx, c, "/v1/keys")
}

// RotateKeys makes a new sealing key the one that seals.
func (c *Client) RotateKeys(ctx context.Context) (v api.KeysView, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/keys/rotate", nil, &v)
	return v, err
}

// Pins lists what the runs that have not ended need of a host.
func (c *Client) Pins(ctx context.Context) ([]host.Pins, error) {
	return all[host.Pins](ctx, c, "/v1/pins")
}

// Resolve says what became of an attempt whose outcome is unknown.
func (c *Client) Resolve(ctx context.Context, id host.RunID, in api.ResolveInput) (r host.Run, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/runs/"+url.PathEscape(string(id))+"/resolve", in, &r)
	return r, err
}

// Approvals lists approvals in a state, all for an empty one.
func (c *Client) Approvals(ctx context.Context, state host.ApprovalState) ([]host.Approval, error) {
	q := ""
	if state != "" {
		q = "?state=" + url.QueryEscape(string(state))
	}
	return all[host.Approval](ctx, c, "/v1/approvals"+q)
}

// Approval returns one approval with its preview.
func (c *Client) Approval(ctx context.Context, id host.ApprovalID) (api.ApprovalView, error) {
	return get[api.ApprovalView](ctx, c, "/v1/approvals/"+url.PathEscape(string(id)))
}

// Decide answers an approval.
func (c *Client) Decide(ctx context.Context, id host.ApprovalID, in api.Decision) (r host.Approval, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/approvals/"+url.PathEscape(string(id))+"/decision", in, &r)
	return r, err
}

// Edit changes what an approval asks for.
func (c *Client) Edit(ctx context.Context, id host.ApprovalID, in api.EditInput) (r host.Approval, err error) {
	err = c.request(ctx, http.MethodPost, "/v1/approvals/"+url.PathEscape(string(id))+"/edit", in, &r)
	return r, err
}

// Spend returns this month's ledger.
func (c *Client) Spend(ctx context.Context) (api.SpendView, error) {
	return get[api.SpendView](ctx, c, "/v1/spend")
}

// Audit returns a part of the audit log.
func (c *Client) Audit(ctx context.Context, from int64, limit int) (api.AuditView, error) {
	return get[api.AuditView](ctx, c, fmt.Sprintf("/v1/audit?from=%d&limit=%d", from, limit))
}

// ProveLeaf returns the proof that a leaf is in the signed log, which began as that of
// since leaves did; 0 asks for no beginning.
func (c *Client) ProveLeaf(ctx context.Context, leaf, since int64) (api.AuditProof, error) {
	return get[api.AuditProof](ctx, c, fmt.Sprintf("/v1/audit/%d/proof?since=%d", leaf, since))
}

// Egress asks what left the daemon's machine, as the kernel counted it.
func (c *Client) Egress(ctx context.Context) (api.EgressView, error) {
	return get[api.EgressView](ctx, c, "/v1/egress")
}

// Doctor asks the daemon how it is.
func (c *Client) Doctor(ctx context.Context) (api.DoctorView, error) {
	return get[api.DoctorView](ctx, c, "/v1/doctor")
}

// Watch calls see for every event of a run after the one numbered after, until the
// run has ended, see returns an error, or the context is done.
func (c *Client) Watch(ctx context.Context, id host.RunID, after int64, see func(host.Event) error) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/runs/%s/events?after=%d", c.base, url.PathEscape(string(id)), after), nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("Accept", "text/event-stream")
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end, or given up
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	kind := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			kind = value
		case name == "data" && kind == "problem":
			p := &Problem{}
			if err := json.Unmarshal([]byte(value), p); err != nil {
				return err
			}
			return p
		case name == "data" && kind != "beat":
			var e host.Event
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return err
			}
			if err := see(e); err != nil {
				return err
			}
		case name == "":
			kind = ""
		}
	}
	return lines.Err()
}
