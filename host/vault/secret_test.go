package vault_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host/vault"
)

func TestSecretCannotBePrinted(t *testing.T) {
	const value = "hunter2hunter2"
	s := vault.NewSecret(value)
	type holder struct {
		S vault.Secret
		P *vault.Secret
	}
	h := holder{s, &s}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%c", "%10s"} {
		fmt.Fprintf(&out, verb+"\n"+verb+"\n", s, h)
	}
	fmt.Fprint(&out, s, h, []vault.Secret{s}, map[string]vault.Secret{"a": s}, fmt.Errorf("x: %v", s))
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", slog.Any("s", s), slog.Any("h", h))
	}
	if b, err := json.Marshal(h); err == nil {
		out.Write(b)
	}
	if b, err := xml.Marshal(s); err == nil {
		out.Write(b)
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(s); err == nil {
		t.Error("gob encoded a secret")
	}
	out.Write(b.Bytes())
	for _, form := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("%q was printed", form)
		}
	}
	if s.Reveal() != value || s.Empty() || !(vault.Secret{}).Empty() {
		t.Error("the value was lost")
	}
}

func TestCredentialIsBoundToItsOrigins(t *testing.T) {
	good := vault.Credential{Connection: "con_1", Subject: "us", Origins: []string{"https://api.example.com"}, Secret: vault.NewSecret("0123456789")}
	s, err := vault.NewStatic(good)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Fill(context.Background(), "con_1", "https://api.example.com"); err != nil || got.Reveal() != "0123456789" {
		t.Error(err)
	}
	for _, origin := range []string{"http://api.example.com", "https://api.example.com:443", "https://api.example.com/", "https://api.example.com.evil.example", "https://API.example.com", ""} {
		if got, err := s.Fill(context.Background(), "con_1", origin); !errors.Is(err, vault.ErrCredential) || !got.Empty() {
			t.Errorf("%s: %v", origin, err)
		}
	}
	if _, err := s.Fill(context.Background(), "con_2", "https://api.example.com"); !errors.Is(err, vault.ErrCredential) {
		t.Error(err)
	}
	if who, ok := s.Subject("con_1"); !ok || who != "us" {
		t.Error(who)
	}
	for name, change := range map[string]func(*vault.Credential){
		"no id": func(c *vault.Credential) { c.Connection = "" }, "no subject": func(c *vault.Credential) { c.Subject = "" },
		"short": func(c *vault.Credential) { c.Secret = vault.NewSecret("1234567") }, "line end": func(c *vault.Credential) { c.Secret = vault.NewSecret("123456789\n") },
		"no origin": func(c *vault.Credential) { c.Origins = nil }, "path": func(c *vault.Credential) { c.Origins = []string{"https://a.example/x"} },
		"wildcard host only": func(c *vault.Credential) { c.Origins = []string{"*"} },
	} {
		c := good
		change(&c)
		if _, err := vault.NewStatic(c); !errors.Is(err, vault.ErrCredential) || strings.Contains(err.Error(), "123456") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := vault.NewStatic(good, good); err == nil {
		t.Error("one connection twice")
	}
}
