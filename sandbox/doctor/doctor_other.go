//go:build !linux

package doctor

import (
	"context"
	"errors"
)

// Examine fails: there are no walls to look at.
func Examine(context.Context, Subject) (*Report, error) { return nil, errors.ErrUnsupported }
