// Package workspace is one workspace as a whole: what the API asks of the daemon,
// carried out on the rooms below.
//
// Laws, each with a test:
//
//  1. Configuration changes as a whole or not at all, and only by an admin.
//  2. A grant is bound to the module that a name stands for at that moment.
//  3. The first owner's token is written once, for the owner alone to read.
//  4. A result is shown only to those whom its label lets read it.
//
// It knows which room does what. It must not know HTTP, concrete connectors or the
// sandbox.
package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/durable"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/module"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Config wires a Workspace.
type Config struct {
	Name host.Workspace
	Dir  string // absolute; the workspace's own directory, mode 0700
	// Postgres keeps the state in PostgreSQL; nil means SQLite in Dir.
	Postgres *store.PostgresConfig
	Operator *config.Operator
	// KEK seals the keyset's file; nil leaves it in clear text.
	KEK vault.KEK
	// World builds the connectors for a configuration.
	World func(*config.Workspace) (broker.World, error)
	// Scanner looks at what leaves and at what comes in; nil finds nothing.
	Scanner  broker.Scanner
	Compiler module.Compiler
	Spawner  runner.Spawner
	// Confinement names the walls around guests, for people, as far as they are known
	// without trying them.
	Confinement string
	// Walls tries the walls around guests; nil says that nothing is known of them.
	Walls func(context.Context) (api.Walls, error)
	// Egress tells what left this host, as the kernel counted it; nil says that the
	// kernel is not asked.
	Egress func() (api.EgressView, error)
	Now    func() time.Time
	Log    *slog.Logger
}

// Workspace is open until Close. It is safe for concurrent use.
type Workspace struct {
	Config
	store  *store.Store
	keys   *vault.Keyset
	shelf  *module.Shelf
	broker *broker.Broker
	runner *runner.Runner
	world  *world
	rules  atomic.Pointer[broker.Rules]
	owner  host.Principal

	expiry func() time.Time // what approvals expire by

	apply sync.Mutex // one change of configuration at a time

	keep sync.Mutex
	kept time.Time // when housekeep last ran

	rewrapping atomic.Bool // rows that an earlier key sealed may be left
	confirming atomic.Bool
	aside      sync.WaitGroup // what Close waits for
	unscrubbed atomic.Bool    // the database's log still has to be written back after an erasure
}

// Open takes the workspace over and goes on with its runs.
func Open(ctx context.Context, c Config) (_ *Workspace, err error) {
	if err := c.Name.Check(); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(c.Dir); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	w := &Workspace{Config: c, world: &world{}, expiry: approval.NewClock(c.Now).Now}
	if w.store, err = openStore(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.store.Close())
		}
	}()
	if w.keys, err = vault.OpenKeysetWith(ctx, filepath.Join(c.Dir, "keyset.json"), c.Name, c.KEK, c.Operator.Keys.Cache); err != nil {
		return nil, err
	}
	w.keys.Confirm(ctx, c.Now())          // it was opened just now: the cache's time begins
	w.rewrapping.Store(w.keys.Keys() > 1) // a rotation may have been cut off
	if err := w.seed(ctx); err != nil {
		return nil, err
	}
	if err := w.load(ctx); err != nil {
		return nil, err
	}
	if w.shelf, err = module.NewShelf(filepath.Join(c.Dir, "modules"), w.keys, w.store, c.Compiler); err != nil {
		return nil, err
	}
	w.broker = broker.New(broker.Config{
		Store: w.store, Keys: w.keys, World: w.world, Scanner: c.Scanner, Rules: w.currentRules, Now: c.Now, Expiry: w.expiry,
		DoubtLife: c.Operator.Waits.UnknownFor, KeepWorker: c.Operator.Waits.Keep(), BudgetLife: c.Operator.Waits.BudgetFor, Kin: kin{w},
	})
	w.runner = runner.New(runner.Config{
		Store: w.store, Keys: w.keys, Shelf: w.shelf, Broker: w.broker, Spawner: c.Spawner, Now: c.Now, Expiry: w.expiry, Log: c.Log, Workers: max(c.Operator.Workers, 1),
		Wakes: c.Operator.Waits.Wakes,
	})
	go func() { // whoever lost the workspace must not finish what is under way
		<-w.store.Failed()
		w.runner.Stop()
	}()
	return w, w.runner.Start()
}

func openStore(ctx context.Context, c Config) (*store.Store, error) {
	name, err := os.Hostname()
	if err != nil {
		name = "an unknown machine"
	}
	holder := fmt.Sprintf("monroed pid %d on %s since %s", os.Getpid(), name, c.Now().UTC().Format(time.RFC3339))
	if c.Postgres != nil {
		where := *c.Postgres
		where.Blobs = filepath.Join(c.Dir, "blobs")
		return store.OpenPostgres(ctx, where, c.Name, holder)
	}
	network, err := store.OnNetwork(c.Dir)
	if err != nil {
		return nil, err
	}
	if network != "" {
		c.Log.Warn("the workspace is on a network file system: every commit is slow, and a lock that the server loses lets a second daemon in; keep the state in PostgreSQL (MONROE_STORE), or on a local disk",
			slog.String("directory", c.Dir), slog.String("file_system", network))
	}
	return store.OpenOn(ctx, filepath.Join(c.Dir, databaseName), c.Name, holder, c.Now(), network)
}

func (w *Workspace) currentRules() broker.Rules { return *w.rules.Load() }

// tokenLife is how long the first owner's token lasts.
const tokenLife = 10 * 365 * 24 * time.Hour

// seed mints the owner and an empty configuration at the first start.
func (w *Workspace) seed(ctx context.Context) error {
	now := w.Now()
	var first bool
	err := w.store.Read(ctx, func(tx *store.Tx) error {
		list, err := tx.Principals()
		first = len(list) == 0
		for _, p := range list {
			if p.Role == host.RoleOwner && w.owner.ID == "" {
				w.owner = p
			}
		}
		return err
	})
	if err != nil || !first {
		return err
	}
	w.owner = host.Principal{
		ID: host.PrincipalID(host.NewID("prin", now)), Name: w.Operator.Owner.Name, Email: w.Operator.Owner.Email, Role: host.RoleOwner,
	}
	text, hash := vault.NewToken()
	tok := store.Token{
		ID: host.TokenID(host.NewID("tok", now)), Principal: w.owner.ID, Hash: hash, ExpiresAt: now.Add(tokenLife),
		Scopes: []host.TokenScope{host.ScopeRead, host.ScopeRun, host.ScopeApprove, host.ScopeAdmin},
	}
	// The file first: a token that nobody can read is worse than one that opens
	// nothing yet.
	if err := durable.Replace(filepath.Join(w.Dir, "owner.token"), []byte(text+"\n"), w.Dir, ".owner-*"); err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	empty := fmt.Sprintf("version: 1\nworkspace: %s\ncap_usd: \"0\"\n", w.Name)
	return w.store.Write(ctx, func(tx *store.Tx) error {
		if err := errors.Join(tx.PutPrincipal(w.owner, now), tx.PutToken(tok, now)); err != nil {
			return err
		}
		if _, err := tx.PutWorkspace(store.Workspace{Config: empty, Policies: map[string]string{}}, false, now); err != nil {
			return err
		}
		_, err := audit.Append(tx, audit.Leaf{TimeMS: now.UnixMilli(), Kind: audit.KindAdmin, Who: w.owner.ID, Detail: "workspace created, owner's token minted"})
		return err
	})
}

// load puts the stored configuration in force.
func (w *Workspace) load(ctx context.Context) error {
	var row store.Workspace
	var grants []store.Grant
	err := w.store.Read(ctx, func(tx *store.Tx) (err error) {
		if row, err = tx.Workspace(); err != nil {
			return err
		}
		grants, err = tx.Grants()
		return err
	})
	if err != nil {
		return err
	}
	cfg, err := config.ParseWorkspace([]byte(row.Config))
	if err != nil {
		return err
	}
	built, err := w.World(cfg)
	if err != nil {
		return err
	}
	policy, err := grant.Compile(row.Version, toGrants(grants), w.Operator.Ceiling, row.Policies)
	if err != nil {
		return err
	}
	w.put(built, broker.Rules{Policy: policy, Cap: row.Cap, Owner: w.owner.Email, Identical: cfg.IdenticalCalls, Questions: cfg.Questions})
	return nil
}

func (w *Workspace) put(built broker.World, r broker.Rules) {
	w.world.current.Store(&built)
	w.rules.Store(&r)
}

func toGrants(rows []store.Grant) []grant.Grant {
	list := make([]grant.Grant, len(rows))
	for i, g := range rows {
		list[i] = grant.Grant{ID: g.ID, Skill: g.Skill, Module: g.Module, Operation: g.Operation, Resource: g.Resource, Gate: grant.Gate(g.Gate)}
	}
	return list
}

// Sweep wakes what has waited long enough, signs a checkpoint if the log grew and
// keeps house. The daemon calls it every second.
func (w *Workspace) Sweep(ctx context.Context) error {
	w.confirm(ctx)
	return errors.Join(w.runner.Sweep(), w.checkpoint(ctx, checkpointEvery), w.rewrap(ctx), w.housekeep(ctx))
}

const checkpointEvery = 30 * time.Second

// Failed is closed when the store can no longer be written: the daemon must stop.
func (w *Workspace) Failed() <-chan struct{} { return w.store.Failed() }

// Failure is why, and nil before Failed is closed.
func (w *Workspace) Failure() error { return w.store.Reason() }

// Close stops every run where it is recorded and gives the workspace up.
func (w *Workspace) Close() error {
	w.runner.Close()
	w.aside.Wait()
	return errors.Join(w.checkpoint(context.Background(), 0), w.store.Close())
}

// world lets the configuration change the connectors while calls are under way: a
// call keeps the world it was planned in only through its frozen bytes.
type world struct {
	current atomic.Pointer[broker.World]
}

func (w *world) now() broker.World { return *w.current.Load() }

func (w *world) Operations() []connectors.Operation { return w.now().Operations() }
func (w *world) Pinned(op string) abi.Digest        { return w.now().Pinned(op) }
func (w *world) Plan(ctx context.Context, c connectors.Call) (connectors.Plan, *abi.Denial) {
	return w.now().Plan(ctx, c)
}

func (w *world) Perform(ctx context.Context, p grant.Permit, c connectors.Call, plan connectors.Plan, emit func(string)) broker.Outcome {
	return w.now().Perform(ctx, p, c, plan, emit)
}

func (w *world) PlanProbe(c connectors.Call, p connectors.Plan) (connectors.Plan, *abi.Denial) {
	return w.now().PlanProbe(c, p)
}

func (w *world) Probe(ctx context.Context, permit grant.Permit, c connectors.Call, p, probe connectors.Plan) broker.Outcome {
	return w.now().Probe(ctx, permit, c, p, probe)
}

func (w *world) Ready(ctx context.Context, p connectors.Plan) *abi.Denial {
	return w.now().Ready(ctx, p)
}

func (w *world) Preview(op string, p connectors.Plan) host.Preview { return w.now().Preview(op, p) }

// inside reports whether path lies in dir or is dir.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
