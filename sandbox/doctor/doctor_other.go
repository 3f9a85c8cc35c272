//go:build !linux

package doctor

import (
	"context"
	"errors"

	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// Examine fails: there are no walls to look at.
func Examine(context.Context, string, uint32, *ebpf.Backstop) (*Report, error) {
	return nil, errors.ErrUnsupported
}
