package egress

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

// Resolve runs the look-ups that the connector needs, through lookup, and returns
// the call with what they gave. For most connectors it returns the call as it is.
// The scope is resolved again before sending by calling it again.
func (e *Egress) Resolve(ctx context.Context, call connectors.Call, lookup connectors.Lookup) (_ connectors.Call, denial *abi.Denial) {
	x, ok := e.ops[call.Operation]
	if !ok {
		return call, unknownOperation(call.Operation)
	}
	r, ok := x.connector.(connectors.Resolver)
	if !ok {
		return call, nil
	}
	defer recovered(&denial, abi.OutcomeNone)
	got, denial := r.Resolve(ctx, call, lookup)
	if denial != nil {
		return call, denial
	}
	call.Resolved = got
	return call, nil
}

// Plan turns a call into frozen bytes and checks them against the descriptor. It
// does nothing outside; only a connector that resolves first uses lookup, and only
// if call.Resolved is nil. The descriptor is the zero value if there is none.
func (e *Egress) Plan(ctx context.Context, call connectors.Call, lookup connectors.Lookup) (connectors.Operation, connectors.Plan, *abi.Denial) {
	x, ok := e.ops[call.Operation]
	if !ok {
		return connectors.Operation{}, connectors.Plan{}, unknownOperation(call.Operation)
	}
	op := copyOperation(x.op)
	if call.Resolved == nil {
		resolved, d := e.Resolve(ctx, call, lookup)
		if d != nil {
			return op, connectors.Plan{}, d
		}
		call = resolved
	}
	p, d := plan(x.connector, call)
	if d != nil {
		d.Effect = abi.OutcomeNone
		return op, connectors.Plan{}, d
	}
	if err := checkPlan(x.op, p); err != nil {
		return op, connectors.Plan{}, abi.Deny(abi.Internal, "the connector's plan was refused: "+err.Error(), "report this to the connector's author")
	}
	return op, p, nil
}

func plan(c connectors.Connector, call connectors.Call) (_ connectors.Plan, denial *abi.Denial) {
	defer recovered(&denial, abi.OutcomeNone)
	return c.Plan(call)
}

// recovered turns a panic into a denial. The value stays out of it: it could hold
// anything.
func recovered(d **abi.Denial, effect abi.Outcome) {
	if r := recover(); r != nil {
		*d = &abi.Denial{Code: abi.Internal, Reason: "the connector failed in an unexpected way", Effect: effect, Remedy: "report this to the connector's author"}
	}
}

func unknownOperation(name string) *abi.Denial {
	return abi.Deny(abi.Unsupported, fmt.Sprintf("there is no operation %.64q", name), "use one that tool.list names")
}

// checkPlan holds a plan against its descriptor.
func checkPlan(op connectors.Operation, p connectors.Plan) error {
	if len(p.Resources) == 0 {
		return fmt.Errorf("it names no resource")
	}
	for _, r := range p.Resources {
		if err := abi.CheckResource(r); err != nil {
			return err
		}
	}
	if len(p.Audience) == 0 || slices.Contains(p.Audience, "") {
		return fmt.Errorf("it names no audience")
	}
	if p.Destination == "" {
		return fmt.Errorf("it names no destination")
	}
	if p.Ceiling < 0 || p.Timeout < 0 || p.MaxAnswer < 0 {
		return fmt.Errorf("a limit is negative")
	}
	if _, err := p.Digest(); err != nil {
		return err
	}
	f := p.Frozen
	switch {
	case f.HTTP != nil:
		return checkHTTP(op, p)
	case f.FileRead != nil || f.FileList != nil || f.Find != nil:
		if op.Effect != abi.EffectRead {
			return fmt.Errorf("%s reads a file although its effect is %s", op.Name, op.Effect)
		}
	case f.SMTP != nil || f.Maildir != nil:
		if op.Effect != abi.EffectSend && op.Effect != abi.EffectRespond {
			return fmt.Errorf("%s sends mail although its effect is %s", op.Name, op.Effect)
		}
	}
	return nil
}

func checkHTTP(op connectors.Operation, p connectors.Plan) error {
	f := p.Frozen.HTTP
	req, err := newRequest(context.Background(), f)
	if err != nil {
		return err
	}
	plain := *req.URL
	plain.RawQuery, plain.ForceQuery = "", false
	allowed := slices.ContainsFunc(op.Allow, func(a connectors.Request) bool {
		return a.Method == f.Method && a.URL.Covers(plain.String())
	})
	if !allowed {
		return fmt.Errorf("%s %s is not among the requests of %s", f.Method, plain.Host, op.Name)
	}
	if f.Credential == nil {
		if p.Account != "" {
			return fmt.Errorf("it names an account but has no slot for its credential")
		}
		return nil
	}
	switch {
	case f.Credential.Connection == "" || f.Credential.Connection != p.Account:
		return fmt.Errorf("the slot is not for the plan's account")
	case !validName(f.Credential.Header):
		return fmt.Errorf("the slot's header is not a header")
	case slices.ContainsFunc(f.Header, func(h connectors.Header) bool { return strings.EqualFold(h.Name, f.Credential.Header) }):
		return fmt.Errorf("the slot's header is set already")
	}
	return nil
}

// newRequest builds the request of the standard library and makes sure that it
// says exactly what was frozen.
func newRequest(ctx context.Context, f *connectors.HTTPRequest) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, f.Method, f.URL, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("the request is not well formed")
	}
	u := req.URL
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "":
		return nil, fmt.Errorf("the URL is not a plain http or https one")
	case u.String() != f.URL:
		return nil, fmt.Errorf("the URL is not in its normal form")
	case strings.ToLower(u.Host) != u.Host:
		return nil, fmt.Errorf("the host is not in lower case")
	case strings.Contains(u.Path, "/../") || strings.HasSuffix(u.Path, "/.."):
		return nil, fmt.Errorf("the URL holds dot segments")
	}
	for _, h := range f.Header {
		if !validName(h.Name) || !validValue(h.Value) {
			return nil, fmt.Errorf("the header %.40q is not well formed", h.Name)
		}
		switch http.CanonicalHeaderKey(h.Name) {
		case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer", "Te", "Proxy-Authorization", "Cookie", "Expect":
			return nil, fmt.Errorf("the header %s is the host's", h.Name)
		}
		req.Header[http.CanonicalHeaderKey(h.Name)] = append(req.Header[http.CanonicalHeaderKey(h.Name)], h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // the library adds none of its own
	}
	return req, nil
}

func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
