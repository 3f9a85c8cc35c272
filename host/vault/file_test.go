package vault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/vaulttest"
)

var here = vault.Slot{Table: "kv", Column: "value", Row: "1", Version: 1}

func sealedBy(t *testing.T, path string, ws host.Workspace, kek vault.KEK) *vault.Keyset {
	t.Helper()
	k, err := vault.OpenKeysetWith(t.Context(), path, ws, kek, 0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestASealedFileShowsNoKeyAndOpensByItsKEKAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	one, two := &vaulttest.KEK{ID: "one"}, &vaulttest.KEK{ID: "two"}
	k := sealedBy(t, path, "acme", one)
	sealed, err := k.Seal(here, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil || bytes.Contains(good, []byte("keyData")) || bytes.Contains(good, []byte("PRIVATE")) {
		t.Fatalf("%s, %v", good, err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	if got, err := sealedBy(t, path, "acme", one).Open(here, sealed); err != nil || string(got) != "x" {
		t.Error(err)
	}
	for what, kek := range map[string]vault.KEK{"none": nil, "another": two} {
		if _, err := vault.OpenKeysetWith(t.Context(), path, "acme", kek, 0); err == nil || !strings.Contains(err.Error(), "--rewrap-keys") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := vault.OpenKeysetWith(t.Context(), path, "evil", one, 0); err == nil {
		t.Error("another workspace opened it")
	}
	// As somebody with the file would try: another name in it, another service, a changed byte.
	for what, text := range map[string]string{
		"another workspace": strings.Replace(string(good), `"workspace":"acme"`, `"workspace":"evil"`, 1),
		"another version":   strings.Replace(string(good), `"version":2`, `"version":3`, 1),
		"no longer sealed":  strings.Replace(string(good), `"version":2`, `"version":1`, 1),
	} {
		_ = os.WriteFile(path, []byte(text), 0o600)
		for _, ws := range []host.Workspace{"acme", "evil"} {
			for _, kek := range []vault.KEK{one, nil} {
				if _, err := vault.OpenKeysetWith(t.Context(), path, ws, kek, 0); err == nil {
					t.Errorf("%s as %s: opened", what, ws)
				}
			}
		}
	}
	var form map[string]any
	if err := json.Unmarshal(good, &form); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"wrapped_key", "sealed"} {
		text := []byte(form[field].(string))
		for i := 0; i < len(text); i += 7 {
			flipped := bytes.Clone(text)
			if flipped[i] == 'A' {
				flipped[i] = 'B'
			} else {
				flipped[i] = 'A'
			}
			if bytes.Equal(flipped, text) {
				continue
			}
			_ = os.WriteFile(path, bytes.Replace(good, text, flipped, 1), 0o600)
			if _, err := vault.OpenKeysetWith(t.Context(), path, "acme", one, 0); err == nil {
				t.Errorf("%s: character %d was changed and it opens", field, i)
			}
		}
	}
}

func TestAStartWithoutTheKeyServiceIsRefusedAndChangesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keyset.json")
	kek := &vaulttest.KEK{ID: "one"}
	kek.Away.Store(true)
	if _, err := vault.OpenKeysetWith(t.Context(), path, "acme", kek, 0); !errors.Is(err, vault.ErrKEK) || !errors.Is(err, vaulttest.ErrAway) {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("files %v", list)
	}
	kek.Away.Store(false)
	sealedBy(t, path, "acme", kek)
	before, _ := os.ReadFile(path)
	kek.Away.Store(true)
	if _, err := vault.OpenKeysetWith(t.Context(), path, "acme", kek, 0); !errors.Is(err, vault.ErrKEK) || !strings.Contains(err.Error(), "one") {
		t.Error(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, before) {
		t.Error("the file was changed")
	}
}

// Law 4.
func TestWhatOlderKeysSealedOpensAfterRotations(t *testing.T) {
	for name, kek := range map[string]vault.KEK{"clear text": nil, "key service": &vaulttest.KEK{ID: "one"}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "keyset.json")
			k := sealedBy(t, path, "acme", kek)
			tag, _ := k.MAC("p", []byte("d"))
			idem, _ := k.IdempotencyKey("run_1", 1, "o")
			_, wrapped, err := k.NewRunKey("run_1")
			if err != nil {
				t.Fatal(err)
			}
			var all [][]byte
			prefixes := map[string]bool{}
			for i := range 4 {
				sealed, err := k.Seal(here, []byte{byte(i)})
				if err != nil || !bytes.HasPrefix(sealed, k.Prefix()) {
					t.Fatalf("%x does not begin with %x: %v", sealed[:5], k.Prefix(), err)
				}
				all, prefixes[string(k.Prefix())] = append(all, sealed), true
				if err := k.Rotate(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if len(prefixes) != 4 || k.Keys() != 5 {
				t.Errorf("%d primaries, %d keys", len(prefixes), k.Keys())
			}
			for _, x := range []*vault.Keyset{k, sealedBy(t, path, "acme", kek)} {
				for i, sealed := range all {
					if got, err := x.Open(here, sealed); err != nil || got[0] != byte(i) {
						t.Errorf("value %d: %v", i, err)
					}
				}
				if again, _ := x.IdempotencyKey("run_1", 1, "o"); !x.VerifyMAC("p", []byte("d"), tag) || again != idem {
					t.Error("a name changed with the keys")
				}
				fresh, err := x.RewrapRunKey("run_1", wrapped)
				if err != nil || !bytes.HasPrefix(fresh, x.Prefix()) {
					t.Fatal(err)
				}
				if _, err := x.OpenRunKey("run_1", fresh); err != nil {
					t.Error(err)
				}
				if _, err := x.RewrapRunKey("run_2", wrapped); !errors.Is(err, vault.ErrOpen) {
					t.Errorf("another run's key was wrapped anew: %v", err)
				}
			}
			if list, _ := os.ReadDir(dir); len(list) != 1 {
				t.Errorf("files %v", list)
			}
			if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
				t.Error(st.Mode())
			}
		})
	}
}

func TestARotationThatFailsChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	kek := &vaulttest.KEK{ID: "one"}
	k := sealedBy(t, path, "acme", kek)
	before, _ := os.ReadFile(path)
	prefix := k.Prefix()
	kek.Away.Store(true)
	if err := k.Rotate(t.Context()); !errors.Is(err, vault.ErrKEK) {
		t.Error(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, before) || !bytes.Equal(k.Prefix(), prefix) {
		t.Error("something changed")
	}
}

// While values are sealed and opened, and twice at the same time.
func TestRotationsDoNotDisturbWhoSeals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	k := sealedBy(t, path, "acme", nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := k.Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for i := range 200 {
				b, err := k.Seal(here, fmt.Append(nil, i))
				if err != nil {
					t.Error(err)
				}
				if _, err := k.Open(here, b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if again := sealedBy(t, path, "acme", nil); k.Keys() != 5 || again.Keys() != 5 {
		t.Errorf("%d keys in memory, %d in the file", k.Keys(), again.Keys())
	}
}

func TestAKeysetIsUsedForABoundedTimeAfterItsKEKLastAnswered(t *testing.T) {
	kek := &vaulttest.KEK{ID: "one"}
	k, err := vault.OpenKeysetWith(t.Context(), filepath.Join(t.TempDir(), "k"), "acme", kek, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	at := func(m int) time.Time { return start.Add(time.Duration(m) * time.Minute) }
	k.Confirm(t.Context(), at(0))
	asked := kek.Asked.Load()
	for m := range 15 {
		k.Confirm(t.Context(), at(m))
	}
	if kek.Asked.Load() != asked {
		t.Error("it is asked too often")
	}
	if k.Confirm(t.Context(), at(15)) || kek.Asked.Load() != asked+1 {
		t.Error("it is not asked, or nothing changed and it says so")
	}
	kek.Away.Store(true)
	if !k.Confirm(t.Context(), at(30)) || k.Stale(at(30)) != nil {
		t.Error("within the time it is used")
	}
	if k.Confirm(t.Context(), at(31)) || k.Stale(at(75)) != nil || k.Stale(at(76)) == nil {
		t.Error("the time is counted from the last answer, at 15")
	}
	k.Confirm(t.Context(), at(80))
	if err := k.Stale(at(80)); !errors.Is(err, vault.ErrKEK) || !errors.Is(err, vaulttest.ErrAway) {
		t.Error(err)
	}
	if _, err := k.Seal(here, []byte("x")); err != nil {
		t.Error("what is under way can no longer be recorded:", err)
	}
	kek.Away.Store(false)
	if !k.Confirm(t.Context(), at(81)) || k.Stale(at(81)) != nil {
		t.Error("it goes on when the service answers again")
	}
}
