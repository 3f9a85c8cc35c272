//go:build !linux

package worker

import (
	"io"
	"os"
)

func contents(f *os.File) ([]byte, error) {
	if f == nil {
		return nil, nil
	}
	defer f.Close() //nolint:errcheck // only read
	return io.ReadAll(f)
}

func heapAhead(int) {}
