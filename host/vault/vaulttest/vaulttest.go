// Package vaulttest has a key service that lives in memory, for tests.
package vaulttest

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/getmonroe/monroe/host"
)

// KEK is a key service that can be away. Its key is made of its name.
type KEK struct {
	ID    string
	Away  atomic.Bool
	Asked atomic.Int64
}

// ErrAway is what it answers when it is away.
var ErrAway = errors.New("away")

// Name implements vault.KEK.
func (k *KEK) Name() string { return k.ID }

// Wrap implements vault.KEK.
func (k *KEK) Wrap(_ context.Context, ws host.Workspace, key []byte) ([]byte, error) {
	a, err := k.begin()
	if err != nil {
		return nil, err
	}
	return a.Encrypt(key, []byte(ws))
}

// Unwrap implements vault.KEK.
func (k *KEK) Unwrap(_ context.Context, ws host.Workspace, wrapped []byte) ([]byte, error) {
	a, err := k.begin()
	if err != nil {
		return nil, err
	}
	return a.Decrypt(wrapped, []byte(ws))
}

func (k *KEK) begin() (*subtle.AESGCM, error) {
	k.Asked.Add(1)
	if k.Away.Load() {
		return nil, ErrAway
	}
	return subtle.NewAESGCM(append([]byte(k.ID), bytes.Repeat([]byte{0}, 32)...)[:32])
}
