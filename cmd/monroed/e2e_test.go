// The tests in this directory run the programs as people do: a daemon on a home of
// its own, the command line and the API beside it. They need what the daemon needs
// of the kernel.
package main_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	main "github.com/getmonroe/monroe/cmd/monroed"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	err := func() (err error) {
		if main.Scratch, err = os.MkdirTemp("", "monroe-bin-"); err != nil {
			return err
		}
		err = os.Chmod(main.Scratch, 0o755) // a daemon may have a user of its own
		if main.Bin != "" {
			return err
		}
		main.Bin = main.Scratch
		return errors.Join(
			err,
			goTool("build", "-trimpath", "-buildvcs=false", "-o", main.Bin+"/", "github.com/getmonroe/monroe/cmd/..."),
			goTool("run", "github.com/getmonroe/monroe/guest/build", "-o", program("guests")),
		)
	}()
	defer func() { _ = os.RemoveAll(main.Scratch) }()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func goTool(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join("..", "..") // the guests are named from the root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func program(name string) string { return filepath.Join(main.Bin, name) }

func guestModule(t *testing.T, name string) []byte {
	t.Helper()
	return read(t, program(filepath.Join("guests", name+".wasm")))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mnr-") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// daemon is one workspace, served or not.
type daemon struct {
	*client.Client
	t     *testing.T
	home  string // of all workspaces
	dir   string // of this one
	files string // the folder that the operator opened
	env   []string
	args  []string
	by    []string // the command that starts the daemon; empty: monroed itself

	cmd   *exec.Cmd
	ended chan error
	said  *said
}

// said keeps what a process printed and tells when it serves.
type said struct {
	mu     sync.Mutex
	text   bytes.Buffer
	serves chan struct{}
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// limit bounds what hangs, and nothing else: a slow machine is no failure.
const limit = 5 * time.Minute

// newDaemon prepares a home with an operator.yaml, to which more is appended.
func newDaemon(t *testing.T, more string) *daemon {
	t.Helper()
	home := shortDir(t)
	d := &daemon{t: t, home: home, dir: filepath.Join(home, "team"), files: filepath.Join(shortDir(t), "docs")}
	write(t, filepath.Join(d.files, "plan.md"), "# Plan\n\nShall we ship on Friday?\n")
	write(t, filepath.Join(home, "operator.yaml"), "version: 1\nowner: {name: Ann, email: ann@localhost}\nfolders: ["+d.files+"]\n"+more)
	return d
}

// serve prepares a home and starts its daemon.
func serve(t *testing.T, more string) *daemon {
	t.Helper()
	d := newDaemon(t, more)
	d.up()
	return d
}

// launch starts the daemon without waiting for it.
func (d *daemon) launch() {
	d.t.Helper()
	d.cmd = exec.Command(program("monroed"), append([]string{"--home", d.home, "--workspace", "team"}, d.args...)...)
	if len(d.by) > 0 {
		d.cmd = exec.Command(d.by[0], d.by[1:]...)
	}
	d.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home}, d.env...)
	out, err := d.cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	s := &said{serves: make(chan struct{})}
	ended := make(chan error, 1)
	cmd := d.cmd
	go func() {
		once := sync.Once{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			s.mu.Lock()
			s.text.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
			if strings.Contains(lines.Text(), "msg=serving") {
				once.Do(func() { close(s.serves) })
			}
		}
		ended <- cmd.Wait()
	}()
	d.said, d.ended = s, ended
	d.t.Cleanup(func() { _ = cmd.Process.Kill() })
}

// up starts the daemon and waits until it serves.
func (d *daemon) up() {
	d.t.Helper()
	d.launch()
	select {
	case <-d.said.serves:
	case err := <-d.ended:
		d.t.Fatalf("the daemon ended: %v\n%s", err, d.said)
	case <-time.After(limit):
		d.t.Fatalf("the daemon does not serve:\n%s", d.said)
	}
	c, err := client.Dial(d.dir, "")
	if err != nil {
		d.t.Fatal(err)
	}
	d.Client = c
	d.t.Cleanup(d.report)
}

func (d *daemon) report() {
	if d.t.Failed() {
		d.t.Logf("the daemon said:\n%s", d.said)
	}
}

// end waits for the process.
func (d *daemon) end() error {
	d.t.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(limit):
		d.t.Fatalf("the daemon does not end:\n%s", d.said)
		return nil
	}
}

// kill ends the daemon as a power cut would.
func (d *daemon) kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	_ = d.end() // it was killed
}

// stop ends the daemon in good order.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.t.Fatal(err)
	}
	if err := d.end(); err != nil {
		d.t.Fatalf("the daemon ended with %v\n%s", err, d.said)
	}
}

func (d *daemon) ctx() context.Context {
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	d.t.Cleanup(cancel)
	return ctx
}

func (d *daemon) push(module []byte) host.Skill {
	d.t.Helper()
	s, err := d.PushSkill(d.ctx(), module)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// config is a workspace.yaml with the folder docs and the given lines of grants.
func (d *daemon) config(grants ...string) string {
	text := "version: 1\nworkspace: team\ncap_usd: \"5\"\nconnectors:\n  - {name: docs, kind: files, path: " + d.files + ", model_may_read: true}\n"
	if len(grants) > 0 {
		text += "grants:\n"
	}
	for _, g := range grants {
		text += "  - {" + g + "}\n"
	}
	return text
}

// digestGrants are what the digest needs.
var digestGrants = []string{
	`skill: digest, operation: files.list, resource: "files:docs/**"`,
	`skill: digest, operation: files.read, resource: "files:docs/**"`,
	`skill: digest, operation: mail.send, resource: "mail:ann@localhost"`,
}

func (d *daemon) apply(text string) {
	d.t.Helper()
	if _, err := d.Apply(d.ctx(), api.ApplyInput{Config: text}); err != nil {
		d.t.Fatal(err)
	}
}

// digest serves a workspace whose digest may run.
func digest(t *testing.T) *daemon {
	t.Helper()
	d := compiled(t, "")
	d.apply(d.config(digestGrants...))
	return d
}

// compiled serves a workspace with the digest: a copy of one to which it was pushed, since
// a compilation takes seconds and few tests are about one.
func compiled(t *testing.T, more string) *daemon {
	t.Helper()
	pushed := filepath.Join(main.Scratch, "pushed")
	pushedOnce.Do(func() {
		d := serve(t, "")
		d.push(guestModule(t, "digest"))
		d.stop()
		copyTree(t, d.dir, pushed)
	})
	d := newDaemon(t, more)
	copyTree(t, pushed, d.dir)
	d.up()
	return d
}

var pushedOnce sync.Once

func (d *daemon) start(skill, input string) host.RunID {
	d.t.Helper()
	in := api.StartInput{Skill: skill}
	if input != "" {
		in.Input = []byte(input)
	}
	r, err := d.StartRun(d.ctx(), in)
	if err != nil {
		d.t.Fatal(err)
	}
	return r.ID
}

var errSeen = errors.New("seen")

// asked waits until the run has asked for an approval.
func (d *daemon) asked(id host.RunID) api.ApprovalView {
	d.t.Helper()
	var a host.ApprovalID
	err := d.Watch(d.ctx(), id, 0, func(e host.Event) error {
		if e.Approval == "" {
			return nil
		}
		a = e.Approval
		return errSeen
	})
	if !errors.Is(err, errSeen) {
		d.t.Fatalf("the run asked for nothing: %v; it is %+v", err, d.run(id))
	}
	v, err := d.Approval(d.ctx(), a)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

func (d *daemon) run(id host.RunID) api.RunView {
	d.t.Helper()
	v, err := d.Run(d.ctx(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// finished waits for the run's end.
func (d *daemon) finished(id host.RunID) api.RunView {
	d.t.Helper()
	if err := d.Watch(d.ctx(), id, 0, func(host.Event) error { return nil }); err != nil {
		d.t.Fatal(err)
	}
	v := d.run(id)
	if !v.State.Ended() {
		d.t.Fatalf("the stream of %s ended, but it is %s", id, v.State)
	}
	return v
}

// mails are the delivered ones.
func (d *daemon) mails() []string {
	d.t.Helper()
	return delivered(d.t, filepath.Join(d.dir, "Maildir"))
}

// delivered are the mails in a Maildir.
func delivered(t *testing.T, box string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(box, "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// refused checks that an error is a problem with a code and a remedy.
func refused(t *testing.T, err error, status int, code string) *client.Problem {
	t.Helper()
	p := &client.Problem{}
	if !errors.As(err, &p) || p.Status != status || p.Code != code {
		t.Fatalf("got %v, want status %d %s", err, status, code)
	}
	return p
}

// cli runs monroe and returns what it printed and its exit status.
func cli(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("monroe"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	b, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}
