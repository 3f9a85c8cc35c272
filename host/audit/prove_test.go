package audit_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/store"
)

// TestOneLeafIsProvedWithoutTheOthers: every leaf in every log that has it, and in no
// other; and no other leaf, place or hash passes for it.
func TestOneLeafIsProvedWithoutTheOthers(t *testing.T) {
	const n = 13
	x := newTrail(t, n)
	err := x.store.Read(t.Context(), func(tx *store.Tx) error {
		for size := int64(1); size <= n; size++ {
			for leaf := range size {
				p, err := audit.Prove(tx, leaf, size)
				if err != nil {
					t.Fatalf("leaf %d of %d: %v", leaf, size, err)
				}
				if err := p.Check(x.head(t, size)); err != nil || !bytes.Equal(p.Body, x.bodies[leaf]) {
					t.Errorf("leaf %d of %d: %v", leaf, size, err)
				}
				for name, spoil := range map[string]func(*audit.Proof){
					"body":  func(p *audit.Proof) { p.Body[5] ^= 1 },
					"index": func(p *audit.Proof) { p.Index ^= 1 },
					"hash": func(p *audit.Proof) {
						if len(p.Inclusion) == 0 {
							p.Inclusion = append(p.Inclusion, tlog.Hash{})
						}
						p.Inclusion[len(p.Inclusion)-1][0] ^= 1
					},
					"more hashes": func(p *audit.Proof) { p.Inclusion = append(p.Inclusion, tlog.Hash{}) },
				} {
					bad := audit.Proof{Index: p.Index, Body: bytes.Clone(p.Body), Inclusion: slices.Clone(p.Inclusion)}
					spoil(&bad)
					if err := bad.Check(x.head(t, size)); !errors.Is(err, audit.ErrTampered) {
						t.Errorf("leaf %d of %d with another %s: %v", leaf, size, name, err)
					}
				}
				if size < n {
					if err := p.Check(x.head(t, size+1)); !errors.Is(err, audit.ErrTampered) {
						t.Errorf("leaf %d of %d in the log of %d: %v", leaf, size, size+1, err)
					}
				}
			}
			if _, err := audit.Prove(tx, size, size); !errors.Is(err, host.ErrNotFound) {
				t.Errorf("a leaf beyond the log: %v", err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestALogExtendsItsEarlierOnes: any two checkpoints, and none that is of another log.
func TestALogExtendsItsEarlierOnes(t *testing.T) {
	const n = 13
	x := newTrail(t, n)
	err := x.store.Read(t.Context(), func(tx *store.Tx) error {
		for newer := int64(1); newer <= n; newer++ {
			for older := int64(1); older <= newer; older++ {
				p, err := audit.ProveExtends(tx, older, newer)
				if err != nil {
					t.Fatalf("%d to %d: %v", older, newer, err)
				}
				was, is := x.head(t, older), x.head(t, newer)
				if err := audit.CheckExtends(p, was, is); err != nil {
					t.Errorf("%d to %d: %v", older, newer, err)
				}
				was.Root[3] ^= 1
				if err := audit.CheckExtends(p, was, is); !errors.Is(err, audit.ErrTampered) {
					t.Errorf("%d to %d, with another beginning: %v", older, newer, err)
				}
				was = x.head(t, older)
				was.Origin = "monroe/other"
				if err := audit.CheckExtends(p, was, is); !errors.Is(err, audit.ErrTampered) {
					t.Errorf("of another workspace: %v", err)
				}
			}
		}
		if _, err := audit.ProveExtends(tx, n+1, n); !errors.Is(err, host.ErrNotFound) {
			t.Errorf("a longer one: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
