package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

type upgradeCmd struct {
	Check  bool   `required:"" help:"Name every unfinished run that this binary cannot replay; exit status 1 if there is one. Nothing is changed."`
	Worker string `help:"The new monroe-worker program; empty: beside this one." type:"path"`
}

// Run is started from the new binary while the old daemon still runs: the daemon says
// what its runs need, and this binary what it has.
func (u upgradeCmd) Run(e *env) error {
	engine, err := u.engine(e)
	if err != nil {
		return err
	}
	c, err := e.client()
	if err != nil {
		return err
	}
	list, err := c.Pins(e.ctx)
	if err != nil {
		return err
	}
	type finding struct {
		host.Pins
		Why string `json:"why"`
	}
	bad := []finding{}
	for _, p := range list {
		if why := p.Unmet(engine, abi.Version); why != "" {
			bad = append(bad, finding{p, why})
		}
	}
	err = e.show(map[string]any{"engine": engine, "abi_version": abi.Version, "runs": len(list), "cannot_replay": bad}, func() {
		e.printf("this binary: engine %s, ABI %d\n%d unfinished runs, %d of which it cannot replay\n", engine, abi.Version, len(list), len(bad))
		var rows [][]string
		for _, p := range bad {
			rows = append(rows, []string{string(p.Run), p.Skill, strings.TrimSpace(string(p.State) + " " + string(p.Wait)), p.Why})
		}
		if len(bad) > 0 {
			e.table([]string{"RUN", "SKILL", "STATE", "WHY"}, rows)
			e.printf("let them end or cancel them, then upgrade; otherwise they wait for the old binary, for 7 days\n")
		}
	})
	if len(bad) > 0 {
		return orStatus(err, 1)
	}
	return err
}

// engine asks the new worker what its runs are pinned to.
func (u upgradeCmd) engine(e *env) (string, error) {
	path := u.Worker
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "monroe-worker")
	}
	out, err := exec.CommandContext(e.ctx, path, "--engine").Output()
	if err != nil {
		return "", fmt.Errorf("the new worker does not say which engine it has: %w", err)
	}
	engine := strings.TrimSpace(string(out))
	if engine == "" {
		return "", errors.New("the new worker does not say which engine it has")
	}
	return engine, nil
}
