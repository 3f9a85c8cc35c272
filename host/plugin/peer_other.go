//go:build !linux

package plugin

import (
	"context"
	"errors"
	"net"
)

func (r *run) dial(context.Context, string) (net.Conn, error) { return nil, errors.ErrUnsupported }
