// Package files reads files below folders that the operator opened.
//
// Laws, each with a test of the same name:
//
//  1. A path is checked and never repaired, so that what a grant covers is what is
//     read.
//  2. Plan touches no file: it knows names of folders, not where they are.
//  3. A reply is labelled as its folder is configured; unconfigured means outside
//     words that nobody may read on.
//
// It knows names of folders and the form of paths. It must not know where a folder
// is, grants, or how a file is opened: host/egress does that without following any
// link.
package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/canon"
)

// The operations.
const (
	OpRead = "files.read"
	OpList = "files.list"
)

// Limits of one call.
const (
	DefaultMaxBytes = 1 << 20 // bytes of one file
	LimitMaxBytes   = 4 << 20 // bytes that a call may ask for
	DefaultEntries  = 500
	LimitEntries    = 2000
)

// Folder says how what is read from a folder is labelled. The zero value is the
// strictest: outside words that nobody may read on.
type Folder struct {
	// Internal says that only members of the workspace can write into it.
	Internal bool
	// Readers may see its files, such as "workspace", or connectors.Everyone.
	Readers []string
}

// Files is the connector. It is safe for concurrent use.
type Files struct{ folders map[string]Folder }

// New returns the connector for the named folders. A name is [a-z][a-z0-9-]{0,31};
// it is part of every resource.
func New(folders map[string]Folder) (*Files, error) {
	form := regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	for name := range folders {
		if !form.MatchString(name) {
			return nil, fmt.Errorf("files: folder %q: a lower-case letter, then up to 31 letters, digits or -", name)
		}
	}
	return &Files{folders: maps.Clone(folders)}, nil
}

// ReadArgs are the arguments of files.read.
type ReadArgs struct {
	Folder   string `json:"folder"`
	Path     string `json:"path"`
	MaxBytes int64  `json:"max_bytes,omitempty"`
}

// ListArgs are the arguments of files.list.
type ListArgs struct {
	Folder string `json:"folder"`
	Path   string `json:"path,omitempty"`
	Max    int    `json:"max,omitempty"`
}

// ReadReply answers files.read: Text if the file is UTF-8, else Base64.
type ReadReply struct {
	Folder   string    `json:"folder"`
	Path     string    `json:"path"`
	Size     int64     `json:"size"`
	SHA256   string    `json:"sha256"`
	Modified time.Time `json:"modified"`
	Text     *string   `json:"text,omitempty"`
	Base64   []byte    `json:"base64,omitempty"`
}

// ListReply answers files.list: the regular files below the path, sorted. Links,
// devices and names that no path can express are left out.
type ListReply struct {
	Folder    string                 `json:"folder"`
	Path      string                 `json:"path"`
	Entries   []connectors.FileEntry `json:"entries"`
	Truncated bool                   `json:"truncated"`
}

// Operations are the descriptors.
func (f *Files) Operations() []connectors.Operation {
	return []connectors.Operation{
		{
			Name: OpRead, Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Renderer: connectors.RenderFile,
			Summary: "Read one file of a folder: its text, or base64 if it is not text.",
			Args: json.RawMessage(`{"type":"object","properties":{` +
				`"folder":{"type":"string","description":"name of the folder"},` +
				`"path":{"type":"string","description":"path below the folder, separated by /"},` +
				`"max_bytes":{"type":"integer","minimum":1,"maximum":4194304,"description":"refuse a larger file; default 1048576"}},` +
				`"required":["folder","path"],"additionalProperties":false}`),
		},
		{
			Name: OpList, Version: 1, Effect: abi.EffectRead, Replay: abi.ReplayPure, Renderer: connectors.RenderFile,
			Summary: "List the files below a folder or one of its subfolders.",
			Args: json.RawMessage(`{"type":"object","properties":{` +
				`"folder":{"type":"string","description":"name of the folder"},` +
				`"path":{"type":"string","description":"subfolder; leave out for the whole folder"},` +
				`"max":{"type":"integer","minimum":1,"maximum":2000,"description":"entries at most; default 500"}},` +
				`"required":["folder"],"additionalProperties":false}`),
		},
	}
}

// Plan freezes the name of the folder and the checked path.
func (f *Files) Plan(c connectors.Call) (connectors.Plan, *abi.Denial) {
	switch c.Operation {
	case OpRead:
		var a ReadArgs
		if d := abi.DecodeArgs(c.Args, &a); d != nil {
			return connectors.Plan{}, d
		}
		if a.MaxBytes < 0 || a.MaxBytes > LimitMaxBytes {
			return connectors.Plan{}, abi.Deny(abi.Invalid, fmt.Sprintf("max_bytes is 1 to %d", LimitMaxBytes), "ask for less")
		}
		if a.MaxBytes == 0 {
			a.MaxBytes = DefaultMaxBytes
		}
		p, d := f.plan(a.Folder, a.Path)
		if d != nil {
			return connectors.Plan{}, d
		}
		clean, _ := canon.Path(a.Path)
		if clean == "." {
			return connectors.Plan{}, abi.Deny(abi.Invalid, "path names the folder, not a file", "list it with files.list and name a file")
		}
		p.Frozen.FileRead = &connectors.FileRead{Folder: a.Folder, Path: clean, Max: a.MaxBytes}
		p.MaxAnswer = a.MaxBytes
		return p, nil
	case OpList:
		var a ListArgs
		if d := abi.DecodeArgs(c.Args, &a); d != nil {
			return connectors.Plan{}, d
		}
		if a.Max < 0 || a.Max > LimitEntries {
			return connectors.Plan{}, abi.Deny(abi.Invalid, fmt.Sprintf("max is 1 to %d", LimitEntries), "list a subfolder")
		}
		if a.Max == 0 {
			a.Max = DefaultEntries
		}
		p, d := f.plan(a.Folder, a.Path)
		if d != nil {
			return connectors.Plan{}, d
		}
		clean, _ := canon.Path(a.Path)
		p.Frozen.FileList = &connectors.FileList{Folder: a.Folder, Path: clean, Max: a.Max}
		return p, nil
	}
	return connectors.Plan{}, abi.Deny(abi.Unsupported, fmt.Sprintf("there is no operation %q", c.Operation), "use files.read or files.list")
}

func (f *Files) plan(folder, path string) (connectors.Plan, *abi.Denial) {
	clean, err := canon.Path(path)
	if err != nil {
		return connectors.Plan{}, abi.Deny(abi.Invalid, err.Error(), "use a path as files.list gives it")
	}
	if _, ok := f.folders[folder]; !ok {
		// The same words as for a missing file: which folders exist is not told.
		return connectors.Plan{}, abi.Deny(abi.NotFound, fmt.Sprintf("there is no folder %.40q", folder), "use a folder that the grants of host.describe name")
	}
	res := "files:" + folder
	if clean != "." {
		res += "/" + clean
	}
	if err := abi.CheckResource(res); err != nil {
		return connectors.Plan{}, abi.Deny(abi.Invalid, err.Error(), "use a path as files.list gives it")
	}
	return connectors.Plan{Resources: []string{res}, Destination: res, Audience: []string{"workspace"}}, nil
}

// maxText is the largest text in JSON form; beyond it base64 is shorter.
const maxText = abi.MaxReply - 1<<20

// Parse reads the file's bytes, or the list.
func (f *Files) Parse(_ context.Context, c connectors.Call, p connectors.Plan, a *connectors.Answer) (connectors.Result, *abi.Denial) {
	if l := p.Frozen.FileList; l != nil {
		entries := slices.Clone(a.Files)
		if entries == nil {
			entries = []connectors.FileEntry{}
		}
		return connectors.Result{
			Reply:      ListReply{Folder: l.Folder, Path: l.Path, Entries: entries, Truncated: a.Truncated},
			Provenance: f.provenance(l.Folder, p.Resources),
			Cost:       new(abi.MicroUSD),
		}, nil
	}
	r := p.Frozen.FileRead
	if r == nil || len(a.Files) != 1 {
		return connectors.Result{}, abi.Deny(abi.Internal, "the answer is not that of a file", "")
	}
	b, err := io.ReadAll(a.Body)
	switch {
	case errors.Is(err, connectors.ErrAnswerTooLarge):
		return connectors.Result{}, abi.Deny(abi.TooLarge, fmt.Sprintf("the file has more than %d bytes", r.Max), "raise max_bytes or read a smaller file")
	case err != nil:
		return connectors.Result{}, abi.Deny(abi.Upstream, "the file could not be read to its end", "try again")
	}
	sum := sha256.Sum256(b)
	reply := ReadReply{
		Folder: r.Folder, Path: r.Path, Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:]),
		Modified: a.Files[0].Modified.UTC(),
	}
	if text := string(b); isText(b) {
		reply.Text = &text
	} else {
		reply.Base64 = b
	}
	return connectors.Result{Reply: reply, Provenance: f.provenance(r.Folder, p.Resources), Cost: new(abi.MicroUSD)}, nil
}

func isText(b []byte) bool {
	if !utf8.Valid(b) || slices.Contains(b, 0) {
		return false
	}
	enc, err := json.Marshal(string(b))
	return err == nil && len(enc) <= maxText
}

func (f *Files) provenance(folder string, origins []string) connectors.Provenance {
	x := f.folders[folder]
	return connectors.Provenance{Internal: x.Internal, Readers: slices.Clone(x.Readers), Origins: slices.Clone(origins)}
}
