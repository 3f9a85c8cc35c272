package rest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/getmonroe/monroe/host/api/rest"
	"github.com/getmonroe/monroe/host/config"
)

//go:generate go test -run TestDocuments -count=1 . -update
var update = flag.Bool("update", false, "write the documents that are made from code")

// TestDocuments holds the committed descriptions to the code. make generate writes
// them.
func TestDocuments(t *testing.T) {
	api, err := rest.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	workspace, err := workspaceSchema()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"openapi.json": api, "workspace.schema.json": workspace} {
		var want bytes.Buffer
		if err := json.Indent(&want, raw, "", "  "); err != nil {
			t.Fatal(err)
		}
		want.WriteByte('\n')
		path := "../../../docs/" + name
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, want.Bytes()) {
			t.Errorf("docs/%s is not what the code says; make generate writes it (%v)", name, err)
		}
	}
}

// workspaceSchema is the JSON Schema of workspace.yaml. It refuses unknown keys, as
// the parser does.
func workspaceSchema() ([]byte, error) {
	reg := huma.NewMapRegistry("#/$defs/", huma.DefaultSchemaNamer)
	root := reg.Schema(reflect.TypeFor[config.Workspace](), true, "Workspace")
	defs := map[string]any{}
	for name, s := range reg.Map() {
		defs[name] = s
	}
	return json.Marshal(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "workspace.yaml", "$ref": root.Ref, "$defs": defs,
	})
}

// TestEveryRouteNamesItsScope reads the description as a client does.
func TestEveryRouteNamesItsScope(t *testing.T) {
	raw, err := rest.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			ID        string         `json:"operationId"`
			Scope     string         `json:"x-token-scope"`
			Responses map[string]any `json:"responses"`
		} `json:"paths"`
		Security []map[string][]string `json:"security"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Security) != 1 {
		t.Errorf("security %v", doc.Security)
	}
	scopes := map[string]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			scopes[op.ID] = op.Scope
			if method == "get" && op.Scope != "read" || method != "get" && op.Scope == "read" || op.Scope == "" {
				t.Errorf("%s %s needs the scope %q", strings.ToUpper(method), path, op.Scope)
			}
			if !strings.HasPrefix(path, "/v1/") {
				t.Errorf("%s is outside /v1", path)
			}
		}
	}
	for id, want := range map[string]string{"decide-approval": "approve", "start-run": "run", "cancel-run": "run", "push-skill": "admin", "apply-workspace": "admin"} {
		if scopes[id] != want {
			t.Errorf("%s needs %q, want %q", id, scopes[id], want)
		}
	}
}
