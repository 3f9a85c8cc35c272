// Package module turns an upload into something that a worker can run, and makes
// sure that what runs is what was made.
//
// Laws, each with a test:
//
//  1. The daemon never parses an upload: a confined child does, and the daemon
//     believes nothing of it but bytes that it hashes itself.
//  2. An artefact is loaded only if its MAC over upload, image, artefact, engine and
//     limits verifies at that moment, for a run as for a spare worker. Otherwise it is
//     made again from the upload, whose own digest is its name.
//  3. Runs cannot write what other runs load.
//
// It knows files, digests and their MAC. It must not know the engine or grants.
package module

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/durable"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Compiled is what a compile child says about a module.
type Compiled struct {
	Engine   string
	Manifest []byte
}

// EscapeError is a compile child that tried what it may not: an upload took it over.
type EscapeError struct{ Tried string }

func (e *EscapeError) Error() string { return e.Tried }

// Compiler admits and compiles a module in a process of its own, into a private,
// empty directory. A refusal is a *host.Problem that tells the author what to do; a
// child that was taken over is an *EscapeError.
type Compiler interface {
	Compile(ctx context.Context, module []byte, dir string) (Compiled, error)
}

// Shelf keeps uploads and artefacts below one directory of the workspace.
type Shelf struct {
	dir   string
	keys  *vault.Keyset
	store *store.Store
	comp  Compiler

	mu sync.Mutex // one compilation at a time: it may take all the memory it is allowed
}

// NewShelf uses dir, an absolute path that it creates with mode 0700.
func NewShelf(dir string, keys *vault.Keyset, st *store.Store, c Compiler) (*Shelf, error) {
	for _, d := range []string{dir, filepath.Join(dir, "uploads"), filepath.Join(dir, "artefacts"), filepath.Join(dir, "tmp")} {
		if err := durable.MkdirAll(d); err != nil {
			return nil, fmt.Errorf("module: %w", err)
		}
	}
	s := &Shelf{dir: dir, keys: keys, store: st, comp: c}
	return s, s.sweep()
}

// sweep removes what a crash left half-made.
func (s *Shelf) sweep() error {
	tmp := filepath.Join(s.dir, "tmp")
	list, err := os.ReadDir(tmp)
	if err != nil {
		return fmt.Errorf("module: %w", err)
	}
	for _, e := range list {
		// A spawner that was killed amidst a compilation gave nothing back: what the
		// workers' user made and closed stays, and is in nobody's way.
		if err := os.RemoveAll(filepath.Join(tmp, e.Name())); err != nil && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("module: %w", err)
		}
	}
	return nil
}

// Push admits, compiles and stores an upload and makes it the skill of its
// manifest's name. check may refuse the manifest before anything is stored; witness is
// called in the transaction that makes it the skill.
func (s *Shelf) Push(ctx context.Context, upload []byte, by string, now time.Time, check func(*abi.Manifest) error, witness func(*store.Tx, store.Module, *abi.Manifest) error) (store.Module, *abi.Manifest, error) {
	if len(upload) > abi.MaxModule {
		return store.Module{}, nil, &host.Problem{
			Kind: host.ErrTooLarge, Code: "MODULE_SIZE", Detail: fmt.Sprintf("the module has %d bytes, at most %d are allowed", len(upload), abi.MaxModule),
			Remedy: "build without debug information (for Go: -ldflags='-s -w')",
		}
	}
	m := store.Module{SHA256: sha256.Sum256(upload), Size: int64(len(upload)), PushedBy: by, PushedAt: now}
	manifest, err := s.make(ctx, upload, &m, check)
	if err != nil {
		return store.Module{}, nil, err
	}
	if err := s.keepUpload(m.SHA256, upload); err != nil {
		return store.Module{}, nil, err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.PutModule(manifest.Name, m); err != nil {
			return err
		}
		return witness(tx, m, manifest)
	})
	return m, manifest, err
}

// make compiles an upload and moves the result to its place.
func (s *Shelf) make(ctx context.Context, upload []byte, m *store.Module, check func(*abi.Manifest) error) (*abi.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "compile-")
	if err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	defer func() { _ = os.RemoveAll(out) }()
	c, err := s.comp.Compile(ctx, upload, out)
	if err != nil {
		return nil, err
	}
	manifest, err := abi.ParseManifest(c.Manifest)
	if err != nil {
		return nil, &host.Problem{Kind: host.ErrInvalid, Code: "MODULE_MANIFEST", Detail: err.Error(), Remedy: "correct the manifest and attach it again"}
	}
	if check != nil {
		if err := check(manifest); err != nil {
			return nil, err
		}
	}
	m.Engine, m.Manifest = c.Engine, string(c.Manifest)
	if m.Image, m.Artefact, err = digest(out); err != nil {
		return nil, err
	}
	if m.MAC, err = s.keys.MAC(purpose, bound(m)); err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	if err := seal(out); err != nil {
		return nil, err
	}
	place := s.place(m)
	if err := os.RemoveAll(place); err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	if err := os.Rename(out, place); err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	return manifest, durable.SyncDir(filepath.Dir(place))
}

// purpose has a number that changes with the files of an artefact: what has another is made
// again.
const purpose = "artefact/2"

// bound is what the MAC covers, every field of fixed size or with its length.
func bound(m *store.Module) []byte {
	b := append([]byte{}, m.SHA256[:]...)
	b = append(append(b, m.Image[:]...), m.Artefact[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Engine)))
	b = append(b, m.Engine...)
	return append(b, m.Manifest...)
}

func (s *Shelf) place(m *store.Module) string {
	return filepath.Join(s.dir, "artefacts", m.SHA256.String())
}

func (s *Shelf) uploadPath(d abi.Digest) string {
	return filepath.Join(s.dir, "uploads", d.String()+".wasm")
}

// Dir returns the directory that a worker may load the module from. It verifies the
// artefact, and makes it again if it is not what it was.
func (s *Shelf) Dir(ctx context.Context, m store.Module) (string, error) {
	place := s.place(&m)
	image, artefact, err := digest(place)
	if err == nil && image == m.Image && artefact == m.Artefact && s.keys.VerifyMAC(purpose, bound(&m), m.MAC) {
		return place, nil
	}
	upload, err := os.ReadFile(s.uploadPath(m.SHA256))
	if err != nil {
		return "", fmt.Errorf("module %s: neither a good artefact nor its upload is there: %w", m.SHA256, err)
	}
	if sha256.Sum256(upload) != m.SHA256 {
		return "", fmt.Errorf("module %s: the stored upload was changed", m.SHA256)
	}
	again := m
	if _, err := s.make(ctx, upload, &again, nil); err != nil {
		return "", err
	}
	if again.Manifest != m.Manifest || again.Image != m.Image {
		return "", fmt.Errorf("module %s: compiled again it is another module than before", m.SHA256)
	}
	return place, s.store.Write(ctx, func(tx *store.Tx) error { return tx.KeepModule(again) })
}

// keepUpload stores the bytes durably before the row that refers to them.
func (s *Shelf) keepUpload(d abi.Digest, upload []byte) error {
	if err := durable.Replace(s.uploadPath(d), upload, filepath.Join(s.dir, "tmp"), "upload-"); err != nil {
		return fmt.Errorf("module: %w", err)
	}
	return nil
}

// digest hashes what a directory holds: every file's path, size and content, in
// order. image is the digest of module.wasm alone. Anything but directories and
// regular files is refused.
func digest(dir string) (image, all abi.Digest, err error) {
	h := sha256.New()
	found := false
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("module: %s is not a regular file", e.Name())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		if rel == "module.wasm" {
			image, found = sum, true
		}
		fmt.Fprintf(h, "%q %d %x\n", rel, len(b), sum)
		return nil
	})
	if err == nil && !found {
		err = errors.New("module: the compiler left no module.wasm")
	}
	return image, abi.Digest(h.Sum(nil)), err
}

// SealAll gives the artefacts below a shelf's directory the modes that they were made
// with, after somebody has put them there.
func SealAll(dir string) error {
	artefacts := filepath.Join(dir, "artefacts")
	if _, err := os.Lstat(artefacts); errors.Is(err, fs.ErrNotExist) {
		return nil // it holds no module
	}
	list, err := os.ReadDir(artefacts)
	if err != nil {
		return fmt.Errorf("module: %w", err)
	}
	for _, e := range list {
		if err := seal(filepath.Join(artefacts, e.Name())); err != nil {
			return fmt.Errorf("module: %w", err)
		}
	}
	return nil
}

// seal makes files durable and everything read-only, and this process's own: workers
// may have a user of theirs, which compiled it and may read it, and no more. Nobody
// else comes here, as the workspace's directory is private.
func seal(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o444)
		if e.IsDir() {
			mode = 0o755
		}
		return errors.Join(f.Chown(os.Getuid(), os.Getgid()), f.Chmod(mode), f.Sync(), f.Close())
	})
}
