package main

import (
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api/client"
)

type skillCmd struct {
	Push    skillPush    `cmd:"" help:"Admit, compile and store a module."`
	List    skillList    `cmd:"" help:"List the skills."`
	Inspect skillInspect `cmd:"" help:"Show what a skill asks for."`
	Pack    skillPack    `cmd:"" help:"Attach a manifest to a module that a compiler made."`
}

type skillPush struct {
	File string `arg:"" type:"existingfile" help:"The .wasm module."`
}

func (s skillPush) Run(e *env) error {
	module, err := os.ReadFile(s.File)
	if err != nil {
		return err
	}
	c, err := e.client()
	if err != nil {
		return err
	}
	if !e.json {
		fmt.Fprintf(e.err, "pushing %s (%d KiB): admission and compilation can take some seconds …\n", s.File, len(module)>>10)
	}
	done := e.busy("checking and compiling")
	v, err := c.PushSkill(e.ctx, module)
	done()
	if err != nil {
		return err
	}
	return e.show(v, func() { e.pushed(v) })
}

func (e *env) pushed(v host.Skill) {
	e.printf("pushed %s %s, module %.12s", v.Name, v.Version, v.Module)
	if !v.Granted && len(v.Manifest.Operations) > 0 {
		e.printf("; it holds no grants yet: list them in workspace.yaml and apply it")
	}
	e.printf("\n")
}

type skillList struct{}

func (skillList) Run(e *env) error {
	return answer(e, func(c *client.Client) ([]host.Skill, error) { return c.Skills(e.ctx) }, func(list []host.Skill) {
		var rows [][]string
		for _, s := range list {
			granted := "no grants"
			if s.Granted {
				granted = "granted"
			}
			rows = append(rows, []string{s.Name, s.Version, s.Module[:12], granted, when(s.PushedAt), s.Description})
		}
		e.table([]string{"NAME", "VERSION", "MODULE", "GRANTS", "PUSHED", "DESCRIPTION"}, rows)
	})
}

type skillInspect struct {
	Name string `arg:""`
}

func (s skillInspect) Run(e *env) error {
	return answer(e, func(c *client.Client) (host.Skill, error) { return c.Skill(e.ctx, s.Name) }, func(v host.Skill) {
		e.printf("%s %s: %s\nmodule %s\nimage  %s\nengine %s\npushed by %s at %s\n\nasks for\n", v.Name, plain(v.Version), plain(v.Description), v.Module, v.Image, plain(v.Engine), plain(v.PushedBy), when(v.PushedAt))
		var rows [][]string
		for _, u := range v.Manifest.Operations {
			asks := "no"
			if u.Effect.Asks() {
				asks = "yes, a person each time"
			}
			rows = append(rows, []string{u.Operation, string(u.Resource), string(u.Effect), asks})
		}
		e.table([]string{"OPERATION", "ON", "EFFECT", "ASKS"}, rows)
		e.printf("\nops: %v\n", v.Manifest.Ops)
	})
}

type skillPack struct {
	Module   string `arg:"" type:"existingfile" help:"The .wasm module."`
	Manifest string `short:"m" required:"" type:"existingfile" help:"The manifest, as JSON."`
	Output   string `short:"o" required:"" type:"path" help:"Where to write the packed module."`
}

func (s skillPack) Run(e *env) error {
	module, err := os.ReadFile(s.Module)
	if err != nil {
		return err
	}
	manifest, err := os.ReadFile(s.Manifest)
	if err != nil {
		return err
	}
	packed, err := abi.AttachManifest(module, manifest)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.Output, packed, 0o644); err != nil {
		return err
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(packed))
	return e.show(map[string]string{"file": s.Output, "module": sum}, func() { e.printf("packed %s, module %.12s\n", s.Output, sum) })
}
