//go:build !linux

package canary

import (
	"errors"
	"io"
)

// Serve fails: there are no walls to try.
func Serve(io.ReadWriter) error { return errors.ErrUnsupported }
