// Package vault holds the workspace's keys and credentials.
//
// Laws, each with a test:
//
//  1. Nothing can be read back: no method returns a credential or a key, and no
//     type of this package can be printed.
//  2. A sealed value opens only where it was sealed for: workspace, table, column,
//     row and record version are authenticated with it.
//  3. A run's values are sealed under a key of that run, so that deleting the
//     wrapped key erases them, in backups too.
//
// It knows keys, sealing and which credential belongs to which origin. It must not
// know why something is sealed or sent.
package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
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
	aead tink.AEAD
	mac  tink.MAC
	prf  *prf.Set
	note Secret // signing key of checkpoints, in note's own encoding
	vkey string // and its public half
}

// keysetFile is the file's form. Each field is a Tink keyset or, for checkpoints,
// a key of x/mod/sumdb/note. The file's protection is its mode, 0600, and where it
// lies; an operator with a KMS wraps it (not in this version).
type keysetFile struct {
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

// OpenKeyset reads the keyset at path, or makes one if there is none. It refuses a
// file that others can read and one of another workspace.
func OpenKeyset(path string, ws host.Workspace) (*Keyset, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if b, err = newKeysetFile(ws); err == nil {
			err = writeOnce(path, b)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w", path, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("keyset %s is readable by others (mode %04o): chmod 600 it, and if others could have read it, start with a new workspace", path, st.Mode().Perm())
	}
	return parseKeyset(b, ws)
}

func newKeysetFile(ws host.Workspace) ([]byte, error) {
	f := keysetFile{Version: 1, Workspace: string(ws)}
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

// writeOnce creates the file durably and never overwrites one.
func writeOnce(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if d, e := os.Open(filepath.Dir(path)); e == nil {
		err = errors.Join(err, d.Sync(), d.Close())
	}
	return err
}

func parseKeyset(b []byte, ws host.Workspace) (*Keyset, error) {
	var f keysetFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("keyset: version %d is not known to this binary", f.Version)
	}
	if f.Workspace != string(ws) {
		return nil, fmt.Errorf("keyset: it belongs to workspace %q, not %q", f.Workspace, ws)
	}
	var err error
	open := func(raw json.RawMessage) *keyset.Handle {
		h, e := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(raw)))
		err = errors.Join(err, e)
		return h
	}
	ah, mh, ph := open(f.AEAD), open(f.MAC), open(f.PRF)
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	k := &Keyset{ws: ws, note: NewSecret(f.Signer), vkey: f.Verifier}
	var e1, e2, e3 error
	k.aead, e1 = aead.New(ah)
	k.mac, e2 = mac.New(mh)
	k.prf, e3 = prf.NewPRFSet(ph)
	if err := errors.Join(e1, e2, e3); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if _, err := note.NewSigner(f.Signer); err != nil {
		return nil, fmt.Errorf("keyset: checkpoint signer: %w", err)
	}
	return k, nil
}

// Slot says where a sealed value lives: the table, the column, the row's key and
// the version of the record's form.
type Slot struct {
	Table, Column, Row string
	Version            int
}

func (s Slot) aad(ws host.Workspace) []byte {
	return fmt.Appendf(nil, "monroe/1|%q|%q|%q|%q|%d", ws, s.Table, s.Column, s.Row, s.Version)
}

// Seal encrypts a value of the workspace for one slot.
func (k *Keyset) Seal(s Slot, plain []byte) ([]byte, error) {
	return k.aead.Encrypt(plain, s.aad(k.ws))
}

// Open decrypts what Seal made for the same slot.
func (k *Keyset) Open(s Slot, sealed []byte) ([]byte, error) {
	b, err := k.aead.Decrypt(sealed, s.aad(k.ws))
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

// RunKey seals the values of one run.
type RunKey struct {
	set  *Keyset
	run  host.RunID
	aead tink.AEAD
}

const runKeySize = 32

// NewRunKey makes a run's key. wrapped is what to store.
func (k *Keyset) NewRunKey(run host.RunID) (key *RunKey, wrapped []byte, err error) {
	dek := random.GetRandomBytes(runKeySize)
	if wrapped, err = k.Seal(Slot{"run", "key", string(run), 1}, dek); err != nil {
		return nil, nil, err
	}
	key, err = k.runKey(run, dek)
	return key, wrapped, err
}

// OpenRunKey unwraps a stored key.
func (k *Keyset) OpenRunKey(run host.RunID, wrapped []byte) (*RunKey, error) {
	dek, err := k.Open(Slot{"run", "key", string(run), 1}, wrapped)
	if err != nil {
		return nil, err
	}
	return k.runKey(run, dek)
}

func (k *Keyset) runKey(run host.RunID, dek []byte) (*RunKey, error) {
	if len(dek) != runKeySize {
		return nil, fmt.Errorf("%w: a run key of %d bytes", ErrOpen, len(dek))
	}
	a, err := subtle.NewAESGCM(dek)
	if err != nil {
		return nil, err
	}
	return &RunKey{k, run, a}, nil
}

// Seal encrypts a value of the run for one slot.
func (k *RunKey) Seal(s Slot, plain []byte) ([]byte, error) {
	return k.aead.Encrypt(plain, k.aad(s))
}

// Open decrypts what Seal made for the same slot.
func (k *RunKey) Open(s Slot, sealed []byte) ([]byte, error) {
	b, err := k.aead.Decrypt(sealed, k.aad(s))
	if err != nil {
		return nil, fmt.Errorf("%w: %s.%s of %s", ErrOpen, s.Table, s.Column, k.run)
	}
	return b, nil
}

// BlobID is a keyed hash of a plain text under the workspace's key: it names a file
// and tells nothing of what is in it.
func (k *RunKey) BlobID(plain []byte) ([]byte, error) {
	sum := sha256.Sum256(plain)
	return k.set.MAC("blob/1", sum[:])
}

func (k *RunKey) aad(s Slot) []byte {
	return append(s.aad(k.set.ws), "|"+string(k.run)...)
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
