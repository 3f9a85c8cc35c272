// Package egress plans operations and performs what was planned. It owns the one
// dialer of the host.
//
// Laws, each with a test of the same name:
//
//  1. Nothing is dialled, resolved or opened before Perform has a permit for exactly
//     these frozen bytes.
//  2. What is sent is the frozen bytes, the credential put into its slot, and
//     nothing else: no redirect, no cookie, no retry.
//  3. A credential goes to the exact origins that it is bound to, and is scrubbed
//     from what comes back.
//  4. Every address is checked after its name was resolved and again on the socket
//     that connects. What is not public is refused, unless the operator opened that
//     very address for that very operation.
//  5. A failure says what happened outside: none, only where that is proved.
//  6. A connector's panic is a denial.
//  7. A file is read only if every step to it is a real directory and it is a
//     regular file: no link, device or pipe, also when one is swapped in meanwhile.
//
// It knows connectors, frozen bytes, addresses and how each kind is performed. It
// must not know why a call was allowed, who asked, labels, or budgets.
package egress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/vault"
)

// Config is what the operator decides. Only Connectors is required.
type Config struct {
	Connectors []connectors.Connector
	// Credentials fill slots; nil means that there are none.
	Credentials Credentials
	// Folders are where the files connector's folders are: name to absolute path.
	Folders map[string]string
	// Maildirs are where mail is delivered without a server: name to absolute path.
	Maildirs map[string]string
	// SMTP are the operator's mail servers by name.
	SMTP map[string]SMTPServer
	// Open are the addresses that the address rule does not hold for.
	Open []Opening
	// Resolver turns names into addresses; nil means the system's, asked through
	// this package's own dialer.
	Resolver Resolver
	// Leaser gives leave to each connection; nil gives it to all.
	Leaser Leaser
	// RootCAs verify servers; nil means the system's.
	RootCAs *x509.CertPool
	// OwnAddresses are those of this machine, refused like private ones; nil means
	// that its interfaces are asked at each dial.
	OwnAddresses func() []netip.Addr
	// Now is the clock that an attempt's last moment is held to just before its first
	// byte; nil means the machine's.
	Now func() time.Time
}

// Opening lets one operation reach one address that is not public, such as a model
// on the same machine.
type Opening struct {
	Operation string
	// Address is host:port exactly as the request names it: 127.0.0.1:11434 does not
	// open a name that happens to resolve to it.
	Address string
}

// SMTPServer is a mail server.
type SMTPServer struct {
	// Address is host:port. The address rule does not hold for it.
	Address string
	// User is who logs in with the credential of the message's connection.
	User string
	// ImplicitTLS begins with TLS, as on port 465, instead of STARTTLS.
	ImplicitTLS bool
	// PlainText allows to go on without encryption where the server offers none. It
	// is implied for loopback addresses.
	PlainText bool
	// Hello is the name given in EHLO; empty means localhost.
	Hello string
}

// Permit is the witness of an Allow; grant.Permit is the only real one.
type Permit interface{ Covers(abi.Digest) bool }

// Credentials hold secrets. The error may say which connection and origin, never
// the value. *vault.Static is one.
type Credentials interface {
	Fill(ctx context.Context, connection, origin string) (vault.Secret, error)
}

// Resolver turns a name into addresses. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Egress is safe for concurrent use.
type Egress struct {
	c    Config
	ops  map[string]entry
	dial *dialer
}

type entry struct {
	op        connectors.Operation
	connector connectors.Connector
	digest    abi.Digest
}

// New checks every descriptor and every configured place.
func New(c Config) (*Egress, error) {
	form := regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}\.[a-z][a-z0-9_]{0,31}$`)
	if c.Now == nil {
		c.Now = time.Now
	}
	e := &Egress{c: c, ops: map[string]entry{}}
	for _, con := range c.Connectors {
		for _, op := range con.Operations() {
			if !form.MatchString(op.Name) {
				return nil, fmt.Errorf("egress: operation %q: a connector, a dot and a verb, such as files.read", op.Name)
			}
			if _, ok := e.ops[op.Name]; ok {
				return nil, fmt.Errorf("egress: two connectors declare %s", op.Name)
			}
			if err := checkOperation(op); err != nil {
				return nil, fmt.Errorf("egress: %s: %w", op.Name, err)
			}
			if _, ok := con.(connectors.Prober); !ok && op.Replay == abi.ReplayProbe {
				return nil, fmt.Errorf("egress: %s: its class is probe and its connector cannot look", op.Name)
			}
			d, err := DescriptorDigest(op)
			if err != nil {
				return nil, fmt.Errorf("egress: %s: %w", op.Name, err)
			}
			e.ops[op.Name] = entry{op, con, d}
		}
	}
	for _, places := range []map[string]string{c.Folders, c.Maildirs} {
		for name, path := range places {
			if !filepath.IsAbs(path) {
				return nil, fmt.Errorf("egress: folder %q: the path %q is not absolute", name, path)
			}
		}
	}
	for name, s := range c.SMTP {
		if _, _, err := net.SplitHostPort(s.Address); err != nil {
			return nil, fmt.Errorf("egress: SMTP server %q: %q is not host:port", name, s.Address)
		}
	}
	for _, o := range c.Open {
		if _, ok := e.ops[o.Operation]; !ok {
			return nil, fmt.Errorf("egress: opening %s: there is no operation %q", o.Address, o.Operation)
		}
		if h, p, err := net.SplitHostPort(o.Address); err != nil || h == "" || p == "" {
			return nil, fmt.Errorf("egress: opening %q is not host:port", o.Address)
		}
	}
	e.dial = newDialer(c)
	return e, nil
}

func checkOperation(op connectors.Operation) error {
	switch {
	case op.Version < 1:
		return fmt.Errorf("the version is at least 1")
	case !op.Effect.Valid() || op.Effect == abi.EffectNone:
		return fmt.Errorf("the effect %q is not known", op.Effect)
	case !slices.Contains([]abi.ReplayClass{abi.ReplayPure, abi.ReplayKeyed, abi.ReplayProbe, abi.ReplayConditional, abi.ReplayBlind}, op.Replay):
		return fmt.Errorf("the replay class %q is not known", op.Replay)
	case op.Effect.Asks() && op.Replay == abi.ReplayPure:
		return fmt.Errorf("an operation with the effect %s cannot be pure", op.Effect)
	case !slices.Contains([]connectors.Renderer{connectors.RenderRaw, connectors.RenderHTTP, connectors.RenderMail, connectors.RenderFile}, op.Renderer):
		return fmt.Errorf("the renderer %q is not one of the host's", op.Renderer)
	case (op.Replay == abi.ReplayKeyed) != (op.Window > 0):
		return fmt.Errorf("a keyed operation says for how long its keys are known, and no other does")
	case op.Summary == "":
		return fmt.Errorf("it has no summary")
	}
	canon, err := abi.Canonical(op.Args)
	if err != nil || canon[0] != '{' {
		return fmt.Errorf("it has no JSON Schema of its arguments")
	}
	for _, a := range op.Allow {
		if a.Method == "" {
			return fmt.Errorf("a request pattern has no method")
		}
		if err := abi.CheckPattern(a.URL); err != nil {
			return err
		}
	}
	return nil
}

// DescriptorDigest identifies a descriptor: the SHA-256 of its canonical JSON. An
// operator pins it, so that a changed descriptor is noticed.
func DescriptorDigest(op connectors.Operation) (abi.Digest, error) {
	raw, err := json.Marshal(op)
	if err != nil {
		return abi.Digest{}, fmt.Errorf("descriptor: %w", err)
	}
	canon, err := abi.Canonical(raw)
	if err != nil {
		return abi.Digest{}, fmt.Errorf("descriptor: %w", err)
	}
	return sha256.Sum256(canon), nil
}

// Operations are all descriptors, sorted by name.
func (e *Egress) Operations() []connectors.Operation {
	var out []connectors.Operation
	for _, name := range slices.Sorted(maps.Keys(e.ops)) {
		out = append(out, copyOperation(e.ops[name].op))
	}
	return out
}

// Operation returns the descriptor of that name.
func (e *Egress) Operation(name string) (connectors.Operation, bool) {
	x, ok := e.ops[name]
	return copyOperation(x.op), ok
}

// Descriptor returns the digest of the descriptor of that name.
func (e *Egress) Descriptor(name string) (abi.Digest, bool) {
	x, ok := e.ops[name]
	return x.digest, ok
}

func copyOperation(op connectors.Operation) connectors.Operation {
	op.Args, op.Allow = bytes.Clone(op.Args), slices.Clone(op.Allow)
	return op
}

// Counters are what the dialer has done since New. They only grow.
type Counters struct{ Dials, Lookups int64 }

// Counters tells what left this host, for tests and metrics.
func (e *Egress) Counters() Counters {
	return Counters{Dials: e.dial.dials.Load(), Lookups: e.dial.lookups.Load()}
}

// counter is shared by concurrent calls.
type counter = atomic.Int64
