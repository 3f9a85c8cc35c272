package main_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to find what a leaf and a record hold
)

var demoLine = regexp.MustCompile(`^demo: ok run=(run_[0-9a-z]{26}) approvals=1 sent=1 receipt=rcpt_[0-9]+ audit=verified$`)

// demo runs the demo and returns its home and run.
func demo(t *testing.T) (home, run string) {
	t.Helper()
	home, folder := shortDir(t), t.TempDir()
	write(t, filepath.Join(folder, "plan.md"), "# Plan\n\nShall we ship on Friday?\n")
	write(t, filepath.Join(folder, "notes", "old.md"), "See [the plan](../plan.md) and [nothing](gone.md).\n")
	began := time.Now()
	out, status := cli(t, "--home", home, "-w", "demo", "demo", "--files", folder, "--yes")
	took := time.Since(began)
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	m := demoLine.FindStringSubmatch(lines[len(lines)-1])
	if status != 0 || m == nil {
		t.Fatalf("the demo ended with %d:\n%s", status, out)
	}
	if took > time.Minute {
		t.Errorf("the demo took %s", took)
	}
	return home, m[1]
}

// TestLinuxRunWaitsForAPerson is make run: it stops at the question and says how to
// answer it, the answer is given by the very command that it prints for the API, and the
// mail leaves then.
func TestLinuxRunWaitsForAPerson(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	home, folder := shortDir(t), t.TempDir()
	write(t, filepath.Join(folder, "plan.md"), "# Plan\n\nShall we ship on Friday?\n")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("monroe"), "--home", home, "-w", "demo", "demo", "--files", folder)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text, command := "", ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		text += line + "\n"
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "curl ") || strings.HasSuffix(command, "\\") {
			command = strings.TrimSuffix(command, "\\") + trimmed
		}
		if line != "waiting …" { // nobody sits at a terminal here, so it does not ask there
			continue
		}
		if box, err := os.ReadDir(filepath.Join(home, "demo", "Maildir", "new")); err == nil && len(box) > 0 {
			t.Errorf("before the answer the Maildir holds %v", box)
		}
		said, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
		if err != nil || !strings.Contains(string(said), `"approved"`) {
			t.Errorf("%s: %v\n%s", command, err, said)
		}
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if err := cmd.Wait(); err != nil || !demoLine.MatchString(lines[len(lines)-1]) {
		t.Errorf("it ended with %v:\n%s", err, text)
	}
	for _, want := range []string{"estimate: ", "Nothing has left yet", "approvals approve appr_", "receipt:\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	again, status := cli(t, "--home", home, "-w", "demo", "--json", "demo", "--files", folder, "--yes")
	object := again[strings.Index(again, "\n{\n")+1:] // after what it tells people on the other channel
	var v struct {
		Run       string
		Approvals int
		Sent      int
		Receipt   string
	}
	if err := json.Unmarshal([]byte(object), &v); err != nil || status != 0 || v.Approvals != 1 || v.Sent != 1 || v.Receipt == "" {
		t.Errorf("as JSON: status %d, %v\n%s", status, err, again)
	}
}

// copyHome copies a home whose daemon is down.
func copyHome(t *testing.T, from string) string {
	t.Helper()
	to := shortDir(t)
	copyTree(t, from, to)
	return to
}

// copyTree copies directories and files with their rights. What else there is, such as a
// socket, is left out.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return errors.Join(os.MkdirAll(target, 0o700), os.Chmod(target, st.Mode().Perm()))
		case e.Type().IsRegular():
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(target, b, 0o600), os.Chmod(target, st.Mode().Perm()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of the byte in the middle of the only occurrence of want.
func flip(t *testing.T, path string, want []byte) {
	t.Helper()
	b := read(t, path)
	at := bytes.Index(b, want)
	if at < 0 || bytes.Contains(b[at+1:], want) {
		t.Fatalf("the bytes occur not once in %s: first at %d", path, at)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at+len(want)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, st.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
}

// checkpointed puts the write-ahead log of a stopped daemon into the database file and
// returns one column's bytes.
func checkpointed(t *testing.T, path, query string, args ...any) []byte {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := db.QueryRowContext(ctx, query, args...).Scan(&b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLinuxDemo is the whole way from upload to receipt, and what happens when one
// byte of what it left behind is changed.
func TestLinuxDemo(t *testing.T) {
	home, run := demo(t)
	check := func(home string) (string, int) {
		return cli(t, "--home", home, "-w", "demo", "demo", "--check", run)
	}
	changed := func(name, says string, change func(t *testing.T, home string)) {
		t.Run(name, func(t *testing.T) {
			h := copyHome(t, home)
			change(t, h)
			out, status := cli(t, "--home", h, "-w", "demo", "demo", "--check", run)
			if status == 0 || strings.Contains(out, "demo: ok") || !strings.Contains(out, says) {
				t.Errorf("status %d, want one that says %q:\n%s", status, says, out)
			}
		})
	}
	changed("mail", "is not what anybody approved", func(t *testing.T, home string) {
		list, err := filepath.Glob(filepath.Join(home, "demo", "Maildir", "new", "*"))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		flip(t, list[0], read(t, list[0]))
	})
	changed("mail twice", "2 mails of this run", func(t *testing.T, home string) {
		list, err := filepath.Glob(filepath.Join(home, "demo", "Maildir", "new", "*"))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		write(t, list[0]+"again", string(read(t, list[0])))
	})
	changed("no mail", "0 mails of this run", func(t *testing.T, home string) {
		list, err := filepath.Glob(filepath.Join(home, "demo", "Maildir", "new", "*"))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		if err := os.Remove(list[0]); err != nil {
			t.Fatal(err)
		}
	})
	changed("audit leaf", "demo: FAILED", func(t *testing.T, home string) {
		path := filepath.Join(home, "demo", "monroe.db")
		flip(t, path, checkpointed(t, path, "SELECT body FROM audit_leaf WHERE idx = 4"))
	})
	// The beginning of a body: a longer one goes on in pages of its own.
	changed("journal record", "demo: FAILED", func(t *testing.T, home string) {
		path := filepath.Join(home, "demo", "monroe.db")
		flip(t, path, checkpointed(t, path, "SELECT substr(body_enc, 1, 64) FROM journal WHERE run_id = ? ORDER BY seq LIMIT 1 OFFSET 3", run))
	})
	changed("first journal record", "demo: FAILED", func(t *testing.T, home string) {
		path := filepath.Join(home, "demo", "monroe.db")
		flip(t, path, checkpointed(t, path, "SELECT substr(body_enc, 1, 64) FROM journal WHERE run_id = ? ORDER BY seq LIMIT 1", run))
	})
	if out, status := check(copyHome(t, home)); status != 0 || !strings.Contains(out, fmt.Sprintf("demo: ok run=%s approvals=1 sent=1", run)) {
		t.Errorf("the untouched twin: status %d\n%s", status, out)
	}
	if out, status := check(home); status != 0 || !strings.Contains(out, "audit=verified") {
		t.Errorf("the original: status %d\n%s", status, out)
	}
}
