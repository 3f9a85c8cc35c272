// Command monroe is the command line of a workspace. It uses the API and nothing
// else, except for up, which starts the daemon.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/getmonroe/monroe/host/api/client"
)

type cli struct {
	Home      string `help:"Directory of all workspaces." env:"MONROE_HOME" default:"~/.monroe" type:"path"`
	Workspace string `help:"The workspace." short:"w" env:"MONROE_WORKSPACE" default:"default"`
	Token     string `help:"Token; empty: the owner's, from the workspace's directory." env:"MONROE_TOKEN"`
	JSON      bool   `help:"Print JSON." name:"json"`

	Up        upCmd        `cmd:"" help:"Start the workspace's daemon and start it again when it ends."`
	Doctor    doctorCmd    `cmd:"" help:"Ask the daemon how it is."`
	WS        workspaceCmd `cmd:"" name:"workspace" help:"Configuration of the workspace."`
	Skill     skillCmd     `cmd:"" help:"Skills and agents."`
	Run       runCmd       `cmd:"" help:"Run a skill."`
	Runs      runsCmd      `cmd:"" help:"Runs, past and present."`
	Approvals approvalsCmd `cmd:"" help:"What waits for a person."`
	Spend     spendCmd     `cmd:"" help:"The ledger of this month."`
	Keys      keysCmd      `cmd:"" help:"The workspace's keys."`
	Egress    egressCmd    `cmd:"" help:"What left this machine, as the kernel counted it, and for which call."`
	Audit     auditCmd     `cmd:"" help:"The audit log."`
	Upgrade   upgradeCmd   `cmd:"" help:"Whether this binary can take over from the daemon that is running."`
	Demo      demoCmd      `cmd:"" help:"Run the digest skill over a folder, from upload to receipt."`
}

// env is what every command gets.
type env struct {
	ctx  context.Context
	out  io.Writer
	err  io.Writer
	in   io.Reader
	home string
	dir  string // the workspace's
	tok  string
	json bool
}

func (e *env) client() (*client.Client, error) { return client.Dial(e.dir, e.tok) }

// exitError ends the program with a status of its own and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	var c cli
	parser, err := kong.New(&c, kong.Name("monroe"), kong.UsageOnError(),
		kong.Description("monroe runs AI agents and skills that can do nothing but ask. Every command talks to the daemon of one workspace."))
	if err != nil {
		fmt.Fprintln(os.Stderr, "monroe:", err)
		return 2
	}
	k, err := parser.Parse(args)
	if err != nil {
		parser.FatalIfErrorf(err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	home, err := filepath.Abs(c.Home)
	if err != nil {
		fmt.Fprintln(os.Stderr, "monroe:", err)
		return 2
	}
	e := &env{ctx: ctx, out: os.Stdout, err: os.Stderr, in: os.Stdin, home: home, dir: filepath.Join(home, c.Workspace), tok: c.Token, json: c.JSON}
	err = k.Run(e, &c)
	var status exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130
	}
	e.complain(err)
	return 1
}

// complain says what went wrong: to people in words, and as JSON where that is asked for.
func (e *env) complain(err error) {
	if !e.json {
		fmt.Fprintln(e.err, "monroe:", err)
		return
	}
	p := &client.Problem{}
	if !errors.As(err, &p) {
		p = &client.Problem{Detail: err.Error()}
	}
	enc := json.NewEncoder(e.err)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]any{"error": p}) // there is nobody else to tell
}
