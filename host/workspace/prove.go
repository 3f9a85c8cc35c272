package workspace

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/store"
)

// ProveLeaf implements api.Backend.
func (w *Workspace) ProveLeaf(ctx context.Context, _ host.Caller, leaf, since int64) (v api.AuditProof, err error) {
	signed, err := w.sign(ctx)
	if err != nil {
		return v, err
	}
	v = api.AuditProof{Checkpoint: string(signed), Verifier: w.keys.Verifier(), Since: since}
	head, err := audit.OpenCheckpoint(signed, v.Verifier)
	if err != nil {
		return v, err
	}
	if leaf >= head.Size || since > head.Size {
		return v, &host.Problem{Kind: host.ErrNotFound, Code: "LEAF", Detail: fmt.Sprintf("the log has %d leaves", head.Size), Remedy: "leaves are counted from 0; a receipt's name ends with its leaf's number"}
	}
	err = w.store.Read(ctx, func(tx *store.Tx) error {
		p, err := audit.Prove(tx, leaf, head.Size)
		if err != nil {
			return err
		}
		v.Leaf, v.Inclusion = api.AuditLeaf{Index: leaf, Body: p.Body}, hashes(p.Inclusion)
		if since == 0 {
			return nil
		}
		extends, err := audit.ProveExtends(tx, since, head.Size)
		v.Extends = hashes(extends)
		return err
	})
	return v, err
}

func hashes(list []tlog.Hash) [][]byte {
	out := make([][]byte, len(list))
	for i := range list {
		out[i] = list[i][:]
	}
	return out
}
