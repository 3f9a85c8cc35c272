//go:build !linux

package confine

import "fmt"

// Enter fails, unless Config.Insecure is set: there is nothing to confine with.
func Enter(cfg Config) (*Confinement, error) {
	const needs = "workers are confined with seccomp and Landlock, which only Linux has; use Linux, or start with --insecure-dev to develop without isolation"
	if !cfg.Insecure {
		return nil, fmt.Errorf("%w: %s", ErrUnsupported, needs)
	}
	c := &Confinement{cfg: cfg, missing: []string{needs}}
	return c, c.open()
}
