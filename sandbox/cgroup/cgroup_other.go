//go:build !linux

package cgroup

import "fmt"

// A Tree is where groups are made; here it cannot be had.
type Tree struct{}

// A Group is a process's group; here there is none.
type Group struct{}

// Open fails.
func Open() (*Tree, error) { return nil, fmt.Errorf("%w: they need Linux", ErrUnsupported) }
