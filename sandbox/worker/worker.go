// Package worker is what a worker process does once it is confined: it speaks the
// frames of package wire on one side and runs the engine on the other.
//
// Laws, each with its test:
//
//   - Before the confinement stands, nothing that derives from an upload is read
//     (TestLinuxHealthyWorker, TestBadWorkers).
//   - A recorded reply is given to the same call as before, and each request is
//     reported by its fingerprint before any live call is made
//     (TestLinuxReplay).
//   - Whatever a guest does, the host sees one Done or one Fault, or the end of the
//     process (TestLinuxHostileGuests).
//
// It knows both protocols and the files of a module's directory.
//
// It must not know what a request means.
package worker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/canary"
	"github.com/getmonroe/monroe/sandbox/confine"
)

// Names in a module's directory.
const (
	ModuleFile = "module.wasm"
	CodeFile   = "module.code" // what the engine made of it
)

// Files is what a run reads and a compilation writes.
func Files() []string { return []string{ModuleFile, CodeFile} }

// A link is the socket to the host. Frames collect in w until flush.
type link struct {
	r *wire.Reader
	w *bufio.Writer
}

func newLink(conn io.ReadWriter) *link {
	return &link{r: wire.NewReader(conn, 32<<10), w: bufio.NewWriterSize(conn, 32<<10)}
}

func (l *link) send(k wire.Kind, parts ...[]byte) error {
	if err := wire.WriteFrame(l.w, k, parts...); err != nil {
		return err
	}
	return l.w.Flush()
}

// fail tells the host why this ends.
func (l *link) fail(err error) error {
	f := sandbox.AsFault(err)
	return l.send(wire.KindFault, wire.EncodeJSON(wire.Fault{Code: f.Code, Message: f.Message}))
}

func (l *link) ready(engine sandbox.Engine, c *confine.Confinement, load time.Duration) error {
	return l.send(wire.KindReady, wire.EncodeJSON(wire.Ready{
		Protocol: wire.Version, Engine: engine.Fingerprint(), Enforced: c.Enforced(), LoadUS: load.Microseconds(),
	}))
}

// Run loads the module of its files and serves one run. It returns an error if the host
// cannot be told.
func Run(conn io.ReadWriter, c *confine.Confinement) error {
	l := newLink(conn)
	began := time.Now()
	module, engine, err := load(c)
	if err != nil {
		return l.fail(err)
	}
	if err := l.ready(engine, c, time.Since(began)); err != nil {
		return err
	}
	return l.run(module)
}

func load(c *confine.Confinement) (sandbox.Module, sandbox.Engine, error) {
	code, err := contents(c.File(ModuleFile))
	if err == nil && code == nil {
		err = errors.New("it is not there")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the module cannot be read: %w", err)
	}
	compiled, err := contents(c.File(CodeFile))
	if err != nil {
		return nil, nil, fmt.Errorf("the compiled module cannot be read: %w", err)
	}
	heapAhead(len(code))
	engine, err := sandbox.NewEngine(sandbox.EngineConfig{Compiled: compiled})
	if err != nil {
		return nil, nil, err
	}
	module, err := engine.Compile(code)
	return module, engine, err
}

// Compile admits and compiles one module that comes over the socket, and leaves it and
// what the engine made of it in its files.
func Compile(conn io.ReadWriter, c *confine.Confinement) error {
	l := newLink(conn)
	engine, err := sandbox.NewEngine(sandbox.EngineConfig{Store: c.File(CodeFile)})
	if err != nil {
		return l.fail(err)
	}
	if err := l.ready(engine, c, 0); err != nil {
		return err
	}
	_, code, err := l.r.Frame(wire.KindModule)
	if err != nil {
		return err
	}
	began := time.Now()
	outline, err := sandbox.Admit(code)
	if err != nil {
		return l.fail(err)
	}
	if _, err := engine.Compile(code); err != nil {
		return l.fail(err)
	}
	if _, err := c.File(ModuleFile).Write(code); err != nil {
		return l.fail(fmt.Errorf("the module cannot be stored: %w", err))
	}
	return l.send(wire.KindCompiled, wire.EncodeJSON(wire.Compiled{
		Engine: engine.Fingerprint(), Manifest: outline.ManifestJSON, Imports: outline.Imports, Took: time.Since(began),
	}))
}

// Canary tries what the host asks for.
func Canary(conn io.ReadWriter, c *confine.Confinement) error {
	l := newLink(conn)
	ready := wire.Ready{Protocol: wire.Version, Engine: "canary", Enforced: c.Enforced()}
	if err := l.send(wire.KindReady, wire.EncodeJSON(ready)); err != nil {
		return err
	}
	return canary.Serve(conn)
}

// clipLog splits text into payloads of Log frames.
func clipLog(text []byte, send func([]byte) error) error {
	for len(text) > 0 {
		n := min(len(text), wire.MaxLog)
		if err := send(text[:n]); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}
