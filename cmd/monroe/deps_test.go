package main

import (
	"testing"

	"github.com/getmonroe/monroe/cmd/deptest"
)

func TestDependencies(t *testing.T) {
	deptest.Check(t, deptest.Module+"host/vault", deptest.Module+"host/journal", deptest.Module+"host/store", deptest.Module+"host/broker", deptest.Module+"host/grant",
		deptest.Module+"connectors", deptest.Module+"sandbox/doctor", deptest.Module+"sandbox/worker", "github.com/tetratelabs/wazero", "modernc.org/sqlite", "github.com/jackc/pgx/v5")
}
