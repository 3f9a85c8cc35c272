package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
	"github.com/getmonroe/monroe/host/config"
)

type workspaceCmd struct {
	Show  workspaceShow  `cmd:"" default:"1" help:"The configuration in force."`
	Apply workspaceApply `cmd:"" help:"Replace the configuration, as a whole or not at all."`
}

type workspaceShow struct{}

func (workspaceShow) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.WorkspaceView, error) { return c.Workspace(e.ctx) }, func(v api.WorkspaceView) {
		e.printf("workspace %s, policy version %d, cap %s a month\nwalls around guests: %s\nyou are %s (%s)\n\n%s", v.Workspace, v.Version, v.CapUSD, v.Level, plain(v.Caller.Name), v.Caller.Role, block(v.Config, ""))
	})
}

type workspaceApply struct {
	File string `short:"f" required:"" type:"existingfile" help:"workspace.yaml; Cedar files that it names lie beside it."`
}

func (a workspaceApply) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	in, err := readConfig(a.File)
	if err != nil {
		return err
	}
	r, err := c.Apply(e.ctx, in)
	if err != nil {
		return err
	}
	return e.show(r, func() { e.applied(r) })
}

func (e *env) applied(r api.ApplyResult) {
	e.printf("applied: policy version %d, %d grants\n", r.Version, r.Grants)
	for _, c := range r.Changes {
		e.printf("  %s\n", plain(c))
	}
}

// readConfig reads a workspace.yaml with the policies that it names.
func readConfig(path string) (in api.ApplyInput, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return in, err
	}
	w, err := config.ParseWorkspace(text)
	if err != nil {
		return in, err
	}
	in = api.ApplyInput{Config: string(text), Policies: map[string]string{}}
	for _, p := range w.Policies {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(path), p))
		if err != nil {
			return in, fmt.Errorf("policies: %w", err)
		}
		in.Policies[p] = string(b)
	}
	return in, nil
}

type spendCmd struct{}

func (spendCmd) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.SpendView, error) { return c.Spend(e.ctx) }, func(v api.SpendView) {
		e.printf("%s: settled %s, reserved %s, cap %s\n", v.Period, abi.MicroUSD(v.Settled), abi.MicroUSD(v.Reserved), abi.MicroUSD(v.CapMicro))
		if v.Warned > 0 {
			e.printf("warned: %d %% of the cap is used or reserved\n", v.Warned)
		}
		if v.Notice != "" {
			e.printf("%s (%d runs wait)\n", v.Notice, v.Waiting)
		}
	})
}

type doctorCmd struct{}

func (doctorCmd) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	v, err := c.Doctor(e.ctx)
	if err != nil {
		return err
	}
	err = e.show(v, func() {
		for _, l := range append(append(v.Layers, v.Parts...), v.Full) {
			mark := "    "
			if l.Enforced {
				mark = "ok  "
			}
			e.printf("%s  %-11s %-21s %2d of %2d attempts denied, %2d reported   %s\n", mark, l.ID, l.Name, l.Denied, l.Attempts, l.Reported, plain(l.Why))
		}
		h := v.Host
		e.printf("      kernel %s %s, user %d, workers %d, capabilities %s, namespaces: %s\n", plain(h.Kernel), h.Arch, h.UID, h.WorkerUID, h.Capabilities, plain(h.Namespaces))
		e.printf("      spawner: %s\n", plain(h.Spawner))
		for _, w := range h.GroupsWhy {
			e.printf("      control groups: %s\n", plain(w))
		}
		for _, x := range v.Checks {
			mark := "ok  "
			if !x.OK {
				mark = "FAIL"
			}
			e.printf("%s  %-18s %s\n", mark, x.Name, plain(x.Detail))
			if x.Remedy != "" {
				e.printf("      → %s\n", plain(x.Remedy))
			}
		}
	})
	if err == nil && !v.OK {
		return exitError(1)
	}
	return err
}
