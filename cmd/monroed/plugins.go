package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	sdk "github.com/getmonroe/monroe/connectors/plugin"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/plugin"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// plugins are the operator's programs beside this one: here the host's half meets the
// walls.
type plugins struct {
	connectors  []connectors.Connector
	scanners    plugin.Scanners
	credentials []vault.Credential
	open        []egress.Opening
	close       []io.Closer
	dir         string   // of their sockets
	lock        *os.File // dir, locked while this process lives
	alarms      chan pluginAlarm
	log         *slog.Logger
}

// A pluginAlarm is what a plugin claimed or did and may not, in the host's words.
type pluginAlarm struct{ plugin, program, what string }

// maxAlarms is how many alarms wait for the store; what is more is in the log alone.
const maxAlarms = 256

// alarm never blocks: it is called in the middle of a call, and before there is a store.
func (x *plugins) alarm(p config.Plugin, what string) {
	x.log.Warn("a plugin did what it may not", slog.String("plugin", p.Name), slog.String("what", what))
	select {
	case x.alarms <- pluginAlarm{p.Name, p.SHA256, what}:
	default:
		x.log.Error("the alarm is not recorded: too many wait", slog.String("plugin", p.Name))
	}
}

// tell hands over what was and will be noticed, until the returned function is called.
func (x *plugins) tell(record func(pluginAlarm)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case a := <-x.alarms:
				record(a)
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		for len(x.alarms) > 0 {
			record(<-x.alarms)
		}
	}
}

// openPlugins starts them. A pin that makes no sense is an error. A program that is
// missing or another one is none: its operations are refused, and the daemon serves.
func openPlugins(s *spawn.Spawner, list []config.Plugin, log *slog.Logger) (_ *plugins, err error) {
	x := &plugins{alarms: make(chan pluginAlarm, maxAlarms), log: log}
	if len(list) == 0 {
		return x, nil
	}
	// Not in the workspace's directory, which another daemon may still hold.
	sweepPluginDirs(log)
	if x.dir, x.lock, err = pluginDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			x.Close()
		}
	}()
	names := map[string]bool{}
	for _, p := range list {
		if names[p.Name] {
			return nil, fmt.Errorf("plugin %s: the name occurs twice", p.Name)
		}
		names[p.Name] = true
		c, err := x.configure(s, p)
		if err != nil {
			return nil, fmt.Errorf("plugin %s: %w", p.Name, err)
		}
		switch {
		case p.Kind == sdk.KindConnector && len(p.Findings) == 0:
			err = x.connector(c, p)
		case p.Kind == sdk.KindScanner && len(p.Operations) == 0 && len(p.Private) == 0:
			err = x.scan(c, p)
		default:
			err = fmt.Errorf("plugin %s: the kind is connector with operations, or scanner with findings", p.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// Close ends all of them.
func (x *plugins) Close() {
	for _, c := range x.close {
		_ = c.Close() // there is nobody to tell
	}
	if x.dir != "" {
		_ = os.RemoveAll(x.dir)
		_ = x.lock.Close()
	}
}

// scanner is nil where there is none.
func (x *plugins) scanner() broker.Scanner {
	if len(x.scanners) == 0 {
		return nil
	}
	return x.scanners
}

func (x *plugins) configure(s *spawn.Spawner, p config.Plugin) (plugin.Config, error) {
	raw, err := hex.DecodeString(p.SHA256)
	if err != nil || len(raw) != len(abi.Digest{}) {
		return plugin.Config{}, errors.New("sha256 is that of its program, 64 hexadecimal digits")
	}
	if !filepath.IsAbs(p.Path) || filepath.Clean(p.Path) != p.Path {
		return plugin.Config{}, fmt.Errorf("path %q is not a clean absolute path", p.Path)
	}
	if p.Name != filepath.Base(p.Name) {
		return plugin.Config{}, errors.New("the name is a lower-case letter, then letters, digits or _")
	}
	launch := func(ctx context.Context, dir string, env []string) (plugin.Process, error) {
		// Opened for each start, so that an operator who puts the pinned program back
		// need not start the daemon again.
		program, err := spawn.OpenProgram(p.Path, abi.Digest(raw))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", plugin.ErrPinned, err)
		}
		defer program.Close() //nolint:errcheck // opened for reading
		proc, err := s.SpawnPlugin(ctx, program, dir, env, func(v spawn.Violation) {
			x.log.Info("a plugin looks for a file while it starts", slog.String("plugin", p.Name), slog.String("call", v.String()))
		})
		if errors.Is(err, spawn.ErrDigest) {
			err = fmt.Errorf("%w: %w", plugin.ErrPinned, err)
		}
		tried := func(list []spawn.Violation) {
			for _, v := range list {
				x.alarm(p, "it tried "+v.String())
			}
		}
		if e := new(spawn.EscapeError); errors.As(err, &e) {
			tried(e.Tried)
		}
		if err != nil {
			return nil, err
		}
		go func() { // the spawner ends a process that tries what it may not
			<-proc.Done()
			tried(proc.Violations())
		}()
		return process{proc}, nil
	}
	alarm := func(what string) { x.alarm(p, what) }
	return plugin.Config{Name: p.Name, Dir: filepath.Join(x.dir, p.Name), Start: launch, Alarm: alarm, Log: x.log}, nil
}

// process is a confined plugin as host/plugin wants it.
type process struct{ *spawn.Process }

func (p process) Stdout() io.ReadCloser { return p.Process.Stdout }

func (x *plugins) connector(c plugin.Config, p config.Plugin) error {
	var ops []plugin.Operation
	for _, o := range p.Operations {
		op, err := x.operation(o)
		if err != nil {
			return fmt.Errorf("plugin %s: %s: %w", p.Name, o.Name, err)
		}
		ops = append(ops, op)
		for _, a := range p.Private {
			x.open = append(x.open, egress.Opening{Operation: o.Name, Address: a})
		}
	}
	con, err := plugin.NewConnector(c, ops)
	if err != nil {
		return err
	}
	x.connectors, x.close = append(x.connectors, con), append(x.close, con)
	return nil
}

func (x *plugins) operation(o config.PluginOperation) (plugin.Operation, error) {
	out := plugin.Operation{
		Operation: connectors.Operation{
			Name: o.Name, Version: o.Version, Effect: o.Effect, Replay: o.Replay, Summary: o.Summary, Args: json.RawMessage(o.Args), Window: o.Window,
			Renderer: connectors.RenderHTTP,
		},
		Headers: o.Headers, KeyHeader: o.KeyHeader, Resource: o.Resource, Audience: o.Audience, Readers: o.Readers, Timeout: o.Timeout,
	}
	for _, a := range o.Allow {
		out.Allow = append(out.Allow, connectors.Request{Method: a.Method, URL: a.URL})
	}
	var err error
	if o.PriceUSD != "" {
		if out.Price, err = config.ParseUSD(o.PriceUSD); err != nil {
			return out, fmt.Errorf("price_usd: %w", err)
		}
	}
	if o.TokenFile == "" {
		return out, nil
	}
	token, err := secret("", o.TokenFile)
	if err != nil {
		return out, err
	}
	out.Credential = &connectors.Slot{Connection: o.Name, Header: o.TokenHeader, Prefix: "Bearer "}
	if o.TokenHeader == "" {
		out.Credential.Header = "Authorization"
	}
	if o.TokenPrefix != nil {
		out.Credential.Prefix = *o.TokenPrefix
	}
	origin := ""
	for _, a := range o.Allow {
		u, err := url.Parse(string(a.URL))
		if err != nil {
			return out, err
		}
		if one := u.Scheme + "://" + u.Host; origin == "" || origin == one {
			origin = one
			continue
		}
		return out, errors.New("a credential is for one host, and the requests name two")
	}
	x.credentials = append(x.credentials, vault.Credential{Connection: o.Name, Subject: "operator", Origins: []string{origin}, Secret: token})
	return out, nil
}

func (x *plugins) scan(c plugin.Config, p config.Plugin) error {
	var pinned []plugin.Finding
	for _, f := range p.Findings {
		pinned = append(pinned, plugin.Finding{ID: f.ID, Reason: f.Reason})
	}
	s, err := plugin.NewScanner(c, pinned)
	if err != nil {
		return err
	}
	x.scanners, x.close = append(x.scanners, s), append(x.close, s)
	return nil
}
