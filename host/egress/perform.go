package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/vault"
)

// Outcome is what came of a performed plan. Denial is nil exactly if Result is
// good; its Effect says what happened outside.
type Outcome struct {
	Result connectors.Result
	Denial *abi.Denial
	// BytesOut and BytesIn crossed the network, TLS included; for files they are
	// bytes written and read.
	BytesOut, BytesIn int64
	Duration          time.Duration
}

// attempt is one performance of one plan.
type attempt struct {
	e       *Egress
	op      connectors.Operation
	plan    connectors.Plan
	emit    func(string)
	in, out atomic.Int64
	// notAfter is when the attempt is over: its zero value is never.
	notAfter time.Time
	// changes says that the operation changes something outside, so that a lost
	// answer is a question for a person.
	changes bool
	close   []func()

	mu    sync.Mutex
	conns []*leased
}

// dial opens a connection of this attempt: it is cut when the attempt is called off.
func (a *attempt) dial(ctx context.Context, hostport string, trusted bool) (net.Conn, error) {
	conn, err := a.e.dial.to(ctx, a.op.Name, hostport, trusted)
	if l, ok := conn.(*leased); ok && err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.conns = append(a.conns, l)
	}
	return conn, err
}

// shut closes what a library has left open or is about to close: no connection
// outlives its attempt, so that its account is complete.
func (a *attempt) shut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		_ = c.Close() // it may be closed already
	}
}

// cut ends every connection at once.
func (a *attempt) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		_ = c.cut() // it is closed in any case
	}
}

// Perform sends the frozen bytes of a plan, if the permit covers them, and lets the
// connector read the answer. emit gets what has arrived so far and may be nil. A
// failure never comes as an error: every way it can end is an Outcome.
func (e *Egress) Perform(ctx context.Context, permit Permit, call connectors.Call, p connectors.Plan, emit func(string)) Outcome {
	if denial := covered(permit, p); denial != nil {
		return Outcome{Denial: denial}
	}
	x, ok := e.ops[call.Operation]
	if !ok {
		return Outcome{Denial: unknownOperation(call.Operation)}
	}
	if err := checkPlan(x.op, p); err != nil {
		return Outcome{Denial: abi.Deny(abi.Internal, "the stored plan was refused: "+err.Error(), "ask again, so that the call is planned anew")}
	}
	if emit == nil {
		emit = func(string) {}
	}
	a := &attempt{e: e, op: x.op, plan: p, emit: emit, notAfter: call.NotAfter, changes: x.op.Effect.Asks() || x.op.Effect == abi.EffectRespond}
	var result connectors.Result
	o := a.run(ctx, func(ctx context.Context, answer *connectors.Answer) (denial *abi.Denial) {
		if result, denial = parse(ctx, x.connector, call, p, answer, a.lost()); denial != nil && denial.Effect == "" {
			denial.Effect = a.lost()
		}
		return denial
	})
	if o.Denial == nil {
		o.Result = result
	}
	return o
}

// covered refuses a plan whose frozen bytes are not those of the permit.
func covered(permit Permit, p connectors.Plan) *abi.Denial {
	digest, err := p.Digest()
	if err != nil || permit == nil || !permit.Covers(digest) {
		return abi.Deny(abi.Denied, "the permit does not cover these bytes", "ask again, so that the call is decided anew")
	}
	return nil
}

// run makes the attempt within its time, lets read take in the answer, and counts
// the bytes. The Outcome is without a result.
func (a *attempt) run(ctx context.Context, read func(context.Context, *connectors.Answer) *abi.Denial) (o Outcome) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, a.plan.TimeLimit())
	defer cancel()
	if !a.notAfter.IsZero() {
		var over context.CancelFunc
		ctx, over = context.WithDeadline(ctx, a.notAfter)
		defer over()
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(over); a.cut() })
	defer func() {
		if !stop() {
			<-over
		}
		for _, f := range a.close {
			f()
		}
		a.shut()
		o.BytesOut, o.BytesIn, o.Duration = a.out.Load(), a.in.Load(), time.Since(start)
	}()
	answer, denial := a.perform(ctx)
	if denial == nil {
		denial = read(ctx, answer)
	}
	return Outcome{Denial: denial}
}

func parse(ctx context.Context, c connectors.Connector, call connectors.Call, p connectors.Plan, a *connectors.Answer, lost abi.Outcome) (_ connectors.Result, denial *abi.Denial) {
	defer recovered(&denial, lost)
	return c.Parse(ctx, call, p, a)
}

func (a *attempt) perform(ctx context.Context) (*connectors.Answer, *abi.Denial) {
	switch f := a.plan.Frozen; {
	case f.HTTP != nil:
		return a.http(ctx, f.HTTP)
	case f.SMTP != nil:
		return a.smtp(ctx, f.SMTP)
	case f.Maildir != nil:
		return a.maildir(f.Maildir)
	case f.FileRead != nil:
		return a.fileRead(f.FileRead)
	case f.FileList != nil:
		return a.fileList(f.FileList)
	case f.Find != nil:
		return a.find(f.Find)
	}
	return nil, abi.Deny(abi.Internal, "the host does not know this kind of frozen bytes", "")
}

// lost is what a call did whose bytes were handed over and whose answer cannot be
// read. A read did nothing; money may have been spent, a message may have arrived.
func (a *attempt) lost() abi.Outcome {
	if a.op.Effect == abi.EffectRead {
		return abi.OutcomeNone
	}
	return abi.OutcomeMay
}

// errLate is why an attempt stops whose time was over before anything left.
var errLate = errors.New("the attempt's time is over")

// late reports whether nothing may leave any more. Both clocks are asked: the
// monotonic one stands still while a machine sleeps, and the wall may be set back. It
// is asked last, just before the first byte.
func (a *attempt) late() bool {
	if a.notAfter.IsZero() {
		return false
	}
	now := a.e.c.Now()
	return over(a.notAfter.Sub(now), now.Round(0), a.notAfter.Round(0))
}

// over reports whether no time is left by the monotonic clock, or the wall's is past the end.
func over(left time.Duration, wall, end time.Time) bool { return left < 0 || wall.After(end) }

// failed says what an error means. Handed is whether any of the frozen bytes may
// have reached the other side.
func (a *attempt) failed(err error, handed bool) *abi.Denial {
	var timeout net.Error
	late := errors.Is(err, errLate) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
	switch {
	case handed && a.changes:
		return &abi.Denial{
			Code: abi.OutcomeUnknown, Effect: abi.OutcomeMay,
			Reason: "the connection broke after the request was handed over, so it may have happened",
			Remedy: "look at the other side before this is tried again",
		}
	case errors.Is(err, ErrAddress):
		return abi.Deny(abi.Scope, "the host does not connect to this address: it is not a public one", "use a public address, or ask the operator to open this one")
	case errors.Is(err, ErrLease):
		return &abi.Denial{Code: abi.Rate, Effect: abi.OutcomeNone, Reason: "the host has no egress lease left for this connection", Remedy: "try again in a moment", RetryAfterMS: 1000}
	case errors.Is(err, vault.ErrCredential):
		return abi.Deny(abi.ConnectorRevoked, "there is no credential of this connection for this place", "connect it again")
	case errors.Is(err, errResolve):
		return abi.Deny(abi.Upstream, "the host name was not found", "check the name, or try again later")
	}
	d := abi.Deny(abi.Upstream, "the connection to the other side failed", "try again later")
	if late {
		d = abi.Deny(abi.Timeout, "the other side did not answer in time", "try again later")
	}
	if handed {
		d.Effect = a.lost()
	}
	return d
}

// Ready reports what of the operator's a plan needs and is not there: a server, a
// folder or a credential. It touches nothing outside; nil means that all is there.
func (e *Egress) Ready(ctx context.Context, p connectors.Plan) *abi.Denial {
	a := &attempt{e: e, plan: p}
	there, origin := true, ""
	switch f := p.Frozen; {
	case f.HTTP != nil && f.HTTP.Credential != nil:
		origin = originOf(f.HTTP)
	case f.SMTP != nil:
		var s SMTPServer
		if s, there = e.c.SMTP[f.SMTP.Server]; there && p.Account != "" {
			origin = "smtp://" + s.Address
		}
	case f.Maildir != nil:
		_, there = e.c.Maildirs[f.Maildir.Folder]
	}
	if !there {
		return abi.Deny(abi.ConnectorRevoked, "the mail server or folder of this call is no longer configured", "ask the operator")
	}
	if origin != "" {
		if _, err := a.credential(ctx, p.Account, origin); err != nil {
			return a.failed(err, false)
		}
	}
	return nil
}

// credential asks for the secret of a slot. Nothing has been sent then.
func (a *attempt) credential(ctx context.Context, connection, origin string) (string, error) {
	if a.e.c.Credentials == nil {
		return "", vault.ErrCredential
	}
	s, err := a.e.c.Credentials.Fill(ctx, connection, origin)
	if err != nil {
		return "", errors.Join(vault.ErrCredential, err)
	}
	if v := s.Reveal(); len(v) >= vault.MinSecret && validValue(v) {
		return v, nil
	}
	return "", vault.ErrCredential
}

// limited ends a body that is too large with ErrAnswerTooLarge.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if l.left == 0 {
		// Only one byte more tells a body of exactly the limit from a larger one.
		var one [1]byte
		n, err := l.r.Read(one[:])
		if n > 0 {
			return 0, connectors.ErrAnswerTooLarge
		}
		return 0, err
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

func (a *attempt) limit(r io.Reader) io.Reader {
	most := a.plan.MaxAnswer
	if most == 0 {
		most = connectors.DefaultAnswer
	}
	return &limited{r, most}
}

func originOf(f *connectors.HTTPRequest) string {
	scheme, rest, _ := strings.Cut(f.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	host, _, _ = strings.Cut(host, "?")
	return scheme + "://" + host
}
