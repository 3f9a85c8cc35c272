package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/rest"
)

// backend is ours: it knows tokens that are named after their scopes, and fails the
// test if anything else is asked of it.
type backend struct {
	api.Backend // nil: whatever is not below panics
}

func (backend) Authenticate(_ context.Context, token string) (host.Caller, error) {
	c := host.Caller{Principal: host.Principal{Name: "Ann", Role: host.RoleOwner}}
	for _, s := range strings.Split(token, "+") {
		c.Scopes = append(c.Scopes, host.TokenScope(s))
	}
	return c, nil
}

func (backend) Spend(context.Context, host.Caller) (api.SpendView, error) {
	return api.SpendView{}, errors.New("the secret is 4711")
}

// unread fails the test when somebody reads it.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read before the scope was checked")
	return 0, io.EOF
}

func ask(t *testing.T, method, path, token string, body io.Reader) (*http.Response, rest.Problem) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "http://localhost"+path, body)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/wasm")
	w := httptest.NewRecorder()
	rest.Handler(backend{}, func(error) {}).ServeHTTP(w, r)
	var p rest.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%s %s: %s", method, path, w.Body)
	}
	return w.Result(), p
}

// Law 2: each operation names its scope, and no other scope opens it.
func TestEveryOperationNeedsItsScope(t *testing.T) {
	raw, err := rest.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Scope string `json:"x-token-scope"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			seen++
			others := []string{"read", "run", "approve", "admin"}
			for i, s := range others {
				if s == op.Scope {
					others = append(others[:i], others[i+1:]...)
					break
				}
			}
			if len(others) != 3 {
				t.Errorf("%s %s names the scope %q", method, path, op.Scope)
			}
			resp, p := ask(t, strings.ToUpper(method), strings.NewReplacer("{id}", "x", "{name}", "x").Replace(path), strings.Join(others, "+"), unread{t})
			if resp.StatusCode != http.StatusForbidden || p.Code != "TOKEN_SCOPE" {
				t.Errorf("%s %s with %v: %d %s", method, path, others, resp.StatusCode, p.Code)
			}
		}
	}
	if seen < 15 {
		t.Errorf("only %d operations", seen)
	}
}

// Law 3.
func TestAnInternalErrorTellsNothing(t *testing.T) {
	resp, p := ask(t, http.MethodGet, "/v1/spend", "read", nil)
	if resp.StatusCode != http.StatusInternalServerError || p.Code != "INTERNAL" || strings.Contains(p.Detail+p.Remedy+p.Title, "4711") {
		t.Errorf("%d %+v", resp.StatusCode, p)
	}
}
