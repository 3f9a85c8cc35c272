// Package vault holds the workspace's keys and credentials.
//
// Laws, each with a test:
//
//  1. Nothing can be read back: no method returns a credential or a key, and no
//     type of this package can be printed.
//  2. A sealed value opens only where it was sealed for: workspace, table, column,
//     row and record version are authenticated with it.
//  3. A run's values are sealed under a key of that run, so that deleting the
//     wrapped key erases them, in every copy that has not the wrapped key.
//  4. What an earlier key of the set sealed opens after a rotation, and the file is
//     replaced as a whole or not at all.
//
// It knows keys, sealing and which credential belongs to which origin. It must not
// know why something is sealed or sent.
package vault

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	"github.com/tink-crypto/tink-go/v2/prf"
	"github.com/tink-crypto/tink-go/v2/subtle/random"
	"github.com/tink-crypto/tink-go/v2/tink"
	"golang.org/x/mod/sumdb/note"

	"github.com/getmonroe/monroe/host"
)

// Keyset is the workspace's own keys. It is safe for concurrent use.
type Keyset struct {
	ws   host.Workspace
	file *keysetFile // where it lies, and how that is sealed
	seal *atomic.Pointer[sealing]
	mac  tink.MAC
	prf  *prf.Set
	note Secret // signing key of checkpoints, in note's own encoding
	vkey string // and its public half
}

// sealing is what rotation replaces.
type sealing struct {
	aead   tink.AEAD
	prefix []byte // of what the primary key seals
	keys   int
}

// keysetText is the clear form. Each field is a Tink keyset or, for checkpoints, a key
// of x/mod/sumdb/note.
type keysetText struct {
	Version   int             `json:"version"`
	Workspace string          `json:"workspace"`
	AEAD      json.RawMessage `json:"aead"`
	MAC       json.RawMessage `json:"mac"`
	PRF       json.RawMessage `json:"prf"`
	Signer    string          `json:"checkpoint_signer"`
	Verifier  string          `json:"checkpoint_verifier"`
}

// ErrOpen is what every failed opening returns: a wrong row, a wrong key and a
// flipped bit look alike.
var ErrOpen = errors.New("vault: a sealed value does not open")

// OpenKeyset reads the keyset at path, in clear text, or makes one if there is none. It
// refuses a file that others can read and one of another workspace.
func OpenKeyset(path string, ws host.Workspace) (*Keyset, error) {
	return OpenKeysetWith(context.Background(), path, ws, nil, 0)
}

func newKeysetText(ws host.Workspace) ([]byte, error) {
	f := keysetText{Version: 1, Workspace: string(ws)}
	var err error
	clear := func(h *keyset.Handle, e error) json.RawMessage {
		var b bytes.Buffer
		if err = errors.Join(err, e); err == nil {
			err = insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b))
		}
		return b.Bytes()
	}
	f.AEAD = clear(keyset.NewHandle(aead.AES256GCMKeyTemplate()))
	f.MAC = clear(keyset.NewHandle(mac.HMACSHA256Tag256KeyTemplate()))
	f.PRF = clear(keyset.NewHandle(prf.HMACSHA256PRFKeyTemplate()))
	var e error
	f.Signer, f.Verifier, e = note.GenerateKey(nil, "monroe/"+string(ws))
	if err = errors.Join(err, e); err != nil {
		return nil, err
	}
	return json.Marshal(f)
}

// handle reads one clear keyset.
func handle(raw json.RawMessage) (*keyset.Handle, error) {
	return insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(raw)))
}

func parseKeyset(b []byte, ws host.Workspace) (*Keyset, error) {
	var f keysetText
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("keyset: version %d is not known to this binary", f.Version)
	}
	if f.Workspace != string(ws) {
		return nil, fmt.Errorf("keyset: it belongs to workspace %q, not %q", f.Workspace, ws)
	}
	mh, e1 := handle(f.MAC)
	ph, e2 := handle(f.PRF)
	if err := errors.Join(e1, e2); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	k := &Keyset{ws: ws, seal: &atomic.Pointer[sealing]{}, note: NewSecret(f.Signer), vkey: f.Verifier}
	k.mac, e1 = mac.New(mh)
	k.prf, e2 = prf.NewPRFSet(ph)
	if err := errors.Join(e1, e2, k.use(f.AEAD)); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if _, err := note.NewSigner(f.Signer); err != nil {
		return nil, fmt.Errorf("keyset: checkpoint signer: %w", err)
	}
	return k, nil
}

// use puts a set of sealing keys in force.
func (k *Keyset) use(raw json.RawMessage) error {
	h, err := handle(raw)
	if err != nil {
		return err
	}
	a, err := aead.New(h)
	if err != nil {
		return err
	}
	info := h.KeysetInfo()
	prefix := binary.BigEndian.AppendUint32([]byte{1}, info.GetPrimaryKeyId()) // of Tink's wire format
	k.seal.Store(&sealing{aead: a, prefix: prefix, keys: len(info.GetKeyInfo())})
	return nil
}

// Slot says where a sealed value lives: the table, the column, the row's key and
// the version of the record's form.
type Slot struct {
	Table, Column, Row string
	Version            int
}

func (s Slot) aad(b []byte, ws host.Workspace) []byte {
	b = append(b, "monroe/1"...)
	for _, part := range []string{string(ws), s.Table, s.Column, s.Row} {
		b = strconv.AppendQuote(append(b, '|'), part)
	}
	return strconv.AppendInt(append(b, '|'), int64(s.Version), 10)
}

// Seal encrypts a value of the workspace for one slot.
func (k *Keyset) Seal(s Slot, plain []byte) ([]byte, error) {
	return k.seal.Load().aead.Encrypt(plain, s.aad(nil, k.ws))
}

// Open decrypts what Seal made for the same slot.
func (k *Keyset) Open(s Slot, sealed []byte) ([]byte, error) {
	b, err := k.seal.Load().aead.Decrypt(sealed, s.aad(nil, k.ws))
	if err != nil {
		return nil, fmt.Errorf("%w: %s.%s", ErrOpen, s.Table, s.Column)
	}
	return b, nil
}

// MAC authenticates data under a purpose; the two are unambiguous together.
func (k *Keyset) MAC(purpose string, data []byte) ([]byte, error) {
	return k.mac.ComputeMAC(domain(purpose, data))
}

// VerifyMAC reports whether tag is that of MAC for the same purpose and data.
func (k *Keyset) VerifyMAC(purpose string, data, tag []byte) bool {
	return k.mac.VerifyMAC(tag, domain(purpose, data)) == nil
}

// IdempotencyKey is 32 hexadecimal digits that are the same for every attempt of
// a call and cannot be guessed from outside.
func (k *Keyset) IdempotencyKey(run host.RunID, call uint32, operation string) (string, error) {
	b, err := k.prf.ComputePrimaryPRF(domain("idempotency", fmt.Appendf(nil, "%s|%d|%s", run, call, operation)), 16)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", b), nil
}

func domain(purpose string, data []byte) []byte {
	return append(fmt.Appendf(nil, "monroe/%d/%s|", len(purpose), purpose), data...)
}

// Signer signs checkpoints of the audit log.
func (k *Keyset) Signer() (note.Signer, error) { return note.NewSigner(*k.note.value) }

// Verifier is the public key of Signer, in note's encoding: public.
func (k *Keyset) Verifier() string { return k.vkey }

// RunKey seals the values of one run: AES-256-GCM with a random nonce in front, as
// Tink has it where nothing precedes the nonce.
type RunKey struct {
	set  *Keyset
	run  host.RunID
	aead cipher.AEAD
}

// Scratch is memory that many openings share, one after the other.
type Scratch struct{ aad, plain []byte }

const runKeySize = 32

func runKeySlot(run host.RunID) Slot { return Slot{"run", "key", string(run), 1} }

// NewRunKey makes a run's key. wrapped is what to store.
func (k *Keyset) NewRunKey(run host.RunID) (key *RunKey, wrapped []byte, err error) {
	dek := random.GetRandomBytes(runKeySize)
	if wrapped, err = k.Seal(runKeySlot(run), dek); err != nil {
		return nil, nil, err
	}
	key, err = k.runKey(run, dek)
	return key, wrapped, err
}

// OpenRunKey unwraps a stored key.
func (k *Keyset) OpenRunKey(run host.RunID, wrapped []byte) (*RunKey, error) {
	dek, err := k.Open(runKeySlot(run), wrapped)
	if err != nil {
		return nil, err
	}
	return k.runKey(run, dek)
}

func (k *Keyset) runKey(run host.RunID, dek []byte) (*RunKey, error) {
	if len(dek) != runKeySize {
		return nil, fmt.Errorf("%w: a run key of %d bytes", ErrOpen, len(dek))
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &RunKey{k, run, a}, nil
}

// Seal encrypts a value of the run for one slot.
func (k *RunKey) Seal(s Slot, plain []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plain, k.aad(nil, s)), nil
}

// Open decrypts what Seal made for the same slot.
func (k *RunKey) Open(s Slot, sealed []byte) ([]byte, error) { return k.OpenIn(&Scratch{}, s, sealed) }

// OpenIn is Open in memory that is used again: the next opening in it overwrites the
// value.
func (k *RunKey) OpenIn(m *Scratch, s Slot, sealed []byte) (plain []byte, err error) {
	m.aad = k.aad(m.aad[:0], s)
	if plain, err = k.aead.Open(m.plain[:0], nil, sealed, m.aad); err != nil {
		return nil, fmt.Errorf("%w: %s.%s of %s", ErrOpen, s.Table, s.Column, k.run)
	}
	m.plain = plain
	return plain, nil
}

// BlobID is a keyed hash of a plain text under the workspace's key: it names a file
// and tells nothing of what is in it.
func (k *RunKey) BlobID(plain []byte) ([]byte, error) {
	sum := sha256.Sum256(plain)
	return k.set.MAC("blob/1", sum[:])
}

func (k *RunKey) aad(b []byte, s Slot) []byte {
	return append(append(s.aad(b, k.set.ws), '|'), k.run...)
}

// The types of this package cannot be printed: by no verb, a wrong one included,
// and neither when they were copied.

// String names the workspace and shows no key.
func (k Keyset) String() string { return "vault.Keyset(" + string(k.ws) + ")" }

// Format is String for every verb.
func (k Keyset) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// String names the run and shows no key.
func (k RunKey) String() string { return "vault.RunKey(" + string(k.run) + ")" }

// Format is String for every verb.
func (k RunKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }
