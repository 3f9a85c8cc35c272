//go:build !linux

package main

import (
	"errors"
	"fmt"
	"os/exec"
)

type guard struct{}

func (u upCmd) guard(e *env) (*guard, error) {
	switch u.Egress {
	case "off":
	case "auto":
		fmt.Fprintln(e.err, "monroe: no kernel programs behind the sandbox (layers L4 and L5): only Linux has them")
	default:
		return nil, errors.New("--egress: only Linux has kernel programs")
	}
	return nil, nil //nolint:nilnil // no guard is an answer
}

func (*guard) Start(cmd *exec.Cmd) error { return cmd.Start() }

func (*guard) Ended() {}

func (*guard) Close() error { return nil }
