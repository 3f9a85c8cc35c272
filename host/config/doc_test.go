package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host/config"
)

// TestDocumentedConfiguration reads every whole file that the documents show.
func TestDocumentedConfiguration(t *testing.T) {
	operators, workspaces := 0, 0
	for _, page := range []string{"../../README.md", "../../docs/operating.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?s)```yaml\n(version: .*?)```").FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "\nworkspace:") {
				workspaces++
				if _, err := config.ParseWorkspace([]byte(m[1])); err != nil {
					t.Errorf("%s: %v\n%s", page, err, m[1])
				}
				continue
			}
			operators++
			path := filepath.Join(t.TempDir(), "operator.yaml")
			if err := os.WriteFile(path, []byte(m[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.ReadOperator(path); err != nil {
				t.Errorf("%s: %v\n%s", page, err, m[1])
			}
		}
	}
	if operators < 2 || workspaces < 1 {
		t.Errorf("the documents show %d operator.yaml and %d workspace.yaml", operators, workspaces)
	}
}
