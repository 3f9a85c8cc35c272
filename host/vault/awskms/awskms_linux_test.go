package awskms_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/getmonroe/monroe/host/egress/peertest"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/awskms"
)

// TestNeedsLocalKMS talks to local-kms, which others wrote. It is not AWS: it has no IAM,
// and what it answers after a deletion is its own code.
func TestNeedsLocalKMS(t *testing.T) {
	program := os.Getenv("MONROE_LOCAL_KMS")
	if program == "" {
		t.Skip("MONROE_LOCAL_KMS is not set: install local-kms with .ci/peers.sh")
	}
	if !inEmptyNetwork(t) {
		return
	}
	for k, v := range map[string]string{
		"PORT": "8081", "KMS_REGION": "eu-central-1", "KMS_ACCOUNT_ID": "111122223333", "KMS_DATA_PATH": t.TempDir(),
		"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
	} {
		t.Setenv(k, v)
	}
	const endpoint = "http://127.0.0.1:8081"
	server := exec.CommandContext(t.Context(), program)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Wait() })
	peertest.Await(t, endpoint)

	c, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("eu-central-1"))
	if err != nil {
		t.Fatal(err)
	}
	admin := kms.NewFromConfig(c, func(o *kms.Options) { o.BaseEndpoint = aws.String(endpoint) })
	newKey := func() *awskms.Key {
		t.Helper()
		made, err := admin.CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}
		k, err := awskms.New(t.Context(), *made.KeyMetadata.Arn, endpoint, nil)
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
		arn := key.Name()
		if _, err := admin.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &arn, PendingWindowInDays: aws.Int32(7)}); err != nil {
			t.Fatal(err)
		}
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
		_ = server.Process.Kill()
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
