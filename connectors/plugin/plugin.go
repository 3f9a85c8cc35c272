// Package plugin is what authors of plugins use: a connector or a scanner in a program
// of its own, which an operator installs beside monroed.
//
//	func main() { plugin.ServeConnector(tickets{}) }
//
// A plugin never performs anything. It says which request it would make, the host
// decides on it, sends it with the operator's credential, and hands back the answer.
// It runs without network, files, environment and standard input: what it needs has to
// be in its program. Build it without cgo.
//
// Laws, each with a test in host/plugin or cmd/monroed:
//
//  1. What the operator pinned counts, never what a plugin describes.
//  2. A plugin's words reach nobody as the host's: replies are external, and refusals
//     and findings are ids whose text is the host's or the operator's.
//
// It knows the protocol. It must not know the host.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	hclog "github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/getmonroe/monroe/connectors/plugin/pluginpb"
)

// MaxMessage is the largest message of the protocol, in bytes, either way.
const MaxMessage = 8 << 20

// Names of the two kinds.
const (
	KindConnector = "connector"
	KindScanner   = "scanner"
)

// Handshake lets a program that was started by hand say so. It is no secret.
var Handshake = goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "MONROE_PLUGIN", MagicCookieValue: "v1"}

// What Plan and Parse refuse with. The guest is told the host's words for it.
var (
	ErrInvalid  = errors.New("the arguments are wrong")
	ErrTooLarge = errors.New("the arguments are too large")
	ErrNotFound = errors.New("what the arguments name does not exist")
	ErrUpstream = errors.New("the other side's answer cannot be understood")
)

// Operation describes what the operator pins, field by field. See docs/plugins.md.
type Operation struct {
	Name    string // plugin.verb
	Version int    // from 1
	Effect  string // read, write, send, delete, share, pay or metered
	Replay  string // pure, keyed or blind
	Summary string
	Args    string // JSON Schema
	Allow   []Pattern
}

// Pattern is one kind of request.
type Pattern struct{ Method, URL string }

// Call is one invocation.
type Call struct {
	Operation string
	Args      json.RawMessage
	// Now is when the guest asked; only Plan has it.
	Now time.Time
	// Repeated says that the answer to an earlier attempt was lost; only Parse has it.
	Repeated bool
}

// Request is what would be sent. Credential and idempotency key are the host's to add.
type Request struct {
	Method, URL string
	Header      []Header
	Body        []byte
}

// Header is one line.
type Header struct{ Name, Value string }

// Answer is what came back. It holds at most what the operator pinned, 4 MiB if nothing.
type Answer struct {
	Status int
	Header []Header
	Body   []byte
}

// A Connector plans and parses. Its methods are called concurrently.
type Connector interface {
	Operations() []Operation
	// Plan is pure: equal calls give equal requests.
	Plan(Call) (Request, error)
	// Parse returns what the guest gets: it is encoded as JSON, with integers only.
	Parse(Call, Answer) (any, error)
}

// Content is what a Scanner looks at.
type Content struct {
	// Leaves is true for bytes that would leave, false for a reply that came in.
	Leaves bool
	// Kind and Destination are those of the frozen bytes, empty for a reply.
	Kind, Destination string
	Bytes             []byte
}

// A Scanner looks at bytes. Scan is called concurrently.
type Scanner interface {
	// Findings are the ids that Scan can answer with; the operator pins their text.
	Findings() []string
	// Scan returns an id, or nothing. An error holds the bytes back like a finding.
	Scan(Content) (string, error)
}

// ServeConnector serves until the host is gone.
func ServeConnector(c Connector) {
	serve(KindConnector, func(s *grpc.Server) { pluginpb.RegisterConnectorServer(s, connectorServer{c: c}) })
}

// ServeScanner serves until the host is gone.
func ServeScanner(s Scanner) {
	serve(KindScanner, func(g *grpc.Server) { pluginpb.RegisterScannerServer(g, scannerServer{s: s}) })
}

func serve(kind string, register func(*grpc.Server)) {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: Handshake,
		Plugins:         goplugin.PluginSet{kind: served{register: register}},
		Logger:          hclog.NewNullLogger(),
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage))...)
		},
	})
}

type served struct {
	goplugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

func (s served) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	s.register(g)
	return nil
}

func (served) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin has no client")
}

type connectorServer struct {
	pluginpb.UnimplementedConnectorServer
	c Connector
}

func (s connectorServer) Describe(context.Context, *pluginpb.DescribeRequest) (*pluginpb.Description, error) {
	d := &pluginpb.Description{}
	for _, o := range s.c.Operations() {
		p := &pluginpb.Operation{Name: o.Name, Version: int32(o.Version), Effect: o.Effect, Replay: o.Replay, Summary: o.Summary, Args: []byte(o.Args)}
		for _, a := range o.Allow {
			p.Allow = append(p.Allow, &pluginpb.Pattern{Method: a.Method, Url: a.URL})
		}
		d.Operations = append(d.Operations, p)
	}
	return d, nil
}

func (s connectorServer) Plan(_ context.Context, r *pluginpb.PlanRequest) (*pluginpb.PlanReply, error) {
	q, err := s.c.Plan(Call{Operation: r.GetOperation(), Args: r.GetArgs(), Now: time.UnixMilli(r.GetNowUnixMs()).UTC()})
	if err != nil {
		refusal, err := refused(err)
		return &pluginpb.PlanReply{Refusal: refusal}, err
	}
	out := &pluginpb.Request{Method: q.Method, Url: q.URL, Body: q.Body}
	for _, h := range q.Header {
		out.Header = append(out.Header, &pluginpb.Header{Name: h.Name, Value: h.Value})
	}
	return &pluginpb.PlanReply{Request: out}, nil
}

func (s connectorServer) Parse(_ context.Context, r *pluginpb.ParseRequest) (*pluginpb.ParseReply, error) {
	a := Answer{Status: int(r.GetStatus()), Body: r.GetBody()}
	for _, h := range r.GetHeader() {
		a.Header = append(a.Header, Header{h.GetName(), h.GetValue()})
	}
	v, err := s.c.Parse(Call{Operation: r.GetOperation(), Args: r.GetArgs(), Repeated: r.GetRepeated()}, a)
	if err != nil {
		refusal, err := refused(err)
		return &pluginpb.ParseReply{Refusal: refusal}, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errors.New("the reply is not JSON")
	}
	return &pluginpb.ParseReply{Reply: b}, nil
}

// errFailed becomes UNKNOWN on its way. It says nothing more: the host repeats no words
// of a plugin.
var errFailed = errors.New("the plugin failed")

func refused(err error) (pluginpb.Refusal, error) {
	switch {
	case errors.Is(err, ErrInvalid):
		return pluginpb.Refusal_REFUSAL_INVALID, nil
	case errors.Is(err, ErrTooLarge):
		return pluginpb.Refusal_REFUSAL_TOO_LARGE, nil
	case errors.Is(err, ErrNotFound):
		return pluginpb.Refusal_REFUSAL_NOT_FOUND, nil
	case errors.Is(err, ErrUpstream):
		return pluginpb.Refusal_REFUSAL_UPSTREAM, nil
	}
	return pluginpb.Refusal_REFUSAL_NONE, errFailed
}

type scannerServer struct {
	pluginpb.UnimplementedScannerServer
	s Scanner
}

func (s scannerServer) Describe(context.Context, *pluginpb.DescribeRequest) (*pluginpb.Description, error) {
	return &pluginpb.Description{Findings: s.s.Findings()}, nil
}

func (s scannerServer) Scan(_ context.Context, r *pluginpb.ScanRequest) (*pluginpb.ScanReply, error) {
	found, err := s.s.Scan(Content{
		Leaves: r.GetDirection() != pluginpb.Direction_DIRECTION_IN, Kind: r.GetKind(), Destination: r.GetDestination(), Bytes: r.GetContent(),
	})
	if err != nil {
		return nil, errFailed
	}
	return &pluginpb.ScanReply{Finding: found}, nil
}
