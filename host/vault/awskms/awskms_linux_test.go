package awskms_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host/egress/peertest"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/awskms"
)

func TestNeedsLocalKMS(t *testing.T) {
	server, ok := peertest.StartKMS(t)
	if !ok {
		return
	}
	newKey := func() *awskms.Key {
		t.Helper()
		k, err := awskms.New(t.Context(), server.Key(), server.Endpoint, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	key, other := newKey(), newKey()

	t.Run("a wrapped key opens for its workspace and its key alone", func(t *testing.T) {
		dek := bytes.Repeat([]byte("k"), 32)
		wrapped, err := key.Wrap(t.Context(), "acme", dek)
		if err != nil || bytes.Contains(wrapped, dek) {
			t.Fatal(err)
		}
		if got, err := key.Unwrap(t.Context(), "acme", wrapped); err != nil || !bytes.Equal(got, dek) {
			t.Error(err)
		}
		if got, err := key.Unwrap(t.Context(), "evil", wrapped); err == nil {
			t.Errorf("another workspace's context opened it: %x", got)
		}
		if got, err := other.Unwrap(t.Context(), "acme", wrapped); err == nil {
			t.Errorf("another key opened it: %x", got)
		}
	})

	dir := t.TempDir()
	path := filepath.Join(dir, "keyset.json")
	slot := vault.Slot{Table: "kv", Column: "value", Row: "1", Version: 1}
	var sealed []byte
	t.Run("a keyset from clear text to the service, rotated there, and back", func(t *testing.T) {
		plain, err := vault.OpenKeyset(path, "acme")
		if err != nil {
			t.Fatal(err)
		}
		if sealed, err = plain.Seal(slot, []byte("x")); err != nil {
			t.Fatal(err)
		}
		opens := func(kek vault.KEK) {
			t.Helper()
			k, err := vault.OpenKeysetWith(t.Context(), path, "acme", kek, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := k.Open(slot, sealed); err != nil || string(got) != "x" {
				t.Error(err)
			}
		}
		for _, step := range []struct{ from, to vault.KEK }{{nil, key}, {key, other}, {other, nil}, {nil, key}} {
			if err := vault.RewrapFile(t.Context(), path, "acme", step.from, step.to); err != nil {
				t.Fatal(err)
			}
			opens(step.to)
		}
		k, err := vault.OpenKeysetWith(t.Context(), path, "acme", key, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Rotate(t.Context()); err != nil || k.Keys() != 2 {
			t.Error(err)
		}
		opens(key)
	})

	t.Run("a key whose deletion is scheduled opens nothing", func(t *testing.T) {
		k, err := vault.OpenKeysetWith(t.Context(), path, "acme", key, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		k.Confirm(t.Context(), now)
		server.Delete(key.Name())
		if _, err := vault.OpenKeysetWith(t.Context(), path, "acme", key, 0); !errors.Is(err, vault.ErrKEK) {
			t.Errorf("a start: %v", err)
		}
		if !k.Confirm(t.Context(), now.Add(30*time.Minute)) || k.Stale(now.Add(30*time.Minute)) != nil {
			t.Error("within the cache's time it is used, and the refusal is noticed")
		}
		if err := k.Stale(now.Add(61 * time.Minute)); !errors.Is(err, vault.ErrKEK) {
			t.Errorf("after the cache's time: %v", err)
		}
		if err := k.Rotate(t.Context()); !errors.Is(err, vault.ErrKEK) {
			t.Errorf("a rotation: %v", err)
		}
	})

	t.Run("a service that is away", func(t *testing.T) {
		server.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		_, err := vault.OpenKeysetWith(ctx, path, "acme", key, 0)
		if !errors.Is(err, vault.ErrKEK) || !strings.Contains(err.Error(), key.Name()) {
			t.Errorf("a start: %v", err)
		}
	})
}

func TestWhatIsNoKeyOrNoSafeEndpointIsRefused(t *testing.T) {
	const good = "arn:aws:kms:eu-central-1:111122223333:key/1234"
	for _, c := range [][2]string{
		{"", ""},
		{"1234", ""},
		{"arn:aws:s3:::bucket", ""},
		{"arn:aws:kms:eu-central-1:111122223333:alias/x", ""},
		{"arn:aws:kms::1:key/1", ""},
		{good, "http://kms.example.com"},
		{good, "kms.example.com"},
		{good, "https://user@kms.example.com"},
		{good, "ftp://127.0.0.1"},
		{good, "http://127.0.0.1.evil.example"},
	} {
		if _, err := awskms.New(t.Context(), c[0], c[1], nil); err == nil {
			t.Errorf("%q at %q was accepted", c[0], c[1])
		}
	}
	for _, endpoint := range []string{"", "https://kms.example.com", "http://127.0.0.1:8081", "http://[::1]:8081", "http://localhost:1"} {
		if _, err := awskms.New(t.Context(), good, endpoint, nil); err != nil {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}
