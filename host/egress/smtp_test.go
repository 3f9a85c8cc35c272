package egress_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/vault"
)

// post is the mailbox behind a real SMTP server (emersion/go-smtp).
type post struct {
	mu         sync.Mutex
	password   string // required if not empty
	refuseData bool
	hangAt     string // close the connection: "data" after the message came
	mails      []delivery
}

type delivery struct {
	from string
	to   []string
	data []byte
}

func (p *post) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{p: p, c: c, in: p.password == ""}, nil
}

// arrived are the mails so far.
func (p *post) arrived() []delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mails
}

type session struct {
	p  *post
	c  *smtp.Conn
	in bool
	d  delivery
}

func (s *session) AuthMechanisms() []string {
	if s.p.password == "" {
		return nil
	}
	return []string{sasl.Plain}
}

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "monroe" || password != s.p.password {
			return errors.New("no")
		}
		s.in = true
		return nil
	}), nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if !s.in {
		return smtp.ErrAuthRequired
	}
	s.d = delivery{from: from}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if to == "refused@example.com" {
		return &smtp.SMTPError{Code: 550, Message: "no such user"}
	}
	s.d.to = append(s.d.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if s.p.refuseData {
		return &smtp.SMTPError{Code: 554, Message: "spam"}
	}
	s.p.mu.Lock()
	s.d.data = b
	s.p.mails = append(s.p.mails, s.d)
	s.p.mu.Unlock()
	if s.p.hangAt == "data" {
		return s.c.Close()
	}
	return nil
}

func (s *session) Reset() {}

func (s *session) Logout() error { return nil }

// postOffice starts the server; its certificate is in the pool.
func postOffice(t *testing.T, p *post, starttls, implicit bool) (string, *x509.CertPool) {
	t.Helper()
	certs := httptest.NewTLSServer(nil) // for its certificate only
	pool := x509.NewCertPool()
	pool.AddCert(certs.Certificate())
	config := &tls.Config{Certificates: certs.TLS.Certificates, MinVersion: tls.VersionTLS12}
	certs.Close()
	s := smtp.NewServer(p)
	s.Domain, s.AllowInsecureAuth = "localhost", true
	s.ErrorLog = quiet{}
	if starttls {
		s.TLSConfig = config
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if implicit {
		l = tls.NewListener(l, config)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return address, pool
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

func letter(to ...string) connectors.Plan {
	return connectors.Plan{
		Resources: []string{"mail:a@example.com"}, Destination: "smtp:main", Audience: []string{"mail:a@example.com"}, Timeout: time.Minute,
		Frozen: connectors.Frozen{SMTP: &connectors.SMTPMessage{
			Server: "main", From: "monroe@example.com", To: to, Data: []byte("Subject: x\r\n\r\n.leading dot\r\n..two\r\nend\r\n"),
		}},
	}
}

func mailer(t *testing.T, s egress.SMTPServer, pool *x509.CertPool, c egress.Credentials) *egress.Egress {
	t.Helper()
	return open(t, egress.Config{SMTP: map[string]egress.SMTPServer{"main": s}, RootCAs: pool, Credentials: c}, &scripted{op: operation(abi.EffectSend)})
}

func TestMailArrivesAsFrozen(t *testing.T) {
	for _, x := range []struct {
		name               string
		starttls, implicit bool
		password           string
	}{{name: "plain on loopback"}, {name: "starttls", starttls: true}, {name: "implicit", implicit: true}, {name: "login", starttls: true, password: "correct horse"}} {
		p := &post{password: x.password}
		address, pool := postOffice(t, p, x.starttls, x.implicit)
		plan := letter("a@example.com", "b@example.com")
		var creds egress.Credentials
		if x.password != "" {
			plan.Account = "con_mail"
			c, err := vault.NewStatic(vault.Credential{Connection: "con_mail", Subject: "monroe", Origins: []string{"smtp://" + address}, Secret: vault.NewSecret(x.password)})
			if err != nil {
				t.Fatal(err)
			}
			creds = c
		}
		e := mailer(t, egress.SMTPServer{Address: address, User: "monroe", ImplicitTLS: x.implicit}, pool, creds)
		o := e.Perform(t.Context(), permitFor(t, plan), doIt, plan, nil)
		if o.Denial != nil || len(p.arrived()) != 1 {
			t.Errorf("%s: %+v, %d mails", x.name, o.Denial, len(p.arrived()))
			continue
		}
		m := p.arrived()[0]
		if m.from != "monroe@example.com" || fmt.Sprint(m.to) != "[a@example.com b@example.com]" || !bytes.Equal(m.data, plan.Frozen.SMTP.Data) {
			t.Errorf("%s: %+v %q", x.name, m, m.data)
		}
	}
}

// Law 5, for mail.
func TestMailFailureSaysWhatHappened(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	for _, x := range []struct {
		name     string
		post     *post
		to       []string
		starttls bool
		trust    bool
		code     abi.Code
		effect   abi.Outcome
		mails    int
	}{
		{"refused recipient", &post{}, []string{"a@example.com", "refused@example.com"}, false, true, abi.Upstream, abi.OutcomeNone, 0},
		{"refused message", &post{refuseData: true}, []string{"a@example.com"}, false, true, abi.Upstream, abi.OutcomeNone, 0},
		{"lost answer", &post{hangAt: "data"}, []string{"a@example.com"}, false, true, abi.OutcomeUnknown, abi.OutcomeMay, 1},
		{"untrusted server", &post{}, []string{"a@example.com"}, true, false, abi.Upstream, abi.OutcomeNone, 0},
		{"needs login", &post{password: "correct horse"}, []string{"a@example.com"}, false, true, abi.Upstream, abi.OutcomeNone, 0},
		{"no server", nil, []string{"a@example.com"}, false, true, abi.Upstream, abi.OutcomeNone, 0},
	} {
		address, pool := dead.Addr().String(), x509.NewCertPool()
		if x.post != nil {
			address, pool = postOffice(t, x.post, x.starttls, false)
		}
		if !x.trust {
			pool = x509.NewCertPool()
		}
		plan := letter(x.to...)
		o := mailer(t, egress.SMTPServer{Address: address}, pool, nil).Perform(t.Context(), permitFor(t, plan), doIt, plan, nil)
		if o.Denial == nil || o.Denial.Code != x.code || o.Denial.Effect != x.effect {
			t.Errorf("%s: %+v", x.name, o.Denial)
		}
		if x.post != nil && len(x.post.arrived()) != x.mails {
			t.Errorf("%s: %d mails", x.name, len(x.post.arrived()))
		}
	}
	plan := letter("a@example.com")
	plan.Account = "con_mail"
	o := mailer(t, egress.SMTPServer{Address: dead.Addr().String()}, nil, nil).Perform(t.Context(), permitFor(t, plan), doIt, plan, nil)
	if o.Denial == nil || o.Denial.Code != abi.ConnectorRevoked {
		t.Errorf("no credential: %+v", o.Denial)
	}
	gone := letter("a@example.com")
	if o := open(t, egress.Config{}, &scripted{op: operation(abi.EffectSend)}).Perform(t.Context(), permitFor(t, gone), doIt, gone, nil); o.Denial == nil || o.Denial.Code != abi.ConnectorRevoked {
		t.Errorf("no server configured: %+v", o.Denial)
	}
}
