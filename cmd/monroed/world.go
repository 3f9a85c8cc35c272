package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/files"
	web "github.com/getmonroe/monroe/connectors/http"
	"github.com/getmonroe/monroe/connectors/llm"
	"github.com/getmonroe/monroe/connectors/mail"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/vault"
)

// Names that connectors and egress share.
const (
	outbox    = "outbox"
	smtp      = "operator"
	modelLink = "model"
	mailLink  = "mail"
)

// worldBuilder returns what makes the connectors for a configuration. What the
// operator decides is read here, once; the workspace chooses its folders.
func worldBuilder(o *config.Operator, dir string, x *plugins, stop *backstop) (func(*config.Workspace) (broker.World, error), error) {
	base := egress.Config{Maildirs: map[string]string{}, SMTP: map[string]egress.SMTPServer{}}
	if stop != nil {
		base.Leaser = leaser{stop, ""}
	}
	var creds []vault.Credential
	fetch, c, err := webOf(o.HTTP, &base)
	if err != nil {
		return nil, err
	}
	creds = append(creds, c...)
	post, c, err := mailOf(o.Mail, dir, &base)
	if err != nil {
		return nil, err
	}
	creds = append(creds, c...)
	model, c, err := modelOf(o.Model, &base)
	if err != nil {
		return nil, err
	}
	creds = append(creds, c...)
	creds = append(creds, x.credentials...)
	base.Open = append(base.Open, x.open...)
	if base.Credentials, err = vault.NewStatic(creds...); err != nil {
		return nil, err
	}
	return func(w *config.Workspace) (broker.World, error) {
		c := base
		c.Folders = map[string]string{}
		labels := map[string]files.Folder{}
		for _, x := range w.Connectors {
			c.Folders[x.Name] = x.Path
			f := files.Folder{Internal: x.Internal, Readers: []string{"workspace"}}
			if x.ModelMayRead {
				f.Readers = append(f.Readers, "model")
			}
			labels[x.Name] = f
		}
		folders, err := files.New(labels)
		if err != nil {
			return nil, err
		}
		// A new connector is one line here.
		c.Connectors = append([]connectors.Connector{folders, fetch, post, model}, x.connectors...)
		e, err := egress.New(c)
		if err != nil {
			return nil, err
		}
		return world{e}, nil
	}, nil
}

// webOf opens the web: pages for reading, and the operator's endpoints for changes.
func webOf(h config.HTTP, e *egress.Config) (*web.HTTP, []vault.Credential, error) {
	c := web.Config{}
	var creds []vault.Credential
	for _, x := range h.Endpoints {
		price := abi.MicroUSD(0)
		if x.PriceUSD != "" {
			var err error
			if price, err = config.ParseUSD(x.PriceUSD); err != nil {
				return nil, nil, fmt.Errorf("http: endpoint %s: price_usd: %w", x.Name, err)
			}
		}
		end := web.Endpoint{
			Name: x.Name, Summary: x.Summary, Method: x.Method, URL: x.URL, Effect: x.Effect, Replay: x.Replay,
			Window: x.Window, KeyHeader: x.KeyHeader, Price: price, Timeout: x.Timeout,
		}
		if x.TokenFile != "" {
			token, err := secret("", x.TokenFile)
			if err != nil {
				return nil, nil, fmt.Errorf("http: endpoint %s: %w", x.Name, err)
			}
			u, err := url.Parse(string(x.URL))
			if err != nil {
				return nil, nil, fmt.Errorf("http: endpoint %s: url: %w", x.Name, err)
			}
			slot := connectors.Slot{Connection: web.OpOf(x.Name), Header: x.TokenHeader, Prefix: "Bearer "}
			if slot.Header == "" {
				slot.Header = "Authorization"
			}
			if x.TokenPrefix != nil {
				slot.Prefix = *x.TokenPrefix
			}
			end.Credential = &slot
			creds = append(creds, vault.Credential{Connection: slot.Connection, Subject: "operator", Origins: []string{u.Scheme + "://" + u.Host}, Secret: token})
		}
		c.Endpoints = append(c.Endpoints, end)
	}
	out, err := web.New(c)
	if err != nil {
		return nil, nil, err
	}
	for _, op := range out.Operations() {
		for _, a := range h.Private {
			e.Open = append(e.Open, egress.Opening{Operation: op.Name, Address: a})
		}
	}
	return out, creds, nil
}

func mailOf(m config.Mail, dir string, e *egress.Config) (*mail.Mail, []vault.Credential, error) {
	c := mail.Config{From: m.From}
	if c.From == "" {
		c.From = "monroe@localhost"
	}
	if m.SMTP == "" {
		box := m.Maildir
		if box == "" {
			box = filepath.Join(dir, "Maildir")
		}
		if !filepath.IsAbs(box) {
			return nil, nil, fmt.Errorf("mail: maildir %q is not an absolute path", box)
		}
		c.Maildir = outbox
		e.Maildirs[outbox] = box
		out, err := mail.New(c)
		return out, nil, err
	}
	c.Server = smtp
	e.SMTP[smtp] = egress.SMTPServer{Address: m.SMTP, User: m.User, ImplicitTLS: m.ImplicitTLS, PlainText: m.PlainText}
	var creds []vault.Credential
	if m.User != "" {
		secret, err := secret("MONROE_SMTP_PASSWORD", m.PasswordFile)
		if err != nil {
			return nil, nil, fmt.Errorf("mail: %w", err)
		}
		c.Connection = mailLink
		creds = append(creds, vault.Credential{Connection: mailLink, Subject: m.User, Origins: []string{"smtp://" + m.SMTP}, Secret: secret})
	}
	out, err := mail.New(c)
	return out, creds, err
}

func modelOf(m config.Model, e *egress.Config) (*llm.LLM, []vault.Credential, error) {
	if len(m.Allowed) == 0 { // llm.chat is there, and every call of it is refused
		out, err := llm.New(llm.Config{})
		return out, nil, err
	}
	c := llm.Config{BaseURL: m.BaseURL, Default: m.Default, OldLimit: m.MaxTokens, Models: map[string]llm.Price{}}
	for _, a := range m.Allowed {
		in, err := config.ParsePrice(a.InputUSD)
		if err != nil {
			return nil, nil, fmt.Errorf("model %s: %w", a.Model, err)
		}
		out, err := config.ParsePrice(a.OutputUSD)
		if err != nil {
			return nil, nil, fmt.Errorf("model %s: %w", a.Model, err)
		}
		c.Models[a.Model] = llm.Price{Input: in, Output: out, Free: in == 0 && out == 0}
		c.MaxOutput = max(c.MaxOutput, a.MaxOutput)
	}
	base := m.BaseURL
	if base == "" {
		base = llm.OpenRouter
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, nil, fmt.Errorf("model: base_url: %w", err)
	}
	if m.Private {
		e.Open = append(e.Open, egress.Opening{Operation: llm.OpChat, Address: u.Host})
	}
	var creds []vault.Credential
	key, err := secret("MONROE_MODEL_KEY", m.KeyFile)
	if errors.Is(err, errNoSecret) && m.BaseURL == "" {
		key, err = secret("OPENROUTER_API_KEY", "")
	}
	switch {
	case err == nil:
		c.Connection = modelLink
		creds = append(creds, vault.Credential{Connection: modelLink, Subject: "operator", Origins: []string{u.Scheme + "://" + u.Host}, Secret: key})
	case !errors.Is(err, errNoSecret) || !m.Private: // a local model needs no key
		return nil, nil, fmt.Errorf("model: %w", err)
	}
	out, err := llm.New(c)
	return out, creds, err
}

var errNoSecret = errors.New("no secret")

// secret reads one from the environment or a file that only the owner can read.
func secret(env, file string) (vault.Secret, error) {
	if v := os.Getenv(env); env != "" && v != "" {
		return vault.NewSecret(v), nil
	}
	if file == "" {
		return vault.Secret{}, fmt.Errorf("%w: set %s or name a file", errNoSecret, env)
	}
	st, err := os.Stat(file)
	if err != nil {
		return vault.Secret{}, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return vault.Secret{}, fmt.Errorf("%s is readable by others: chmod 600 it", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return vault.Secret{}, err
	}
	return vault.NewSecret(strings.TrimSpace(string(b))), nil
}

// world lets the door use egress: the two do not know each other.
type world struct{ e *egress.Egress }

func (w world) Operations() []connectors.Operation { return w.e.Operations() }

func (w world) Pinned(op string) abi.Digest {
	d, _ := w.e.Descriptor(op)
	return d
}

// noLookup stands for nested reads: no connector of this version resolves.
func noLookup(context.Context, string, any) abi.Reply {
	return abi.Refuse(abi.Deny(abi.Unsupported, "this connector may not look things up", ""))
}

func (w world) Plan(ctx context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	_, p, d := w.e.Plan(ctx, c, noLookup)
	return p, d
}

func (w world) Perform(ctx context.Context, permit grant.Permit, c connectors.Call, p connectors.Plan, emit func(string)) broker.Outcome {
	o := w.e.Perform(ctx, permit, c, p, emit)
	return broker.Outcome{Result: o.Result, Denial: o.Denial, BytesOut: o.BytesOut, BytesIn: o.BytesIn}
}

func (w world) PlanProbe(c connectors.Call, p connectors.Plan) (connectors.Plan, *abi.Denial) {
	return w.e.PlanProbe(c, p)
}

func (w world) Probe(ctx context.Context, permit grant.Permit, c connectors.Call, p, probe connectors.Plan) broker.Outcome {
	found, o := w.e.Probe(ctx, permit, c, p, probe)
	out := broker.Outcome{Denial: o.Denial, BytesOut: o.BytesOut, BytesIn: o.BytesIn, Found: found != nil}
	if found != nil {
		out.Result = *found
	}
	return out
}

func (w world) Ready(ctx context.Context, p connectors.Plan) *abi.Denial { return w.e.Ready(ctx, p) }

func (w world) Preview(op string, p connectors.Plan) host.Preview {
	o, _ := w.e.Operation(op)
	v := egress.Render(p, o)
	out := host.Preview{Title: op, Body: v.Body, Raw: v.Raw, Warnings: v.Warnings}
	for _, f := range v.Fields {
		out.Fields = append(out.Fields, host.PreviewField{Name: f.Name, Value: f.Value})
	}
	if len(v.Links) > 0 {
		out.Fields = append(out.Fields, host.PreviewField{Name: "Links lead to", Value: strings.Join(v.Links, ", ")})
	}
	out.Bytes, out.SHA256 = p.Frozen.Content()
	return out
}
