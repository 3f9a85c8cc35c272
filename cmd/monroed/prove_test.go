package main_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxAReceiptIsProved: a receipt alone, without the log, to the workspace's person
// and to somebody without the daemon; and a changed one to nobody.
func TestLinuxAReceiptIsProved(t *testing.T) {
	d := digest(t)
	receipt := string(d.run(d.once()).ReceiptID)
	do := func(want int, args ...string) string {
		t.Helper()
		out, status := cli(t, append([]string{"--home", d.home, "-w", "team"}, args...)...)
		if status != want {
			t.Fatalf("monroe %v: status %d, want %d\n%s", args, status, want, out)
		}
		return out
	}
	if out := do(0, "audit", "prove", receipt); !strings.Contains(out, "audit: proved leaf "+receipt[len("rcpt_"):]+" of ") || strings.Contains(out, "extends") {
		t.Errorf("before a checkpoint was kept:\n%s", out)
	}
	d.verified() // keeps the checkpoint
	kept := filepath.Join(shortDir(t), "team.note")
	write(t, kept, string(read(t, filepath.Join(d.home, "checkpoints", "team.note"))))
	d.once() // the log grows
	if out := do(0, "audit", "prove", receipt); !strings.Contains(out, "the log extends the checkpoint kept in ") {
		t.Errorf("after:\n%s", out)
	}
	raw := do(0, "--json", "audit", "prove", "--checkpoint", kept, receipt)
	var p api.AuditProof
	if err := json.Unmarshal([]byte(raw), &p); err != nil || len(p.Inclusion) == 0 || len(p.Extends) == 0 {
		t.Fatalf("%v\n%s", err, raw)
	}
	do(1, "audit", "prove", "rcpt_9999")
	do(1, "audit", "prove", "the first")
	d.stop()
	file := filepath.Join(shortDir(t), "proof.json")
	check := func(want int, p api.AuditProof, more ...string) string {
		t.Helper()
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, string(b))
		return do(want, append([]string{"audit", "check", file, "--key", d.key(p.Verifier)}, more...)...)
	}
	if out := check(0, p, "--checkpoint", kept); !strings.Contains(out, "audit: proved leaf") {
		t.Error(out)
	}
	for name, spoil := range map[string]func(p *api.AuditProof){
		"leaf":      func(p *api.AuditProof) { p.Leaf.Body[20] ^= 1 },
		"index":     func(p *api.AuditProof) { p.Leaf.Index-- },
		"hash":      func(p *api.AuditProof) { p.Inclusion[0][0] ^= 1 },
		"short":     func(p *api.AuditProof) { p.Inclusion[0] = p.Inclusion[0][1:] },
		"beginning": func(p *api.AuditProof) { p.Extends = p.Extends[1:] },
		"signed":    func(p *api.AuditProof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n", "0\n", 1) },
	} {
		var bad api.AuditProof
		if err := json.Unmarshal([]byte(raw), &bad); err != nil {
			t.Fatal(err)
		}
		spoil(&bad)
		if out := check(1, bad, "--checkpoint", kept); !strings.Contains(out, "the log does not verify") {
			t.Errorf("another %s:\n%s", name, out)
		}
	}
	other := serve(t, "")
	write(t, file, raw)
	if out := do(1, "audit", "check", file, "--key", other.key("")); !strings.Contains(out, "the log does not verify") {
		t.Errorf("another workspace's key:\n%s", out)
	}
	d.exec("UPDATE audit_leaf SET body = (SELECT body FROM audit_leaf WHERE idx = 5) WHERE idx = ?", strings.TrimPrefix(receipt, "rcpt_"))
	d.launch()
	<-d.said.serves
	if out := do(1, "audit", "prove", receipt); !strings.Contains(out, "the log does not verify") {
		t.Errorf("a leaf that was changed:\n%s", out)
	}
}

// key is known, or asked of the daemon.
func (d *daemon) key(known string) string {
	d.t.Helper()
	if known != "" {
		return known
	}
	v, err := d.Audit(d.ctx(), 0, 1)
	if err != nil {
		d.t.Fatal(err)
	}
	return v.Verifier
}
