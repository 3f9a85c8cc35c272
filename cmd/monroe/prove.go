package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
)

type auditProve struct {
	Receipt    string `arg:"" help:"The receipt (rcpt_N), or the number of a leaf."`
	Checkpoint string `type:"path" help:"A checkpoint that was kept elsewhere; the log must extend it."`
}

func (a auditProve) Run(e *env) error {
	leaf, err := strconv.ParseInt(strings.TrimPrefix(a.Receipt, "rcpt_"), 10, 64)
	if err != nil || leaf < 0 {
		return fmt.Errorf("%q is neither a receipt, such as rcpt_27, nor the number of a leaf", a.Receipt)
	}
	c, err := e.client()
	if err != nil {
		return err
	}
	kept, err := e.keptNotes(a.Checkpoint)
	if err != nil {
		return err
	}
	var old keptNote
	if len(kept) > 0 {
		old = kept[len(kept)-1] // the one that was named
	}
	p, err := c.ProveLeaf(e.ctx, leaf, 0)
	if err == nil && old.path != "" { // its key is known now, and so its size
		var size int64
		err = old.hold(p.Verifier, func(was audit.Head) error {
			size = was.Size
			is, err := audit.OpenCheckpoint([]byte(p.Checkpoint), p.Verifier)
			if err == nil && was.Size > is.Size { // of such a log the daemon proves nothing
				err = audit.CheckExtends(nil, was, is)
			}
			return err
		})
		if err == nil {
			p, err = c.ProveLeaf(e.ctx, leaf, size)
		}
	}
	if err != nil {
		return err
	}
	return e.proved(p, p.Verifier, old)
}

type auditCheck struct {
	File       string `arg:"" type:"existingfile" help:"What monroe --json audit prove printed."`
	Key        string `required:"" help:"The workspace's public key, from somewhere else than the file."`
	Checkpoint string `type:"existingfile" help:"A checkpoint that was kept elsewhere; the file must prove that the log extends it."`
}

func (a auditCheck) Run(e *env) error {
	b, err := os.ReadFile(a.File)
	if err != nil {
		return err
	}
	var p api.AuditProof
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("%s is not a proof: %w", a.File, err)
	}
	old := keptNote{path: a.Checkpoint}
	if old.path != "" {
		if old.note, err = os.ReadFile(old.path); err != nil {
			return err
		}
	}
	return e.proved(p, a.Key, old)
}

// proved checks a proof with a key and, where there is one, against a checkpoint that
// was kept. The daemon is believed nothing.
func (e *env) proved(p api.AuditProof, key string, old keptNote) error {
	head, err := audit.OpenCheckpoint([]byte(p.Checkpoint), key)
	if err != nil {
		return err
	}
	inclusion, err := hashes(p.Inclusion)
	if err != nil {
		return err
	}
	if err := (audit.Proof{Index: p.Leaf.Index, Body: p.Leaf.Body, Inclusion: inclusion}).Check(head); err != nil {
		return err
	}
	if old.path != "" {
		extends, err := hashes(p.Extends)
		if err != nil {
			return err
		}
		if err := old.hold(key, func(was audit.Head) error { return audit.CheckExtends(extends, was, head) }); err != nil {
			return err
		}
	}
	l, err := audit.ParseLeaf(p.Leaf.Body)
	if err != nil {
		return err
	}
	return e.show(p, func() {
		e.printf("audit: proved leaf %d of %d by %d hashes: %s, run %s, %s\n", p.Leaf.Index, head.Size, len(inclusion),
			strings.Join(strings.Fields(fmt.Sprint(l.Kind, " ", subject(l), " ", l.Verdict, " ", l.Cost)), " "), l.Run, when(l.Time()))
		e.printf("root %s, signed by %s\n", head.Root, key)
		if old.path != "" {
			e.printf("the log extends the checkpoint kept in %s\n", old.path)
		}
	})
}

func hashes(list [][]byte) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(list))
	for i, h := range list {
		if len(h) != tlog.HashSize {
			return nil, fmt.Errorf("%w: a hash of %d bytes", audit.ErrTampered, len(h))
		}
		copy(out[i][:], h)
	}
	return out, nil
}
