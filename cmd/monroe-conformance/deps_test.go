package main

import (
	"strings"
	"testing"

	"github.com/getmonroe/monroe/cmd/deptest"
)

func TestDependencies(t *testing.T) {
	banned := []string{deptest.Module + "connectors", "github.com/tetratelabs/wazero", "net/http", "crypto/tls"}
	for _, room := range strings.Fields("api approval audit broker config durable egress flow journal module plugin runner spend store vault workspace") {
		banned = append(banned, deptest.Module+"host/"+room) // the daemon's; what decides is in none of them
	}
	deptest.Check(t, banned...)
}
