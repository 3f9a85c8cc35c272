package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/smtp"
	"net/textproto"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

// errPlain is why a server is not trusted with a message.
var errPlain = errors.New("the server offers no encryption")

// smtp hands one message to the operator's server. The message counts as handed
// over from the first byte of its data on; until then nothing was accepted.
func (a *attempt) smtp(ctx context.Context, m *connectors.SMTPMessage) (*connectors.Answer, *abi.Denial) {
	server, ok := a.e.c.SMTP[m.Server]
	if !ok {
		return nil, abi.Deny(abi.ConnectorRevoked, "the mail server of this message is no longer configured", "ask the operator, then send again")
	}
	handed, err := a.deliver(ctx, server, m)
	var said *textproto.Error
	switch {
	case err == nil:
		return &connectors.Answer{Status: 250, Body: emptyBody(), Emit: a.emit}, nil
	case errors.As(err, &said) && said.Code >= 400:
		// An answer is an answer: the server did not take the message. Its words stay
		// out, they can hold anything.
		d := abi.Deny(abi.Upstream, "the mail server refused the message", "check the recipients and the size of the message")
		if said.Code < 500 {
			d.Remedy, d.RetryAfterMS = "try again later", 60_000
		}
		return nil, d
	case errors.Is(err, errPlain):
		return nil, abi.Deny(abi.Upstream, "the mail server offers no encryption, so the message was not sent", "ask the operator to enable TLS on it")
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errors.Join(err, ctx.Err())
	}
	return nil, a.failed(err, handed)
}

func (a *attempt) deliver(ctx context.Context, server SMTPServer, m *connectors.SMTPMessage) (handed bool, err error) {
	host, port, err := net.SplitHostPort(server.Address)
	if err != nil {
		return false, err
	}
	var auth smtp.Auth
	if a.plan.Account != "" {
		origin := "smtp://" + net.JoinHostPort(host, port)
		secret, err := a.credential(ctx, a.plan.Account, origin)
		if err != nil {
			return false, err
		}
		auth = smtp.PlainAuth("", server.User, secret, host)
	}
	raw, err := a.dial(ctx, server.Address, true)
	if err != nil {
		return false, err
	}
	var conn net.Conn = &counted{raw, &a.in, &a.out}
	defer func() { _ = raw.Close() }()
	// The mail library knows no context: the end of ours ends its reads and writes.
	if until, ok := ctx.Deadline(); ok {
		if err := raw.SetDeadline(until); err != nil {
			return false, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: a.e.c.RootCAs}
	encrypted := server.ImplicitTLS
	if encrypted {
		t := tls.Client(conn, config)
		if err := t.HandshakeContext(ctx); err != nil {
			return false, err
		}
		conn = t
	}
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return false, err
	}
	hello := server.Hello
	if hello == "" {
		hello = "localhost"
	}
	if err := c.Hello(hello); err != nil {
		return false, err
	}
	if offered, _ := c.Extension("STARTTLS"); offered && !encrypted {
		if err := c.StartTLS(config); err != nil {
			return false, err
		}
		encrypted = true
	}
	if !encrypted && !server.PlainText && !loopback(raw) {
		return false, errPlain
	}
	if auth != nil {
		if err := c.Auth(auth); err != nil {
			return false, err
		}
	}
	if err := c.Mail(m.From); err != nil {
		return false, err
	}
	for _, to := range m.To {
		// One refused recipient stops the message: a person approved all of them.
		if err := c.Rcpt(to); err != nil {
			return false, err
		}
	}
	if a.late() {
		return false, errLate
	}
	w, err := c.Data()
	if err != nil {
		return false, err
	}
	if _, err := w.Write(m.Data); err != nil {
		return true, err
	}
	if err := w.Close(); err != nil {
		return true, err
	}
	_ = c.Quit() // it was accepted, whatever the goodbye is
	return true, nil
}

func loopback(c net.Conn) bool {
	t, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}
