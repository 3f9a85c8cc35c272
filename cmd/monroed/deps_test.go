package main

import (
	"testing"

	"github.com/getmonroe/monroe/cmd/deptest"
)

func TestDependencies(t *testing.T) {
	deptest.Check(t, "github.com/tetratelabs/wazero", deptest.Module+"sandbox/worker", deptest.Module+"sandbox/confine", deptest.Module+"host/api/client")
}
