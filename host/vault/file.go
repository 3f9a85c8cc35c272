package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/subtle/random"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/durable"
)

// KEK is a key outside of this machine that wraps the key of the keyset file.
type KEK interface {
	// Name identifies it, in the file too.
	Name() string
	// Wrap encrypts a key for one workspace.
	Wrap(ctx context.Context, ws host.Workspace, key []byte) ([]byte, error)
	// Unwrap decrypts what Wrap made, for the same workspace alone.
	Unwrap(ctx context.Context, ws host.Workspace, wrapped []byte) ([]byte, error)
}

// DefaultCache is how long a keyset is used after its KEK last answered.
const DefaultCache = time.Hour

// kekTime bounds one question to a KEK.
const kekTime = 15 * time.Second

// keysetFile is where a keyset lies. In clear text it is protected by its mode, 0600,
// and where it lies; with a KEK it is sealed under a key that only the KEK opens.
type keysetFile struct {
	path  string
	kek   KEK
	cache time.Duration

	turn sync.Mutex // one rotation at a time

	mu      sync.Mutex
	wrapped []byte // the key of the file, as the KEK wrapped it
	asked   time.Time
	known   time.Time // when the KEK last answered
	failure error     // why it did not, since then
}

// sealedFile is the form of a file with a KEK.
type sealedFile struct {
	Version   int    `json:"version"` // 2
	Workspace string `json:"workspace"`
	KEK       string `json:"kek"`
	Key       []byte `json:"wrapped_key"`
	Sealed    []byte `json:"sealed"`
}

func (f *sealedFile) aad() []byte {
	return fmt.Appendf(nil, "monroe/keyset/%d|%q|%q", f.Version, f.Workspace, f.KEK)
}

// ErrKEK is wrapped where the KEK did not answer, or refused.
var ErrKEK = errors.New("the key service does not open the keyset")

// OpenKeysetWith is OpenKeyset for a file that kek seals; a nil kek is for one in clear
// text. A file that is sealed otherwise is refused (see RewrapFile). cache is how long
// the keyset may be used after the KEK last answered, 0 means DefaultCache.
func OpenKeysetWith(ctx context.Context, path string, ws host.Workspace, kek KEK, cache time.Duration) (*Keyset, error) {
	if cache == 0 {
		cache = DefaultCache
	}
	f := &keysetFile{path: path, kek: kek, cache: cache}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		var text []byte
		if text, err = newKeysetText(ws); err == nil {
			if b, err = f.form(ctx, ws, text); err == nil {
				err = durable.Create(path, b, filepath.Dir(path), temporary)
			}
		}
	} else if err == nil { // a start that was cut off may have made it: nothing is sealed before its name is durable
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w", path, err)
	}
	text, err := f.read(ctx, b, ws)
	if err != nil {
		return nil, err
	}
	k, err := parseKeyset(text, ws)
	if err != nil {
		return nil, err
	}
	k.file = f
	return k, nil
}

// read checks the file and opens it.
func (f *keysetFile) read(ctx context.Context, b []byte, ws host.Workspace) ([]byte, error) {
	st, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("keyset %s is readable by others (mode %04o): chmod 600 it, and if others could have read it, start with a new workspace", f.path, st.Mode().Perm())
	}
	s, err := parseSealed(b, ws)
	if err != nil {
		return nil, err
	}
	want := ""
	if f.kek != nil {
		want = f.kek.Name()
	}
	if s.KEK != want {
		return nil, fmt.Errorf("keyset %s is sealed by %s, and the operator names %s: monroed --rewrap-keys changes the file", f.path, named(s.KEK), named(want))
	}
	if f.kek == nil {
		return b, nil
	}
	text, err := f.open(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w", f.path, err)
	}
	return text, nil
}

func named(kek string) string {
	if kek == "" {
		return "no key service (clear text)"
	}
	return kek
}

// parseSealed reads how a file is sealed. One in clear text has no KEK.
func parseSealed(b []byte, ws host.Workspace) (*sealedFile, error) {
	var s sealedFile
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	if s.Version == 1 {
		return &sealedFile{}, nil
	}
	if s.Version != 2 || s.KEK == "" {
		return nil, fmt.Errorf("keyset: version %d is not known to this binary", s.Version)
	}
	if s.Workspace != string(ws) {
		return nil, fmt.Errorf("keyset: it belongs to workspace %q, not %q", s.Workspace, ws)
	}
	return &s, nil
}

func (f *keysetFile) open(ctx context.Context, s *sealedFile) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, kekTime)
	defer cancel()
	key, err := f.kek.Unwrap(ctx, host.Workspace(s.Workspace), s.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKEK, f.kek.Name(), err)
	}
	a, err := subtle.NewAESGCM(key)
	if err != nil {
		return nil, ErrOpen
	}
	text, err := a.Decrypt(s.Sealed, s.aad())
	if err != nil {
		return nil, fmt.Errorf("%w: the keyset file was changed", ErrOpen)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrapped = s.Key
	return text, nil
}

// form makes the bytes of the file.
func (f *keysetFile) form(ctx context.Context, ws host.Workspace, text []byte) ([]byte, error) {
	if f.kek == nil {
		return text, nil
	}
	ctx, cancel := context.WithTimeout(ctx, kekTime)
	defer cancel()
	key := random.GetRandomBytes(runKeySize)
	s := sealedFile{Version: 2, Workspace: string(ws), KEK: f.kek.Name()}
	var err error
	if s.Key, err = f.kek.Wrap(ctx, ws, key); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKEK, f.kek.Name(), err)
	}
	a, err := subtle.NewAESGCM(key)
	if err != nil {
		return nil, err
	}
	if s.Sealed, err = a.Encrypt(text, s.aad()); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// temporary is the pattern of the name that a keyset file has before it is whole.
const temporary = ".keyset-*"

// replace puts new bytes in the file's place: whoever reads it meanwhile gets the old
// ones or the new ones.
func replace(path string, b []byte) error {
	return durable.Replace(path, b, filepath.Dir(path), temporary)
}

// RewrapFile seals the keyset file by another KEK. Nothing that the keyset sealed
// changes. A nil one stands for clear text. Nobody else may use the workspace meanwhile.
func RewrapFile(ctx context.Context, path string, ws host.Workspace, from, to KEK) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	old := &keysetFile{path: path, kek: from}
	text, err := old.read(ctx, b, ws)
	if err != nil {
		return err
	}
	if _, err := parseKeyset(text, ws); err != nil {
		return err
	}
	if b, err = (&keysetFile{path: path, kek: to}).form(ctx, ws, text); err != nil {
		return err
	}
	return replace(path, b)
}

// SealedBy is the name of the KEK that a keyset file is sealed by, empty for clear text.
func SealedBy(path string, ws host.Workspace) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("keyset: %w", err)
	}
	s, err := parseSealed(b, ws)
	if err != nil {
		return "", err
	}
	return s.KEK, nil
}

// Rotate adds a new sealing key to the set and makes it the one that seals. What older
// ones sealed opens as before. The file is replaced before the new key is used.
//
// The keys of MACs, idempotency and checkpoints stay: they name things that are looked
// up again, such as a key of a skill's memory, and seal nothing.
func (k *Keyset) Rotate(ctx context.Context) error {
	f := k.file
	f.turn.Lock()
	defer f.turn.Unlock()
	b, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	text, err := f.read(ctx, b, k.ws)
	if err != nil {
		return err
	}
	var t keysetText
	if err := json.Unmarshal(text, &t); err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	if t.AEAD, err = withNewKey(t.AEAD); err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	if text, err = json.Marshal(t); err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	if b, err = f.form(ctx, k.ws, text); err != nil {
		return err
	}
	if err := replace(f.path, b); err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	return k.use(t.AEAD)
}

func withNewKey(raw json.RawMessage) (json.RawMessage, error) {
	h, err := handle(raw)
	if err != nil {
		return nil, err
	}
	m := keyset.NewManagerFromHandle(h)
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	if h, err = m.Handle(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b))
	return b.Bytes(), err
}

// Prefix is what everything begins with that the primary key seals.
func (k *Keyset) Prefix() []byte { return bytes.Clone(k.seal.Load().prefix) }

// Keys is how many sealing keys the set has.
func (k *Keyset) Keys() int { return k.seal.Load().keys }

// KEK names what seals the keyset's file, empty for clear text.
func (k *Keyset) KEK() string {
	if k.file.kek == nil {
		return ""
	}
	return k.file.kek.Name()
}

// Rewrap seals a value of the workspace anew, for the same slot, under the primary key.
func (k *Keyset) Rewrap(s Slot, sealed []byte) ([]byte, error) {
	plain, err := k.Open(s, sealed)
	if err != nil {
		return nil, err
	}
	return k.Seal(s, plain)
}

// RewrapRunKey wraps a run's key anew under the primary key.
func (k *Keyset) RewrapRunKey(run host.RunID, wrapped []byte) ([]byte, error) {
	return k.Rewrap(runKeySlot(run), wrapped)
}

// Confirm asks the KEK whether it still opens the keyset, if that was long enough ago
// (a quarter of the cache's time, or a minute after a failure). It reports whether the
// answer is another one than before. The clock is the caller's.
func (k *Keyset) Confirm(ctx context.Context, now time.Time) (changed bool) {
	f := k.file
	if f.kek == nil {
		return false
	}
	f.mu.Lock()
	if f.known.IsZero() { // it was opened a moment ago
		f.known, f.asked = now, now
	}
	wait := f.cache / 4
	if f.failure != nil {
		wait = min(wait, time.Minute)
	}
	due, wrapped, before := now.Sub(f.asked) >= wait, f.wrapped, f.failure
	if due {
		f.asked = now
	}
	f.mu.Unlock()
	if !due {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, kekTime)
	defer cancel()
	_, err := f.kek.Unwrap(ctx, k.ws, wrapped)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure = err; err == nil {
		f.known = now
	}
	return (err == nil) != (before == nil)
}

// Stale says why nothing new may be done with the keyset: its KEK has not answered for
// longer than the cache's time. What is under way is still recorded.
func (k *Keyset) Stale(now time.Time) error {
	f := k.file
	if f.kek == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known.IsZero() || now.Sub(f.known) <= f.cache {
		return nil
	}
	return fmt.Errorf("%w since %s: %s: %w", ErrKEK, f.known.UTC().Format(time.RFC3339), f.kek.Name(), f.failure)
}
