package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
	"github.com/getmonroe/monroe/connectors/plugin/pluginpb"
)

// Limits of a planned request.
const (
	MaxBody    = 256 << 10 // bytes
	MaxHeaders = 16
	MaxHeader  = 1 << 10 // bytes of a value
	MaxAnswer  = connectors.DefaultAnswer
	MaxTimeout = 10 * time.Minute
)

// Operation is what the operator pinned.
type Operation struct {
	connectors.Operation
	// Headers are those that the plugin may set. A credential's can never be among them.
	Headers []string
	// KeyHeader carries the idempotency key of a keyed operation.
	KeyHeader string
	// Resource is what every call acts on; empty means the URL without its query.
	Resource string
	// Audience sees the request besides the host that it goes to.
	Audience []string
	// Readers may see the reply besides the workspace and that host.
	Readers []string
	Timeout time.Duration // of one attempt; 0 means the default
	// Credential is put in when the bytes leave; nil means that none is needed.
	Credential *connectors.Slot
}

var (
	nameForm   = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	headerForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)
	// literalHost begins with a scheme, a host without a wildcard, and a slash.
	literalHost = regexp.MustCompile(`^https?://[^/*?]+/`)
)

// carriesSecret says of a header that its value is a credential by its name: such a
// value would be frozen, shown and stored.
func carriesSecret(name string) bool {
	n := strings.ToLower(name)
	return n == "authorization" || n == "cookie" || n == "host" || strings.HasPrefix(n, "proxy-") ||
		strings.Contains(n, "token") || strings.Contains(n, "secret") || strings.Contains(n, "api-key") || strings.Contains(n, "apikey")
}

func (o *Operation) check(plugin string) error {
	if o.Timeout < 0 || o.Timeout > MaxTimeout || o.Price < 0 {
		return errors.New("the price is not negative, and the timeout is up to 10 minutes")
	}
	if !strings.HasPrefix(o.Name, plugin+".") {
		return fmt.Errorf("the name begins with %s", plugin+".")
	}
	if !slices.Contains([]abi.ReplayClass{abi.ReplayPure, abi.ReplayKeyed, abi.ReplayBlind}, o.Replay) {
		return fmt.Errorf("the replay class %q is none of pure, keyed and blind", o.Replay)
	}
	if (o.Replay == abi.ReplayKeyed) != (o.KeyHeader != "") || o.KeyHeader != "" && !headerForm.MatchString(o.KeyHeader) {
		return errors.New("a keyed operation names the header of its key, and no other does")
	}
	if len(o.Allow) == 0 {
		return errors.New("it allows no request")
	}
	for _, a := range o.Allow {
		if !literalHost.MatchString(string(a.URL)) {
			return fmt.Errorf("the URL %q does not begin with a scheme, a host and a slash; the host has no wildcard", a.URL)
		}
	}
	for _, h := range o.Headers {
		if !headerForm.MatchString(h) || carriesSecret(h) || strings.EqualFold(h, o.KeyHeader) || o.Credential != nil && strings.EqualFold(h, o.Credential.Header) {
			return fmt.Errorf("the header %q is the host's to set, or none", h)
		}
	}
	if o.Resource != "" {
		return abi.CheckResource(o.Resource)
	}
	return nil
}

// compare holds what a plugin describes against the pin. What it says is not repeated.
func compare(pinned []Operation, described []*pluginpb.Operation) error {
	if len(pinned) != len(described) {
		return fmt.Errorf("%w: it describes %d operations, %d are pinned", ErrPinned, len(described), len(pinned))
	}
	for _, p := range pinned {
		i := slices.IndexFunc(described, func(d *pluginpb.Operation) bool { return d.GetName() == p.Name })
		if i < 0 {
			return fmt.Errorf("%w: it does not describe %s", ErrPinned, p.Name)
		}
		d := described[i]
		args, err := abi.Canonical(d.GetArgs())
		if err != nil {
			return fmt.Errorf("%w: %s: its args are no JSON", ErrPinned, p.Name)
		}
		want, err := abi.Canonical(p.Args)
		if err != nil {
			return fmt.Errorf("%w: %s: the pinned args are no JSON: %w", ErrPinned, p.Name, err)
		}
		allow := slices.EqualFunc(p.Allow, d.GetAllow(), func(a connectors.Request, b *pluginpb.Pattern) bool {
			return a.Method == b.GetMethod() && string(a.URL) == b.GetUrl()
		})
		for what, same := range map[string]bool{
			"version": int(d.GetVersion()) == p.Version, "effect": d.GetEffect() == string(p.Effect), "replay": d.GetReplay() == string(p.Replay),
			"summary": d.GetSummary() == p.Summary, "args": bytes.Equal(args, want), "allow": allow,
		} {
			if !same {
				return fmt.Errorf("%w: %s: its %s differs", ErrPinned, p.Name, what)
			}
		}
	}
	return nil
}

// Connector is a plugin as a connector. It is safe for concurrent use.
type Connector struct {
	s   *supervisor
	ops map[string]Operation
	all []connectors.Operation
}

// NewConnector checks the pin and starts the plugin. One that does not start is no
// error: its operations are there, and refused until it does.
func NewConnector(c Config, pinned []Operation) (*Connector, error) {
	if !nameForm.MatchString(c.Name) {
		return nil, fmt.Errorf("plugin %q: a name is a lower-case letter, then letters, digits or _", c.Name)
	}
	if len(pinned) == 0 {
		return nil, fmt.Errorf("plugin %s: it has no operation", c.Name)
	}
	x := &Connector{ops: map[string]Operation{}}
	for _, o := range pinned {
		if err := o.check(c.Name); err != nil {
			return nil, fmt.Errorf("plugin %s: %s: %w", c.Name, o.Name, err)
		}
		x.ops[o.Name] = o
		x.all = append(x.all, o.Operation)
	}
	var err error
	if x.s, err = newSupervisor(c, "connector", describeConnector(pinned)); err != nil {
		return nil, fmt.Errorf("plugin %s: %w", c.Name, err)
	}
	_, _ = x.s.get() // what is wrong is in the log
	return x, nil
}

func describeConnector(pinned []Operation) func(context.Context, *grpc.ClientConn) error {
	return func(ctx context.Context, c *grpc.ClientConn) error {
		d, err := pluginpb.NewConnectorClient(c).Describe(ctx, &pluginpb.DescribeRequest{})
		if err != nil {
			return fmt.Errorf("it does not describe itself: %w", quoted(err))
		}
		return compare(pinned, d.GetOperations())
	}
}

// Close ends the plugin.
func (x *Connector) Close() error { return x.s.Close() }

// Operations are the pinned ones.
func (x *Connector) Operations() []connectors.Operation { return x.all }

// Plan lets the plugin say what it would send, and freezes that as far as the pin
// allows it.
func (x *Connector) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	o := x.ops[c.Operation]
	var reply *pluginpb.PlanReply
	denial := x.s.call(context.Background(), func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = pluginpb.NewConnectorClient(conn).Plan(ctx, &pluginpb.PlanRequest{Operation: c.Operation, Args: c.Args, NowUnixMs: c.Now.UnixMilli()})
		return err
	})
	if denial == nil {
		denial = refusal(reply.GetRefusal())
	}
	if denial != nil {
		return connectors.Plan{}, denial
	}
	p, err := o.freeze(reply.GetRequest(), c.Key)
	if err != nil {
		x.s.Alarm("it planned what it may not: " + err.Error())
		return p, abi.Deny(abi.Upstream, "the plugin "+x.s.Name+" planned what it may not: "+err.Error(), "tell the operator")
	}
	return p, nil
}

// freeze makes the plan: the request is the plugin's within the pin, all else is the
// pin's. Errors do not repeat what the plugin said.
func (o *Operation) freeze(r *pluginpb.Request, key string) (connectors.Plan, error) {
	t, err := canon.URL(r.GetUrl())
	if err != nil {
		return connectors.Plan{}, errors.New("the URL is not a plain one")
	}
	method, host := r.GetMethod(), t.Host
	resource := t.Resource
	if abi.CheckResource(resource) != nil {
		return connectors.Plan{}, errors.New("the URL is not a plain one")
	}
	if !slices.ContainsFunc(o.Allow, func(a connectors.Request) bool { return a.Method == method && a.URL.Covers(resource) }) {
		return connectors.Plan{}, errors.New("the request is not among those that are pinned")
	}
	if len(r.GetBody()) > MaxBody || len(r.GetHeader()) > MaxHeaders {
		return connectors.Plan{}, errors.New("the request is too large")
	}
	var header []connectors.Header
	for _, h := range r.GetHeader() {
		pinned := slices.IndexFunc(o.Headers, func(n string) bool { return strings.EqualFold(n, h.GetName()) })
		if pinned < 0 {
			return connectors.Plan{}, errors.New("it sets a header that is not pinned")
		}
		if v := h.GetValue(); len(v) > MaxHeader || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
			return connectors.Plan{}, errors.New("a header is not printable ASCII of a kilobyte at most")
		}
		header = append(header, connectors.Header{Name: http.CanonicalHeaderKey(o.Headers[pinned]), Value: h.GetValue()})
	}
	if o.Replay == abi.ReplayKeyed {
		if key == "" {
			return connectors.Plan{}, errors.New("the call has no key")
		}
		header = append(header, connectors.Header{Name: o.KeyHeader, Value: key})
	}
	if o.Resource != "" {
		resource = o.Resource
	}
	p := connectors.Plan{
		Resources: []string{resource}, Destination: t.Origin, Audience: append([]string{"host:" + host}, o.Audience...), Ceiling: o.Price,
		Frozen:  connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: method, URL: t.URL, Header: header, Body: r.GetBody(), Credential: o.Credential}},
		Timeout: o.Timeout, MaxAnswer: MaxAnswer,
	}
	if o.Credential != nil {
		p.Account = o.Credential.Connection
	}
	return p, nil
}

// refusal turns an id into the host's words.
func refusal(r pluginpb.Refusal) *abi.Denial {
	switch r {
	case pluginpb.Refusal_REFUSAL_NONE:
		return nil
	case pluginpb.Refusal_REFUSAL_INVALID:
		return abi.Deny(abi.Invalid, "the plugin does not take these arguments", "look at the operation's schema")
	case pluginpb.Refusal_REFUSAL_TOO_LARGE:
		return abi.Deny(abi.TooLarge, "the arguments are too large for the plugin", "send less")
	case pluginpb.Refusal_REFUSAL_NOT_FOUND:
		return abi.Deny(abi.NotFound, "the plugin does not know what the arguments name", "correct them")
	case pluginpb.Refusal_REFUSAL_UPSTREAM:
	}
	return &abi.Denial{Code: abi.Upstream, Reason: "the plugin could not read the answer", Remedy: "tell the operator"}
}

// Parse lets the plugin read the answer. An effect that happened before a failure is the
// host's to book: the denial leaves it open.
func (x *Connector) Parse(ctx context.Context, c connectors.Call, p connectors.Plan, a *connectors.Answer) (connectors.Result, *abi.Denial) {
	o := x.ops[c.Operation]
	body, err := io.ReadAll(a.Body)
	if err != nil {
		d := &abi.Denial{Code: abi.Upstream, Reason: "the answer was cut off or is too large", Remedy: "look at the other side before this is tried again"}
		if errors.Is(err, context.DeadlineExceeded) {
			d.Code, d.Reason = abi.Timeout, "the answer did not arrive in time"
		}
		return connectors.Result{}, d
	}
	q := &pluginpb.ParseRequest{Operation: c.Operation, Args: c.Args, Status: int32(a.Status), Body: body, Repeated: c.Repeated}
	for name, values := range a.Header {
		for _, v := range values {
			q.Header = append(q.Header, &pluginpb.Header{Name: name, Value: strings.ToValidUTF8(v, "\uFFFD")})
		}
	}
	slices.SortStableFunc(q.Header, func(a, b *pluginpb.Header) int { return strings.Compare(a.GetName(), b.GetName()) })
	var reply *pluginpb.ParseReply
	denial := x.s.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = pluginpb.NewConnectorClient(conn).Parse(ctx, q)
		return err
	})
	if denial == nil {
		denial = refusal(reply.GetRefusal())
	}
	var text []byte
	if denial == nil {
		if text, err = abi.Canonical(reply.GetReply()); err != nil || len(text) > MaxReply-1024 {
			x.s.Alarm("its reply is too large, or no JSON with integers only")
			denial = abi.Deny(abi.Upstream, "the plugin's reply is too large, or no JSON with integers only", "tell the operator")
		}
	}
	if denial != nil {
		denial.Effect = "" // the bytes were handed over: the host knows what that means
		return connectors.Result{}, denial
	}
	cost := o.Price
	return connectors.Result{
		Reply: json.RawMessage(text), Cost: &cost,
		Provenance: connectors.Provenance{Readers: slices.Concat([]string{"workspace"}, p.Audience, o.Readers), Origins: p.Resources},
	}, nil
}
