// Package rest serves a workspace over HTTP: REST with OpenAPI 3.1, problems of
// RFC 9457 and server-sent events. It is the only way in for people and programs.
//
// Laws, each with a test:
//
//  1. Every request bears a token, also the one for the description of the API; a
//     socket gives no identity (law 12).
//  2. Each operation names the scope that a token needs for it; there is no
//     operation without one.
//  3. An error that is not meant for a client says nothing but that it happened.
//
// It knows HTTP, callers and their scopes. It must not know how anything is decided.
package rest

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// maxBody bounds request bodies other than modules and inputs.
const maxBody = 1 << 20

type callerKey struct{}

func caller(ctx context.Context) host.Caller {
	c, _ := ctx.Value(callerKey{}).(host.Caller)
	return c
}

// Handler serves the backend. fail is told every error whose cause a client is not
// told.
func Handler(b api.Backend, fail func(error)) http.Handler {
	mux := http.NewServeMux()
	describe(humago.New(mux, config()), b, fail)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		problemOf(&host.Problem{Kind: host.ErrNotFound, Code: "ROUTE", Detail: "the API has no such method or path", Remedy: "/openapi.json lists what there is"}, fail).write(w)
	})
	return authenticate(mux, b, fail)
}

// OpenAPI is the description of the API as JSON, for the file in docs.
func OpenAPI() ([]byte, error) {
	a := humago.New(http.NewServeMux(), config())
	describe(a, nil, func(error) {})
	return a.OpenAPI().MarshalJSON()
}

func config() huma.Config {
	c := huma.DefaultConfig("monroe", "1")
	c.Info.Description = "One workspace: its skills, runs, approvals, spend and audit log. Every request bears a token."
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
	c.Security = []map[string][]string{{"token": {}}}
	return c
}

// authenticate finds the caller of every request, whatever its path. A browser page
// of another site could reach a loopback address with a name of its own, so only
// local names are answered.
func authenticate(next http.Handler, b api.Backend, fail func(error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localName(r.Host) {
			problemOf(&host.Problem{Kind: host.ErrForbidden, Code: "HOST", Detail: "the request names another host", Remedy: "use 127.0.0.1, [::1] or localhost"}, fail).write(w)
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="monroe"`)
			p := problemOf(&host.Problem{Kind: host.ErrForbidden, Code: "TOKEN", Detail: "the request bears no token", Remedy: "send Authorization: Bearer <token>; the owner's is in owner.token"}, fail)
			p.Status = http.StatusUnauthorized
			p.write(w)
			return
		}
		c, err := b.Authenticate(r.Context(), token)
		if err != nil {
			p := problemOf(err, fail)
			if p.Status == http.StatusForbidden {
				p.Status = http.StatusUnauthorized
			}
			p.write(w)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func localName(hostport string) bool {
	name := hostport
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		name = name[:i]
	}
	switch name {
	case "localhost", "127.0.0.1", "[::1]", "monroe": // the last is what the client says on a socket
		return true
	}
	return false
}

// route is one operation of the API.
type route struct {
	id, method, path, summary string
	scope                     host.TokenScope
	status                    int
	max                       int64
}

// add registers an operation.
func add[I, O any](a huma.API, fail func(error), r route, do func(context.Context, host.Caller, *I) (*O, error)) {
	if r.max == 0 {
		r.max = maxBody
	}
	op := huma.Operation{
		OperationID: r.id, Method: r.method, Path: r.path, Summary: r.summary, DefaultStatus: r.status, MaxBodyBytes: r.max,
		Description: "Needs a token with the scope " + string(r.scope) + ".", Extensions: map[string]any{"x-token-scope": string(r.scope)},
		Middlewares: huma.Middlewares{scoped(r.scope, fail)},
	}
	huma.Register(a, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, caller(ctx), in)
		if err != nil {
			return nil, problemOf(err, fail)
		}
		return out, nil
	})
}

// scoped checks the token's scope before anything of the request's body is read.
func scoped(s host.TokenScope, fail func(error)) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if err := needs(caller(ctx.Context()), s); err != nil {
			_, w := humago.Unwrap(ctx)
			problemOf(err, fail).write(w)
			return
		}
		next(ctx)
	}
}

func needs(c host.Caller, s host.TokenScope) error {
	if c.Has(s) {
		return nil
	}
	return &host.Problem{Kind: host.ErrForbidden, Code: "TOKEN_SCOPE", Detail: "the token lacks the scope " + string(s), Remedy: "use a token that has it"}
}

// body wraps an answer, none an empty question.
type (
	body[T any] struct{ Body T }
	none        struct{}
)

func one[T any](v T, err error) (*body[T], error) { return &body[T]{v}, err }

// list is an answer of many.
type list[T any] struct {
	Items []T `json:"items"`
}

func many[T any](v []T, err error) (*body[list[T]], error) {
	if v == nil {
		v = []T{}
	}
	return &body[list[T]]{list[T]{v}}, err
}

func describe(a huma.API, b api.Backend, fail func(error)) {
	const get, put, post = http.MethodGet, http.MethodPut, http.MethodPost
	add(a, fail, route{"get-workspace", get, "/v1/workspace", "The workspace in force", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.WorkspaceView], error) {
			return one(b.Workspace(ctx, c))
		})
	add(a, fail, route{"apply-workspace", put, "/v1/workspace", "Replace the configuration, as a whole or not at all", host.ScopeAdmin, 0, 0},
		func(ctx context.Context, c host.Caller, in *body[api.ApplyInput]) (*body[api.ApplyResult], error) {
			return one(b.Apply(ctx, c, in.Body))
		})
	add(a, fail, route{"get-spend", get, "/v1/spend", "The ledger of this month", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.SpendView], error) {
			return one(b.Spend(ctx, c))
		})
	add(a, fail, route{"get-doctor", get, "/v1/doctor", "The state of the daemon", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.DoctorView], error) {
			return one(b.Doctor(ctx, c))
		})
	add(a, fail, route{"get-egress", get, "/v1/egress", "What left this host, as the kernel counted it", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.EgressView], error) {
			return one(b.Egress(ctx, c))
		})

	type upload struct {
		RawBody []byte `contentType:"application/wasm"`
	}
	type named struct {
		Name string `path:"name" maxLength:"64"`
	}
	type ceiling struct {
		Name   string `path:"name" maxLength:"64"`
		MaxUSD string `query:"max_usd" maxLength:"32" doc:"the ceiling in dollars that the run is to have, such as 0.50"`
	}
	add(a, fail, route{"push-skill", post, "/v1/skills", "Admit, compile and store a module", host.ScopeAdmin, http.StatusCreated, abi.MaxModule + maxBody},
		func(ctx context.Context, c host.Caller, in *upload) (*body[host.Skill], error) {
			return one(b.PushSkill(ctx, c, in.RawBody))
		})
	add(a, fail, route{"list-skills", get, "/v1/skills", "The skills", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[list[host.Skill]], error) {
			return many(b.Skills(ctx, c))
		})
	add(a, fail, route{"get-skill", get, "/v1/skills/{name}", "One skill with its manifest", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *named) (*body[host.Skill], error) {
			return one(b.Skill(ctx, c, in.Name))
		})
	add(a, fail, route{"estimate-run", get, "/v1/skills/{name}/estimate", "What a run is expected to cost", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *ceiling) (*body[host.Estimate], error) {
			return one(b.Estimate(ctx, c, in.Name, in.MaxUSD))
		})

	type limited struct {
		Limit int `query:"limit" minimum:"1" maximum:"1000" default:"50"`
	}
	type runID struct {
		ID host.RunID `path:"id" maxLength:"64"`
	}
	add(a, fail, route{"start-run", post, "/v1/runs", "Start a run", host.ScopeRun, http.StatusCreated, abi.MaxInput + maxBody},
		func(ctx context.Context, c host.Caller, in *body[api.StartInput]) (*body[host.Run], error) {
			return one(b.StartRun(ctx, c, in.Body))
		})
	add(a, fail, route{"list-runs", get, "/v1/runs", "The newest runs", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *limited) (*body[list[host.Run]], error) {
			return many(b.Runs(ctx, c, in.Limit))
		})
	add(a, fail, route{"get-run", get, "/v1/runs/{id}", "One run with its calls and result", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *runID) (*body[api.RunView], error) {
			return one(b.Run(ctx, c, in.ID))
		})
	add(a, fail, route{"cancel-run", post, "/v1/runs/{id}/cancel", "End a run", host.ScopeRun, http.StatusNoContent, 0},
		func(ctx context.Context, c host.Caller, in *runID) (*none, error) {
			return &none{}, b.CancelRun(ctx, c, in.ID)
		})
	add(a, fail, route{"erase-run", http.MethodDelete, "/v1/runs/{id}/content", "Take the content of an ended run away for good", host.ScopeAdmin, http.StatusOK, 0},
		func(ctx context.Context, c host.Caller, in *runID) (*body[host.Run], error) {
			return one(b.EraseRun(ctx, c, in.ID))
		})
	add(a, fail, route{"release-run", post, "/v1/runs/{id}/release", "Let a run go on that is held since the database was restored", host.ScopeAdmin, http.StatusOK, 0},
		func(ctx context.Context, c host.Caller, in *runID) (*body[host.Run], error) {
			return one(b.ReleaseRun(ctx, c, in.ID))
		})
	add(a, fail, route{"get-keys", get, "/v1/keys", "What is known of the workspace's keys, and none of them", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.KeysView], error) {
			return one(b.Keys(ctx, c))
		})
	add(a, fail, route{"rotate-keys", post, "/v1/keys/rotate", "Make a new sealing key the one that seals", host.ScopeAdmin, http.StatusOK, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[api.KeysView], error) {
			return one(b.RotateKeys(ctx, c))
		})
	add(a, fail, route{"list-pins", get, "/v1/pins", "What the runs that have not ended need of a host: engine, ABI, records", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, _ *none) (*body[list[host.Pins]], error) {
			return many(b.Pins(ctx, c))
		})
	type resolution struct {
		ID   host.RunID `path:"id" maxLength:"64"`
		Body api.ResolveInput
	}
	add(a, fail, route{"resolve-run", post, "/v1/runs/{id}/resolve", "Say what became of an attempt whose outcome is unknown", host.ScopeApprove, 0, 0},
		func(ctx context.Context, c host.Caller, in *resolution) (*body[host.Run], error) {
			return one(b.Resolve(ctx, c, in.ID, in.Body))
		})
	events(a, b, fail)

	type state struct {
		State host.ApprovalState `query:"state" enum:"pending,approved,rejected,used,expired,void,superseded" doc:"leave it out for all"`
	}
	type approvalID struct {
		ID host.ApprovalID `path:"id" maxLength:"64"`
	}
	type decision struct { // huma does not fill what is embedded unexported
		ID   host.ApprovalID `path:"id" maxLength:"64"`
		Body api.Decision
	}
	add(a, fail, route{"list-approvals", get, "/v1/approvals", "What waits for a person, or did", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *state) (*body[list[host.Approval]], error) {
			return many(b.Approvals(ctx, c, in.State))
		})
	add(a, fail, route{"get-approval", get, "/v1/approvals/{id}", "One approval with all that would leave", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *approvalID) (*body[api.ApprovalView], error) {
			return one(b.Approval(ctx, c, in.ID))
		})
	add(a, fail, route{"decide-approval", post, "/v1/approvals/{id}/decision", "Say yes or no to exactly what was shown", host.ScopeApprove, 0, 0},
		func(ctx context.Context, c host.Caller, in *decision) (*body[host.Approval], error) {
			return one(b.Decide(ctx, c, in.ID, in.Body))
		})

	type edit struct {
		ID   host.ApprovalID `path:"id" maxLength:"64"`
		Body api.EditInput
	}
	add(a, fail, route{"edit-approval", post, "/v1/approvals/{id}/edit", "Change what is asked for; it is frozen, decided and asked for anew", host.ScopeApprove, 0, 0},
		func(ctx context.Context, c host.Caller, in *edit) (*body[host.Approval], error) {
			return one(b.Edit(ctx, c, in.ID, in.Body))
		})

	type part struct {
		From  int64 `query:"from" minimum:"0"`
		Limit int   `query:"limit" minimum:"1" maximum:"1000" default:"500"`
	}
	add(a, fail, route{"get-audit", get, "/v1/audit", "A part of the audit log with a signed checkpoint", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *part) (*body[api.AuditView], error) {
			return one(b.Audit(ctx, c, in.From, in.Limit))
		})

	type proof struct {
		Leaf  int64 `path:"leaf" minimum:"0" doc:"its number, as in a receipt's name"`
		Since int64 `query:"since" minimum:"0" doc:"the size of an earlier checkpoint that the log has to extend; 0 for none"`
	}
	add(a, fail, route{"prove-leaf", get, "/v1/audit/{leaf}/proof", "Proof that one leaf is in the signed log", host.ScopeRead, 0, 0},
		func(ctx context.Context, c host.Caller, in *proof) (*body[api.AuditProof], error) {
			return one(b.ProveLeaf(ctx, c, in.Leaf, in.Since))
		})
}
