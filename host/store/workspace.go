package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Workspace is the configuration in force.
type Workspace struct {
	Version  int64 // of the policy; grows with every change of it
	Config   string
	Policies map[string]string
	Cap      abi.MicroUSD
}

// Workspace returns the configuration, or host.ErrNotFound before the first.
func (tx *Tx) Workspace() (Workspace, error) {
	var w Workspace
	var policies string
	err := tx.row(`SELECT policy_version, config, policies, cap_micro FROM workspace WHERE ws = ?`, tx.ws).
		Scan(&w.Version, &w.Config, &policies, &w.Cap)
	if err != nil {
		return w, absent(err)
	}
	return w, json.Unmarshal([]byte(policies), &w.Policies)
}

// PutWorkspace stores a configuration and returns its version: the next one, or the
// same where the rules are the same.
func (tx *Tx) PutWorkspace(w Workspace, sameRules bool, now time.Time) (version int64, err error) {
	step := 1
	if sameRules {
		step = 0
	}
	policies, err := json.Marshal(w.Policies)
	if err != nil {
		return 0, err
	}
	err = tx.row(`INSERT INTO workspace (ws, policy_version, config, policies, cap_micro, created_at) VALUES (?,1,?,?,?,?)
		ON CONFLICT (ws) DO UPDATE SET policy_version = workspace.policy_version + ?, config = excluded.config,
			policies = excluded.policies, cap_micro = excluded.cap_micro
		RETURNING policy_version`, tx.ws, w.Config, string(policies), w.Cap, now.UnixMilli(), step).Scan(&version)
	return version, absent(err)
}

// Touch changes a row, to see whether the disk still takes a commit. An update to
// the same value would not do: SQLite writes no page for it.
func (tx *Tx) Touch() error {
	return tx.change(`UPDATE lease SET touched = touched + 1 WHERE ws = ?`, tx.ws)
}

// PutPrincipal stores or replaces a principal.
func (tx *Tx) PutPrincipal(p host.Principal, now time.Time) error {
	return tx.exec(`INSERT INTO principal (ws, principal_id, name, email, role, created_at) VALUES (?,?,?,?,?,?)
		ON CONFLICT (ws, principal_id) DO UPDATE SET name = excluded.name, email = excluded.email, role = excluded.role`,
		tx.ws, p.ID, p.Name, p.Email, p.Role, now.UnixMilli())
}

// Principal returns one principal.
func (tx *Tx) Principal(id host.PrincipalID) (host.Principal, error) {
	p := host.Principal{ID: id}
	err := tx.row(`SELECT name, email, role FROM principal WHERE ws = ? AND principal_id = ?`, tx.ws, id).Scan(&p.Name, &p.Email, &p.Role)
	return p, absent(err)
}

// Principals lists all, oldest first.
func (tx *Tx) Principals() (list []host.Principal, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var p host.Principal
		list = append(list, p)
		q := &list[len(list)-1]
		return r.Scan(&q.ID, &q.Name, &q.Email, &q.Role)
	}, `SELECT principal_id, name, email, role FROM principal WHERE ws = ? ORDER BY created_at, principal_id`, tx.ws)
	return list, err
}

// Token is what is stored of one.
type Token struct {
	ID        host.TokenID
	Principal host.PrincipalID
	Hash      []byte
	Scopes    []host.TokenScope
	ExpiresAt time.Time
}

// PutToken stores a token.
func (tx *Tx) PutToken(t Token, now time.Time) error {
	var scopes []string
	for _, s := range t.Scopes {
		scopes = append(scopes, string(s))
	}
	return tx.exec(`INSERT INTO token (ws, token_id, principal_id, hash, scopes, created_at, expires_at) VALUES (?,?,?,?,?,?,?)`,
		tx.ws, t.ID, t.Principal, t.Hash, strings.Join(scopes, " "), now.UnixMilli(), t.ExpiresAt.UnixMilli())
}

// Caller finds the principal of a token that is neither expired nor revoked.
func (tx *Tx) Caller(hash []byte, now time.Time) (host.Caller, error) {
	var c host.Caller
	var scopes string
	err := tx.row(`SELECT t.token_id, t.scopes, p.principal_id, p.name, p.email, p.role
		FROM token t JOIN principal p ON p.ws = t.ws AND p.principal_id = t.principal_id
		WHERE t.ws = ? AND t.hash = ? AND t.revoked_at IS NULL AND t.expires_at > ?`, tx.ws, hash, now.UnixMilli()).
		Scan(&c.Token, &scopes, &c.ID, &c.Name, &c.Email, &c.Role)
	for _, s := range strings.Fields(scopes) {
		c.Scopes = append(c.Scopes, host.TokenScope(s))
	}
	return c, absent(err)
}

// Module is one uploaded module.
type Module struct {
	SHA256, Image, Artefact abi.Digest
	MAC                     []byte
	Engine                  string
	Size                    int64
	Manifest                string
	PushedBy                string
	PushedAt                time.Time
}

const moduleColumns = `m.module_sha256, m.image_sha256, m.artefact_sha256, m.artefact_mac, m.engine, m.size, m.manifest, m.pushed_by, m.pushed_at`

func scanModule(scan func(...any) error, m *Module, more ...any) error {
	var sha, image, artefact []byte
	var at int64
	if err := scan(append([]any{&sha, &image, &artefact, &m.MAC, &m.Engine, &m.Size, &m.Manifest, &m.PushedBy, &at}, more...)...); err != nil {
		return err
	}
	for _, d := range []struct {
		to   *abi.Digest
		from []byte
	}{{&m.SHA256, sha}, {&m.Image, image}, {&m.Artefact, artefact}} {
		if copy(d.to[:], d.from) != len(d.to) {
			return fmt.Errorf("a digest of %d bytes", len(d.from))
		}
	}
	m.PushedAt = time.UnixMilli(at)
	return nil
}

// PutModule stores a module and makes it the one of the skill's name.
func (tx *Tx) PutModule(name string, m Module) error {
	if err := tx.KeepModule(m); err != nil {
		return err
	}
	return tx.exec(`INSERT INTO skill (ws, name, module_sha256) VALUES (?,?,?) ON CONFLICT (ws, name) DO UPDATE SET module_sha256 = excluded.module_sha256`,
		tx.ws, name, m.SHA256[:])
}

// KeepModule stores a module, or what was made of it again. No name stands for it
// because of that: a run may need a module whose name has moved on.
func (tx *Tx) KeepModule(m Module) error {
	return tx.exec(`INSERT INTO module (ws, module_sha256, image_sha256, artefact_sha256, artefact_mac, engine, size, manifest, pushed_by, pushed_at)
		VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (ws, module_sha256) DO UPDATE SET image_sha256 = excluded.image_sha256,
			artefact_sha256 = excluded.artefact_sha256, artefact_mac = excluded.artefact_mac, engine = excluded.engine`,
		tx.ws, m.SHA256[:], m.Image[:], m.Artefact[:], m.MAC, m.Engine, m.Size, m.Manifest, m.PushedBy, m.PushedAt.UnixMilli())
}

// Module returns a module by its digest.
func (tx *Tx) Module(sha abi.Digest) (Module, error) {
	var m Module
	err := scanModule(tx.row(`SELECT `+moduleColumns+` FROM module m WHERE m.ws = ? AND m.module_sha256 = ?`, tx.ws, sha[:]).Scan, &m)
	return m, absent(err)
}

// Skill returns the module that a name stands for now.
func (tx *Tx) Skill(name string) (Module, error) {
	var m Module
	err := scanModule(tx.row(`SELECT `+moduleColumns+` FROM skill s JOIN module m ON m.ws = s.ws AND m.module_sha256 = s.module_sha256
		WHERE s.ws = ? AND s.name = ?`, tx.ws, name).Scan, &m)
	return m, absent(err)
}

// Skills lists the names with their modules.
func (tx *Tx) Skills() (names []string, modules []Module, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var m Module
		var name string
		if err := scanModule(r.Scan, &m, &name); err != nil {
			return err
		}
		names, modules = append(names, name), append(modules, m)
		return nil
	}, `SELECT `+moduleColumns+`, s.name FROM skill s JOIN module m ON m.ws = s.ws AND m.module_sha256 = s.module_sha256
		WHERE s.ws = ? ORDER BY s.name`, tx.ws)
	return names, modules, err
}

// Grant is one row of the grant table.
type Grant struct {
	ID        host.GrantID
	Skill     string
	Module    abi.Digest
	Operation string
	Resource  abi.Pattern
	Gate      string
}

// ReplaceGrants makes the list the only grants.
func (tx *Tx) ReplaceGrants(list []Grant, by string, now time.Time) error {
	if err := tx.exec(`DELETE FROM grants WHERE ws = ?`, tx.ws); err != nil {
		return err
	}
	for _, g := range list {
		if err := tx.exec(`INSERT INTO grants (ws, grant_id, skill, module_sha256, operation, resource, gate, created_by, created_at) VALUES (?,?,?,?,?,?,?,?,?)`,
			tx.ws, g.ID, g.Skill, g.Module[:], g.Operation, string(g.Resource), g.Gate, by, now.UnixMilli()); err != nil {
			return err
		}
	}
	return nil
}

// Grants lists all grants.
func (tx *Tx) Grants() (list []Grant, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var g Grant
		var sha []byte
		if err := r.Scan(&g.ID, &g.Skill, &sha, &g.Operation, &g.Resource, &g.Gate); err != nil {
			return err
		}
		copy(g.Module[:], sha)
		list = append(list, g)
		return nil
	}, `SELECT grant_id, skill, module_sha256, operation, resource, gate FROM grants WHERE ws = ? ORDER BY grant_id`, tx.ws)
	return list, err
}
