package workspace

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Authenticate implements api.Backend.
func (w *Workspace) Authenticate(ctx context.Context, token string) (c host.Caller, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		c, err = tx.Caller(vault.HashToken(token), w.Now())
		return err
	})
	if errors.Is(err, host.ErrNotFound) {
		err = &host.Problem{Kind: host.ErrForbidden, Code: "TOKEN", Detail: "the token is not known here, has expired or was revoked", Remedy: "use the token of this workspace: owner.token in its directory"}
	}
	return c, err
}

func admin(c host.Caller) error {
	if c.Role == host.RoleOwner || c.Role == host.RoleAdmin {
		return nil
	}
	return &host.Problem{Kind: host.ErrForbidden, Code: "ROLE", Detail: fmt.Sprintf("%s is a %s; this needs an admin", c.Name, c.Role), Remedy: "ask an admin of the workspace"}
}

// Workspace implements api.Backend.
func (w *Workspace) Workspace(ctx context.Context, c host.Caller) (v api.WorkspaceView, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		row, err := tx.Workspace()
		v = api.WorkspaceView{Workspace: w.Name, Caller: c.Principal, Version: row.Version, CapUSD: row.Cap.String(), Config: row.Config, Level: w.Confinement}
		return err
	})
	return v, err
}

// Apply implements api.Backend.
func (w *Workspace) Apply(ctx context.Context, c host.Caller, in api.ApplyInput) (api.ApplyResult, error) {
	if err := admin(c); err != nil {
		return api.ApplyResult{}, err
	}
	cfg, err := config.ParseWorkspace([]byte(in.Config))
	if err != nil {
		return api.ApplyResult{}, err
	}
	if err := w.checkConfig(cfg, in.Policies); err != nil {
		return api.ApplyResult{}, err
	}
	w.apply.Lock()
	defer w.apply.Unlock()
	built, err := w.World(cfg)
	if err != nil {
		return api.ApplyResult{}, &host.Problem{Kind: host.ErrInvalid, Code: "CONFIG_CONNECTOR", Detail: err.Error(), Remedy: "correct the connectors and apply again; nothing was changed"}
	}
	limit, err := config.ParseUSD(cfg.CapUSD)
	if err != nil {
		return api.ApplyResult{}, err
	}
	now := w.Now()
	row := store.Workspace{Config: in.Config, Policies: map[string]string{}, Cap: limit}
	for _, name := range cfg.Policies {
		row.Policies[name] = in.Policies[name]
	}
	var policy *grant.Policy
	var changes []string
	var grants []store.Grant
	var voided []host.RunID
	err = w.store.Write(ctx, func(tx *store.Tx) error {
		old, err := tx.Workspace()
		if err != nil {
			return err
		}
		before, err := tx.Grants()
		if err != nil {
			return err
		}
		if grants, err = bind(tx, cfg.Grants, built.Operations(), now); err != nil {
			return err
		}
		// Only the cap may change under open questions: they were decided by the rest.
		same := sameRules(old, row, before, grants)
		version, err := tx.PutWorkspace(row, same, now)
		if err != nil {
			return err
		}
		if !same {
			if voided, err = tx.VoidAll(); err != nil {
				return err
			}
		}
		if policy, err = grant.Compile(version, toGrants(grants), w.Operator.Ceiling, row.Policies); err != nil {
			return &host.Problem{Kind: host.ErrInvalid, Code: "CONFIG_POLICY", Detail: err.Error(), Remedy: "correct the policy and apply again; nothing was changed"}
		}
		for _, name := range policy.Groups() {
			if !slices.ContainsFunc(cfg.Groups, func(g config.Group) bool { return g.Name == name }) {
				return &host.Problem{Kind: host.ErrInvalid, Code: "CONFIG_GROUP", Detail: fmt.Sprintf("a policy's @approvers names the group %q, which is not under groups", name), Remedy: "describe it in workspace.yaml and apply again; nothing was changed"}
			}
		}
		changes = describeChanges(old, row, before, grants)
		if err := tx.ReplaceGrants(grants, c.Name, now); err != nil {
			return err
		}
		if _, err = audit.Append(tx, audit.Leaf{
			TimeMS: now.UnixMilli(), Kind: audit.KindAdmin, Who: c.ID, Policy: version, Detail: fmt.Sprintf("configuration applied: %d grants, %d policies, cap %s, %d open approvals voided", len(grants), len(row.Policies), limit, len(voided)),
		}); err != nil {
			return err
		}
		// In force before the next transaction: what a call is decided by is looked at
		// once more in the one that writes its attempt. If this one cannot be committed,
		// the store is closed and the daemon stops.
		w.put(built, broker.Rules{Policy: policy, Cap: limit, Owner: w.owner.Email, Identical: cfg.IdenticalCalls, Questions: cfg.Questions})
		return nil
	})
	if err != nil {
		return api.ApplyResult{}, err
	}
	// Those whose questions were voided are due, like those that wait for what changed.
	return api.ApplyResult{Version: policy.Version, Grants: len(grants), Changes: changes}, w.runner.Recheck()
}

// checkConfig holds a configuration to this workspace and its operator.
func (w *Workspace) checkConfig(cfg *config.Workspace, policies map[string]string) error {
	bad := func(code, format string, args ...any) error {
		return &host.Problem{Kind: host.ErrInvalid, Code: code, Detail: fmt.Sprintf(format, args...), Remedy: "correct workspace.yaml and apply it again; nothing was changed"}
	}
	if cfg.Workspace != w.Name {
		return bad("CONFIG_WORKSPACE", "the file is for workspace %q, this is %q", cfg.Workspace, w.Name)
	}
	for _, p := range cfg.Policies {
		if _, ok := policies[p]; !ok {
			return bad("CONFIG_POLICY", "the text of %s was not sent with it", p)
		}
	}
	ops := w.world.Operations()
	for _, a := range cfg.Approvers {
		if a.Operation != config.AnyOperation && !slices.ContainsFunc(ops, func(o connectors.Operation) bool { return o.Name == a.Operation }) {
			return bad("CONFIG_APPROVERS", "approvers: there is no operation %q", a.Operation)
		}
	}
	for _, c := range cfg.Connectors {
		// Symbolic links are resolved first, so that a link cannot lead out of what the
		// operator opened or into the workspace's own secrets.
		real, err := filepath.EvalSymlinks(c.Path)
		if err != nil {
			return bad("CONFIG_CONNECTOR", "connectors: %s: the folder %s is not there", c.Name, c.Path)
		}
		home, err := filepath.EvalSymlinks(w.Dir)
		if err != nil {
			return err
		}
		if inside(home, real) || inside(real, home) {
			return bad("CONFIG_CONNECTOR", "connectors: %s: the folder holds the workspace's own keys and state", c.Name)
		}
		if !slices.ContainsFunc(w.Operator.Folders, func(f string) bool {
			open, err := filepath.EvalSymlinks(f)
			return err == nil && inside(real, open)
		}) {
			return bad("CONFIG_CONNECTOR", "connectors: %s: the operator has not opened %s (folders in operator.yaml)", c.Name, c.Path)
		}
	}
	return nil
}

// bind turns lines of the configuration into grants of the modules that the names
// stand for now.
func bind(tx *store.Tx, lines []config.Grant, ops []connectors.Operation, now time.Time) ([]store.Grant, error) {
	var list []store.Grant
	for i, g := range lines {
		bad := func(code, format string, args ...any) error {
			return &host.Problem{Kind: host.ErrInvalid, Code: code, Detail: fmt.Sprintf("grants: line %d: ", i+1) + fmt.Sprintf(format, args...), Remedy: "correct workspace.yaml and apply it again; nothing was changed"}
		}
		if !slices.ContainsFunc(ops, func(o connectors.Operation) bool { return o.Name == g.Operation }) {
			return nil, bad("GRANT_OPERATION", "there is no operation %q", g.Operation)
		}
		m, err := tx.Skill(g.Skill)
		if errors.Is(err, host.ErrNotFound) {
			return nil, bad("GRANT_SKILL", "there is no skill %q yet; push it first, since a grant is bound to its bytes", g.Skill)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, store.Grant{
			ID: host.GrantID(host.NewID("grant", now)), Skill: g.Skill, Module: m.SHA256, Operation: g.Operation, Resource: g.Resource, Gate: string(g.Gate),
		})
	}
	return list, nil
}

// sameRules reports whether two configurations differ in nothing but the cap.
func sameRules(old, now store.Workspace, before, after []store.Grant) bool {
	a, err := config.ParseWorkspace([]byte(old.Config))
	b, err2 := config.ParseWorkspace([]byte(now.Config))
	if err != nil || err2 != nil {
		return false
	}
	a.CapUSD = b.CapUSD
	old.Cap = now.Cap
	return reflect.DeepEqual(a, b) && len(describeChanges(old, now, before, after)) == 0
}

// describeChanges tells a person what an apply changed.
func describeChanges(old, now store.Workspace, before, after []store.Grant) (changes []string) {
	if old.Cap != now.Cap {
		changes = append(changes, fmt.Sprintf("cap: %s → %s a month", old.Cap, now.Cap))
	}
	type key struct {
		skill, operation string
		resource         abi.Pattern
		gate             string
		module           abi.Digest
	}
	keys := func(list []store.Grant) map[key]bool {
		m := map[key]bool{}
		for _, g := range list {
			m[key{g.Skill, g.Operation, g.Resource, g.Gate, g.Module}] = true
		}
		return m
	}
	was, is := keys(before), keys(after)
	for k := range is {
		if !was[k] {
			changes = append(changes, fmt.Sprintf("granted: %s may %s on %s (module %.12s)", k.skill, k.operation, k.resource, k.module))
		}
	}
	for k := range was {
		if !is[k] {
			changes = append(changes, fmt.Sprintf("withdrawn: %s may no longer %s on %s (module %.12s)", k.skill, k.operation, k.resource, k.module))
		}
	}
	for name, text := range now.Policies {
		if old.Policies[name] != text {
			changes = append(changes, "policy: "+name+" is new or changed")
		}
	}
	for name := range old.Policies {
		if _, ok := now.Policies[name]; !ok {
			changes = append(changes, "policy: "+name+" is gone")
		}
	}
	slices.Sort(changes)
	return changes
}

// PushSkill implements api.Backend.
func (w *Workspace) PushSkill(ctx context.Context, c host.Caller, upload []byte) (host.Skill, error) {
	if err := admin(c); err != nil {
		return host.Skill{}, err
	}
	now := w.Now()
	m, manifest, err := w.shelf.Push(ctx, upload, c.Name, now, w.checkManifest, func(tx *store.Tx, m store.Module, manifest *abi.Manifest) error {
		_, err := audit.Append(tx, audit.Leaf{TimeMS: now.UnixMilli(), Kind: audit.KindAdmin, Who: c.ID, Skill: manifest.Name, Module: m.SHA256.String(), Detail: "skill pushed"})
		return err
	})
	if e := new(module.EscapeError); errors.As(err, &e) {
		return host.Skill{}, errors.Join(w.escaped(ctx, c, upload, e), &host.Problem{
			Kind: host.ErrInvalid, Code: "MODULE_ESCAPE", Detail: e.Tried,
			Remedy: "look at where this module comes from: it attacked the process that compiled it; nothing was stored",
		})
	}
	if err != nil {
		return host.Skill{}, err
	}
	return w.skill(m, *manifest), nil
}

// escaped witnesses that an upload took over the process that compiled it.
func (w *Workspace) escaped(ctx context.Context, c host.Caller, upload []byte, e *module.EscapeError) error {
	digest := abi.Digest(sha256.Sum256(upload))
	w.Log.Warn("an upload attacked its compiler", slog.String("module", digest.String()), slog.String("tried", e.Tried))
	return w.store.Write(ctx, func(tx *store.Tx) error {
		_, err := audit.Append(tx, audit.Leaf{TimeMS: w.Now().UnixMilli(), Kind: audit.KindAlarm, Who: c.ID, Module: digest.String(), Detail: e.Tried})
		return err
	})
}

// checkManifest holds a manifest to the pinned descriptors.
func (w *Workspace) checkManifest(m *abi.Manifest) error {
	ops := w.world.Operations()
	for _, u := range m.Operations {
		i := slices.IndexFunc(ops, func(o connectors.Operation) bool { return o.Name == u.Operation })
		if i < 0 {
			return &host.Problem{Kind: host.ErrInvalid, Code: "MANIFEST_OPERATION", Detail: fmt.Sprintf("the manifest asks for %s, which this host does not have", u.Operation), Remedy: "remove it, or ask the operator for the connector"}
		}
		if ops[i].Effect != u.Effect {
			return &host.Problem{Kind: host.ErrInvalid, Code: "MANIFEST_EFFECT", Detail: fmt.Sprintf("the manifest says that %s has the effect %s, its descriptor says %s", u.Operation, u.Effect, ops[i].Effect), Remedy: "correct the manifest"}
		}
	}
	return nil
}

func (w *Workspace) skill(m store.Module, manifest abi.Manifest) host.Skill {
	policy := w.currentRules().Policy
	return host.Skill{
		Name: manifest.Name, Version: manifest.Version, Description: manifest.Description, Module: m.SHA256.String(), Image: m.Image.String(),
		Engine: m.Engine, Size: m.Size, PushedBy: m.PushedBy, PushedAt: m.PushedAt.UTC(), Manifest: manifest,
		Granted: slices.ContainsFunc(manifest.Operations, func(u abi.OperationUse) bool { return len(policy.Grants(m.SHA256, u.Operation)) > 0 }),
	}
}

// Skills implements api.Backend.
func (w *Workspace) Skills(ctx context.Context, _ host.Caller) (list []host.Skill, err error) {
	var mods []store.Module
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		_, mods, err = tx.Skills()
		return err
	})
	for _, m := range mods {
		manifest, perr := abi.ParseManifest([]byte(m.Manifest))
		if perr != nil {
			return nil, perr
		}
		list = append(list, w.skill(m, *manifest))
	}
	return list, err
}

// Skill implements api.Backend.
func (w *Workspace) Skill(ctx context.Context, _ host.Caller, name string) (host.Skill, error) {
	m, manifest, err := w.module(ctx, name)
	if err != nil {
		return host.Skill{}, err
	}
	return w.skill(m, *manifest), nil
}

func (w *Workspace) module(ctx context.Context, name string) (m store.Module, manifest *abi.Manifest, err error) {
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		m, err = tx.Skill(name)
		return err
	})
	if errors.Is(err, host.ErrNotFound) {
		return m, nil, &host.Problem{Kind: host.ErrNotFound, Code: "SKILL", Detail: "there is no skill of this name", Remedy: "monroe skill list shows the names"}
	}
	if err != nil {
		return m, nil, err
	}
	manifest, err = abi.ParseManifest([]byte(m.Manifest))
	return m, manifest, err
}
