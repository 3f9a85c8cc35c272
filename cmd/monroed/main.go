// Command monroed is the daemon of one workspace. It holds no capabilities and
// never the Wasm engine; guests run in monroe-worker.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api/rest"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/flow"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/awskms"
	"github.com/getmonroe/monroe/host/workspace"
	"github.com/getmonroe/monroe/sandbox/doctor"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

type flags struct {
	Home        string `help:"Directory of all workspaces." env:"MONROE_HOME" default:"~/.monroe" type:"path"`
	Workspace   string `help:"The workspace to serve." env:"MONROE_WORKSPACE" default:"default"`
	Worker      string `help:"The monroe-worker program; empty: beside this one." type:"path"`
	Listen      string `help:"Loopback address for the API besides the socket, such as 127.0.0.1:7070."`
	Provision   string `help:"Prepare the PostgreSQL database of MONROE_STORE_ADMIN for the workspace, bind this role to it, and end." placeholder:"ROLE"`
	Backup      string `help:"Copy the workspace into this new directory, and end. The daemon may run." placeholder:"DIR" type:"path"`
	WithKeys    bool   `help:"Also copy the keyset and the owner's token, so that the backup opens itself."`
	Restore     string `help:"Put a backup in the place of the workspace, hold the runs that had not ended, and end." placeholder:"DIR" type:"path"`
	RewrapKeys  bool   `help:"Seal the keyset's file by what operator.yaml names now (keys), and end. The daemon must not run."`
	InsecureDev bool   `help:"Run guests although the confinement is incomplete. Never with modules of others."`
}

func main() { os.Exit(run()) }

func run() int {
	var f flags
	kong.Parse(&f, kong.Name("monroed"), kong.Description("Serves one workspace: its skills, runs, approvals, spend and audit log."))
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, f, log); err != nil {
		log.Error("monroed stops", slog.String("error", err.Error()))
		return 1
	}
	return 0
}

func serve(ctx context.Context, f flags, log *slog.Logger) error {
	name := host.Workspace(f.Workspace)
	if err := name.Check(); err != nil {
		return err
	}
	if f.Provision != "" {
		return provision(ctx, name, f.Provision, log)
	}
	home, err := filepath.Abs(f.Home)
	if err != nil {
		return err
	}
	dir := filepath.Join(home, f.Workspace)
	operator, err := config.ReadOperator(filepath.Join(home, "operator.yaml"))
	if err != nil {
		return err
	}
	stop, err := stand(ctx, log)
	if err != nil {
		return err
	}
	defer stop.Close() //nolint:errcheck // the process ends
	postgres, err := postgresOf(operator.Store, stop.dialer("store"))
	if err != nil {
		return err
	}
	kek, err := kekOf(ctx, operator.Keys, stop.dialer("keys"))
	if err != nil {
		return err
	}
	aside := workspace.Config{Name: name, Dir: dir, Postgres: postgres, Operator: operator, KEK: kek, Now: time.Now, Log: log}
	switch {
	case f.RewrapKeys:
		return workspace.RewrapKeys(ctx, aside, func(was string) (vault.KEK, error) {
			return awskms.New(ctx, was, endpointOf(operator.Keys), stop.dialer("keys"))
		})
	case f.Backup != "":
		return backup(ctx, aside, f)
	case f.Restore != "":
		return workspace.Restore(ctx, aside, f.Restore)
	}
	if f.Worker == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		f.Worker = filepath.Join(filepath.Dir(self), "monroe-worker")
	}
	up, err := spawn.Inherited()
	if err != nil {
		return err
	}
	spawner, err := spawnerOf(up, f)
	if err != nil {
		return err
	}
	defer spawner.Close() //nolint:errcheck // the process ends
	switch {
	case up != nil && operator.WorkerUID != up.UID() && operator.WorkerUID != config.NobodyUID:
		log.Warn("worker_uid of operator.yaml has no effect: monroe up chooses, by --worker-uid", slog.Any("worker_uid", operator.WorkerUID), slog.Any("used", up.UID()))
	case up == nil && os.Geteuid() == 0: // nobody else may start processes of another user
		spawner.UID = operator.WorkerUID
	}
	// A guest that makes its process try this has left its engine: it ends there.
	spawner.OnViolation = func(p *spawn.Process, _ spawn.Violation) { p.Kill() }
	plugged, err := openPlugins(spawner, operator.Plugins, log)
	if err != nil {
		return err
	}
	defer plugged.Close()
	build, err := worldBuilder(operator, dir, plugged, stop)
	if err != nil {
		return err
	}
	warm := runner.NewWarm(workers{spawner}, operator.SpareWorkers(), spareLife, log)
	defer warm.Close()
	w, err := workspace.Open(ctx, workspace.Config{
		Name: name, Dir: dir, Postgres: postgres, Operator: operator, KEK: kek, World: build, Scanner: plugged.scanner(), Compiler: compiler{spawner}, Spawner: warm,
		Confinement: confinement(f.InsecureDev, spawner.Walls(), stop), Walls: (&examiner{subject: doctor.Subject{Program: f.Worker, UID: spawner.UID, Up: up}, stop: stop}).walls,
		Egress: stop.view, Now: time.Now, Log: log,
	})
	if err != nil {
		return err
	}
	if stop != nil {
		stop.ledger.OnAlarm(func(a flow.Alarm) { w.Alarm(ctx, a) })
	}
	told := plugged.tell(func(a pluginAlarm) { w.PluginAlarm(ctx, a.plugin, a.program, a.what) })
	handler := rest.Handler(w, func(err error) { log.Error("request failed", slog.String("error", err.Error())) })
	listen := f.Listen
	if listen == "" {
		listen = operator.Listen
	}
	err = listenAndServe(ctx, w, handler, filepath.Join(dir, "api.sock"), listen, stop, log)
	told()
	return errors.Join(err, w.Close())
}

// spawnerOf forks as law 17 says: through a privileged monroe up, or directly.
func spawnerOf(up *spawn.Remote, f flags) (*spawn.Spawner, error) {
	if up != nil {
		return up.New(f.InsecureDev)
	}
	s, err := spawn.New(f.Worker, f.InsecureDev)
	if err != nil {
		return nil, fmt.Errorf("the worker program %s: %w", f.Worker, err)
	}
	return s, nil
}

// listenAndServe answers until the context ends, a listener fails or the store can
// no longer be written.
func listenAndServe(ctx context.Context, w *workspace.Workspace, h http.Handler, socket, tcp string, stop *backstop, log *slog.Logger) error {
	// The lease is ours by now, so a socket that is still there is a dead daemon's.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var lc net.ListenConfig
	unix, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	// Closing must not remove it: after a take-over the path is the other daemon's.
	if u, ok := unix.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	listeners := []net.Listener{unix}
	if tcp != "" {
		ip, _, err := net.SplitHostPort(tcp)
		if a := net.ParseIP(ip); err != nil || a == nil || !a.IsLoopback() {
			return fmt.Errorf("listen %q: only a loopback address such as 127.0.0.1:7070 is served; put a proxy with TLS before it", tcp)
		}
		l, err := lc.Listen(ctx, "tcp", tcp)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10, BaseContext: func(net.Listener) context.Context { return ctx }}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		log.Info("serving", slog.String("address", l.Addr().String()))
		go func() { failed <- srv.Serve(l) }()
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := w.Sweep(ctx); err != nil && ctx.Err() == nil {
				log.Error("sweep", slog.String("error", err.Error()))
			}
			if err := stop.sweep(); err != nil {
				log.Error("egress", slog.String("error", err.Error()))
			}
			continue
		case err = <-failed:
		case <-w.Failed():
			err = fmt.Errorf("the store can no longer be written: the disk may be full or broken, the database server gone, or another daemon has taken over; "+
				"nothing was lost that was answered: look at the cause, then start the daemon again: %w", w.Failure())
		case <-ctx.Done():
			err = os.Remove(socket) // the lease is still ours, and so is the path
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(end) // streams end with ctx; whoever is left is cut off
		return err
	}
}

// kekOf is what seals the keyset's file, nil for clear text.
func kekOf(ctx context.Context, k config.Keys, dial func(context.Context, string, string) (net.Conn, error)) (vault.KEK, error) {
	name := k.KMS
	if v := os.Getenv("MONROE_KMS"); v != "" {
		name = v
	}
	if name == "" {
		return nil, nil
	}
	return awskms.New(ctx, name, endpointOf(k), dial)
}

func endpointOf(k config.Keys) string {
	if v := os.Getenv("MONROE_KMS_ENDPOINT"); v != "" {
		return v
	}
	return k.Endpoint
}

// backup copies the workspace and says what the copy lacks.
func backup(ctx context.Context, c workspace.Config, f flags) error {
	b, err := workspace.TakeBackup(ctx, c, f.Backup, f.WithKeys)
	if err != nil {
		return err
	}
	c.Log.Info("the backup is whole", slog.String("directory", f.Backup), slog.Int("files", len(b.Files)))
	if _, ok := b.Files["keyset.json"]; !ok {
		c.Log.Warn("the backup opens nothing by itself: keep keyset.json and owner.token elsewhere, or take it with --with-keys")
	}
	if b.Database != "sqlite" {
		c.Log.Warn("the database is not in the backup: dump it before, with pg_dump")
	}
	return nil
}
