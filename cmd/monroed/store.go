package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// postgresOf reads where PostgreSQL is, nil if the state is kept in SQLite.
func postgresOf(c config.Store, dial func(context.Context, string, string) (net.Conn, error)) (*store.PostgresConfig, error) {
	address := os.Getenv("MONROE_STORE")
	if address == "" {
		address = c.Postgres
		if u, err := url.Parse(address); err != nil || u.User != nil && hasPassword(u) || u.Query().Has("password") {
			return nil, errors.New("operator.yaml: store: postgres: it must be an address without a password; put that into password_file or MONROE_STORE_PASSWORD")
		}
	}
	if address == "" {
		return nil, nil //nolint:nilnil // no PostgreSQL is an answer
	}
	if !strings.HasPrefix(address, "postgres://") && !strings.HasPrefix(address, "postgresql://") {
		return nil, errors.New("MONROE_STORE: only postgres://role@host/database is known; leave it out for SQLite")
	}
	password, err := secret("MONROE_STORE_PASSWORD", c.PasswordFile)
	if err != nil && !errors.Is(err, errNoSecret) { // the address may hold it, or none is needed
		return nil, fmt.Errorf("store: %w", err)
	}
	return &store.PostgresConfig{URL: vault.NewSecret(address), Password: password, Dial: dial}, nil
}

func hasPassword(u *url.URL) bool {
	_, ok := u.User.Password()
	return ok
}

// provision prepares a database, as a role that no daemon uses.
func provision(ctx context.Context, ws host.Workspace, role string, log *slog.Logger) error {
	address := os.Getenv("MONROE_STORE_ADMIN")
	if address == "" {
		return errors.New("MONROE_STORE_ADMIN: set it to postgres://owner@host/database, of a role that may own the schema monroe")
	}
	if err := store.Provision(ctx, store.PostgresConfig{URL: vault.NewSecret(address)}, ws, role); err != nil {
		return err
	}
	log.Info("provisioned; give the role a way to log in, and the daemon its address as MONROE_STORE", slog.String("workspace", string(ws)), slog.String("role", role))
	return nil
}
