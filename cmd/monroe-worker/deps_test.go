package main_test

import (
	"testing"

	"github.com/getmonroe/monroe/cmd/deptest"
)

func TestDependencies(t *testing.T) {
	deptest.Check(t, deptest.Module+"host", deptest.Module+"connectors", deptest.Module+"sandbox/spawn", deptest.Module+"sandbox/ebpf", deptest.Module+"sandbox/cgroup", deptest.Module+"sandbox/wasmtest",
		"net/http", "crypto/tls", "os/exec", "plugin", "database/sql")
}
