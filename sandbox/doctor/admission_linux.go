package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/getmonroe/monroe/sandbox/spawn"
)

// hostile are modules that ask for the world: each must be refused before an engine
// sees it.
var hostile = map[string][]byte{
	"a component":            {0, 'a', 's', 'm', 0x0d, 0, 1, 0},
	"an import of a socket":  module(imports("env", "socket")),
	"an import of a file":    module(imports("wasi_snapshot_preview1", "path_open")),
	"an import of a process": module(imports("wasi_snapshot_preview1", "proc_raise")),
	"no module at all":       []byte("#!/bin/sh\n"),
	"two memories":           module(section(5, 2, 0, 1, 0, 1)),
}

func module(sections ...[]byte) []byte {
	b := []byte{0, 'a', 's', 'm', 1, 0, 0, 0}
	for _, s := range sections {
		b = append(b, s...)
	}
	return b
}

func section(id byte, body ...byte) []byte { return append([]byte{id, byte(len(body))}, body...) }

// imports is a type and an import of a function of it.
func imports(from, name string) []byte {
	body := []byte{1, byte(len(from))}
	body = append(append(body, from...), byte(len(name)))
	body = append(append(body, name...), 0, 0)
	return append(section(1, 1, 0x60, 0, 0), section(2, body...)...)
}

// admission is L0: what may become a guest at all. What a guest can reach is its
// imports, so refusing them is the wall.
func admission(ctx context.Context, x Subject) (l Layer, err error) {
	l = Layer{ID: "L0", Name: "wasm", Open: []string{}, Why: "no import but the ABI and the host's own WASI; one memory with a limit; admitted before an engine sees it"}
	s, err := x.spawner()
	if err != nil {
		return l, err
	}
	s.UID = x.UID
	defer func() { err = errors.Join(err, s.Close()) }()
	dir, err := os.MkdirTemp("", "monroe-doctor-")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, upload := range hostile {
		out := filepath.Join(dir, name)
		if err := os.Mkdir(out, 0o700); err != nil {
			return l, err
		}
		_, err := s.Compile(ctx, upload, out)
		refused := errors.As(err, new(*spawn.FaultError))
		if err != nil && !refused {
			return l, err
		}
		l.attempt(name, refused, refused) // the refusal is the report
	}
	l.Enforced = l.Denied == l.Attempts
	return l, nil
}
