package vault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/vault"
)

func keys(t *testing.T, ws host.Workspace) (*vault.Keyset, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keyset.json")
	k, err := vault.OpenKeyset(path, ws)
	if err != nil {
		t.Fatal(err)
	}
	return k, path
}

// Law 2.
func TestASealedValueOpensOnlyWhereItWasSealedFor(t *testing.T) {
	k, path := keys(t, "acme")
	slot := vault.Slot{Table: "kv", Column: "value", Row: "triage/01", Version: 1}
	plain := []byte("the plain text")
	sealed, err := k.Seal(slot, plain)
	if err != nil {
		t.Fatal(err)
	}
	again, err := vault.OpenKeyset(path, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Open(slot, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%q, %v", got, err)
	}
	if bytes.Contains(sealed, plain) {
		t.Error("it was not sealed")
	}
	fails := func(what string, k *vault.Keyset, s vault.Slot, b []byte) {
		t.Helper()
		if got, err := k.Open(s, b); !errors.Is(err, vault.ErrOpen) || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		} else if strings.Contains(err.Error(), "triage") {
			t.Errorf("%s: the error tells the row: %v", what, err)
		}
	}
	for what, change := range map[string]func(*vault.Slot){
		"table": func(s *vault.Slot) { s.Table = "kw" }, "column": func(s *vault.Slot) { s.Column = "label" }, "row": func(s *vault.Slot) { s.Row += "0" },
		"version": func(s *vault.Slot) { s.Version++ }, "no row": func(s *vault.Slot) { s.Row = "" },
		"moved boundary": func(s *vault.Slot) { s.Table, s.Column = `kv"|"value`, "" },
	} {
		s := slot
		change(&s)
		fails(what, k, s, sealed)
	}
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 1 << (i % 8)
		fails(fmt.Sprint("flipped byte ", i), k, slot, b)
		fails("cut off", k, slot, sealed[:i])
	}
	// The same keys in another workspace.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved.json")
	if err := os.WriteFile(moved, bytes.Replace(text, []byte(`"workspace":"acme"`), []byte(`"workspace":"evil"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	evil, err := vault.OpenKeyset(moved, "evil")
	if err != nil {
		t.Fatal(err)
	}
	fails("another workspace", evil, slot, sealed)
	other, _ := keys(t, "acme")
	fails("other keys", other, slot, sealed)
}

// Law 3.
func TestARunsValuesOpenWithThatRunsKeyOnly(t *testing.T) {
	k, _ := keys(t, "acme")
	slot := vault.Slot{Table: "journal", Column: "body", Row: "run_1/1", Version: 1}
	one, wrapped, err := k.NewRunKey("run_1")
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := k.NewRunKey("run_2")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := one.Seal(slot, []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	back, err := k.OpenRunKey("run_1", wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := back.Open(slot, sealed); err != nil || string(got) != "plain" {
		t.Fatal(got, err)
	}
	if _, err := two.Open(slot, sealed); !errors.Is(err, vault.ErrOpen) {
		t.Errorf("another run's key: %v", err)
	}
	slot.Row = "run_1/2"
	if _, err := one.Open(slot, sealed); !errors.Is(err, vault.ErrOpen) {
		t.Errorf("another row: %v", err)
	}
	if _, err := k.OpenRunKey("run_2", wrapped); !errors.Is(err, vault.ErrOpen) {
		t.Errorf("a wrapped key moved to another run: %v", err)
	}
	for i := range wrapped {
		b := bytes.Clone(wrapped)
		b[i] ^= 1
		if _, err := k.OpenRunKey("run_1", b); !errors.Is(err, vault.ErrOpen) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	// With the wrapped key gone, the workspace's own keys open nothing of the run.
	slot.Row = "run_1/1"
	if _, err := k.Open(slot, sealed); !errors.Is(err, vault.ErrOpen) {
		t.Errorf("the workspace's key opened a run's value: %v", err)
	}
}

func TestMACsAreBoundToTheirPurpose(t *testing.T) {
	k, _ := keys(t, "acme")
	tag, err := k.MAC("approval/1", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if !k.VerifyMAC("approval/1", []byte("data"), tag) {
		t.Error("its own tag does not verify")
	}
	for what, ok := range map[string]bool{
		"purpose": k.VerifyMAC("approval/2", []byte("data"), tag), "data": k.VerifyMAC("approval/1", []byte("datb"), tag),
		"boundary": k.VerifyMAC("approval", []byte("/1|data"), tag), "no tag": k.VerifyMAC("approval/1", []byte("data"), nil),
	} {
		if ok {
			t.Errorf("another %s verifies", what)
		}
	}
	for i := range tag {
		b := bytes.Clone(tag)
		b[i] ^= 1
		if k.VerifyMAC("approval/1", []byte("data"), b) {
			t.Errorf("byte %d flipped", i)
		}
	}
}

func TestIdempotencyKeysAreStableAndDistinct(t *testing.T) {
	k, path := keys(t, "acme")
	same, err := vault.OpenKeyset(path, "acme")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, run := range []host.RunID{"run_1", "run_2"} {
		for call := range uint32(20) {
			for _, op := range []string{"mail.send", "docs.write"} {
				a, e1 := k.IdempotencyKey(run, call, op)
				b, e2 := same.IdempotencyKey(run, call, op)
				if e1 != nil || e2 != nil || a != b || len(a) != 32 {
					t.Fatal(a, b, e1, e2)
				}
				where := fmt.Sprint(run, call, op)
				if seen[a] != "" {
					t.Errorf("%s and %s have one key", where, seen[a])
				}
				seen[a] = where
			}
		}
	}
}

// What is stored has had one form from the first release on: Tink's AES-GCM without a
// prefix, with the slot written out as associated data.
func TestARunsValuesAreTinksOwn(t *testing.T) {
	k, _ := keys(t, "acme")
	run, wrapped, err := k.NewRunKey("run_1")
	if err != nil {
		t.Fatal(err)
	}
	dek, err := k.Open(vault.Slot{Table: "run", Column: "key", Row: "run_1", Version: 1}, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	tinks, err := subtle.NewAESGCM(dek)
	if err != nil {
		t.Fatal(err)
	}
	var m vault.Scratch
	for _, row := range []string{"run_1/1", "", `a"b\|c` + "\x00\xff\n日"} {
		slot := vault.Slot{Table: "journal", Column: "body", Row: row, Version: 12}
		aad := fmt.Appendf(nil, "monroe/1|%q|%q|%q|%q|%d|%s", "acme", slot.Table, slot.Column, slot.Row, slot.Version, "run_1")
		theirs, err := tinks.Encrypt([]byte("plain "+row), aad)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.OpenIn(&m, slot, theirs); err != nil || string(got) != "plain "+row {
			t.Errorf("%q: sealed by Tink it opens as %q, %v", row, got, err)
		}
		ours, err := run.Seal(slot, []byte("plain "+row))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tinks.Decrypt(ours, aad); err != nil || string(got) != "plain "+row {
			t.Errorf("%q: Tink opens what was sealed as %q, %v", row, got, err)
		}
	}
}

// Law 1.
func TestNoKeyCanBePrinted(t *testing.T) {
	k, path := keys(t, "acme")
	run, _, err := k.NewRunKey("run_1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		AEAD struct {
			Key []struct {
				KeyData struct {
					Value string `json:"value"`
				} `json:"keyData"`
			} `json:"key"`
		} `json:"aead"`
		Signer string `json:"checkpoint_signer"`
	}
	if err := json.Unmarshal(text, &file); err != nil || len(file.AEAD.Key) != 1 || file.Signer == "" {
		t.Fatal("the test does not know the file's form", err)
	}
	var out strings.Builder
	type holder struct {
		K *vault.Keyset
		R *vault.RunKey
	}
	h := holder{k, run}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T", "%p"} {
		fmt.Fprintf(&out, strings.Repeat(verb+"\n", 6), k, run, h, &h, []any{k, run}, fmt.Errorf("x: %v", k))
	}
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", slog.Any("k", k), slog.Any("r", run), slog.Any("h", h))
	}
	if b, err := json.Marshal(h); err == nil {
		out.Write(b)
	}
	for _, secret := range []string{file.AEAD.Key[0].KeyData.Value, file.Signer, file.Signer[len(file.Signer)-12:]} {
		if strings.Contains(out.String(), secret) || strings.Contains(out.String(), fmt.Sprintf("%x", secret)) {
			t.Error("a key was printed")
		}
	}
}

// A struct copied by value must show no more than its pointer.
func TestACopiedKeysetCannotBePrintedEither(t *testing.T) {
	k, path := keys(t, "acme")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Signer string `json:"checkpoint_signer"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%p"} {
		if got := fmt.Sprintf(verb, *k); strings.Contains(got, file.Signer) || strings.Contains(got, fmt.Sprintf("%x", file.Signer)) {
			t.Errorf("%s prints the signing key", verb)
		}
	}
}

func TestAKeysetFileThatOthersCanReadIsRefused(t *testing.T) {
	_, path := keys(t, "acme")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644, 0o610, 0o601, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := vault.OpenKeyset(path, "acme"); err == nil {
			t.Errorf("mode %04o was accepted", mode)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.OpenKeyset(path, "acme"); err != nil {
		t.Error(err)
	}
	if _, err := vault.OpenKeyset(path, "other"); err == nil {
		t.Error("a keyset of another workspace was accepted")
	}
}

func TestADamagedKeysetFileIsAnErrorAndNeverReplaced(t *testing.T) {
	_, path := keys(t, "acme")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"empty": "", "cut off": string(good[:len(good)/2]), "an object": "{}", "version": strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"no keys": `{"version":1,"workspace":"acme"}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := vault.OpenKeyset(path, "acme"); err == nil {
			t.Errorf("%s: accepted", what)
		} else if strings.Contains(err.Error(), "keyData") {
			t.Errorf("%s: the error shows the file: %v", what, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%s: the file was changed", what)
		}
	}
	// A missing folder is an error too, not a keyset in memory.
	if _, err := vault.OpenKeyset(filepath.Join(t.TempDir(), "no", "keys"), "acme"); err == nil {
		t.Error("a keyset that is nowhere")
	}
}

func TestTokensAreStoredAsHashesOnly(t *testing.T) {
	a, stored := vault.NewToken()
	b, _ := vault.NewToken()
	if a == b || len(a) < 40 || !bytes.Equal(stored, vault.HashToken(a)) || bytes.Contains(stored, []byte(a)) || bytes.Equal(vault.HashToken(a), vault.HashToken(b)) {
		t.Error("tokens")
	}
}
