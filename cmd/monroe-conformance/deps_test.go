package main

import (
	"testing"

	"github.com/getmonroe/monroe/cmd/deptest"
)

func TestDependencies(t *testing.T) {
	deptest.Check(t, deptest.Module+"host", deptest.Module+"connectors", "github.com/tetratelabs/wazero", "net/http", "crypto/tls", "database/sql")
}
