package sandbox

import (
	"bytes"
	"io"
	"reflect"

	"github.com/tetratelabs/wazero"

	"github.com/getmonroe/monroe/abi/wire"
)

// wazero keeps compiled code in a directory, where it opens, makes and renames files by
// names of its own. A worker opens nothing once it is confined, and what it may read or
// write it holds already (RATIONALE.md). So the place behind wazero's cache, a field of an
// interface type that is nobody else's, is taken by one of ours. It is an error at the
// start, and TestCompiledIsLoaded fails, once wazero names it otherwise.

// keySize is that of wazero's name for a module, an engine and a processor.
const keySize = 32

// kept is compiled code behind its name. It has the methods of wazero's filecache.Cache.
type kept EngineConfig

// Get finds nothing where another module, version or processor is asked for.
func (k *kept) Get(key [keySize]byte) (io.ReadCloser, bool, error) {
	code, ok := bytes.CutPrefix(k.Compiled, key[:])
	return io.NopCloser(bytes.NewReader(code)), ok, nil
}

// Add stores it.
func (k *kept) Add(key [keySize]byte, content io.Reader) error {
	if k.Store == nil {
		return nil
	}
	_, err := k.Store.Write(key[:])
	if err == nil {
		_, err = io.Copy(k.Store, content)
	}
	return err
}

// Delete is asked of what another version wrote, which is then compiled again.
func (k *kept) Delete([keySize]byte) error { return nil }

func newCache(cfg EngineConfig) (wazero.CompilationCache, error) {
	cache, mine := wazero.NewCompilationCache(), kept(cfg)
	place := reflect.Indirect(reflect.ValueOf(cache)).FieldByName("fileCache")
	if !place.IsValid() || !reflect.TypeOf(&mine).AssignableTo(place.Type()) {
		return nil, fault(wire.FaultInternal, "this version of wazero keeps compiled code in another way")
	}
	reflect.NewAt(place.Type(), place.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(&mine))
	return cache, nil
}
