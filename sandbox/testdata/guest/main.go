// A guest in Go, as an author would write one without an SDK: it builds a table when
// it starts, reads its input, makes two host calls and writes a result.
package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
	"unsafe"
)

//go:wasmimport monroe_v1 call
func call(req unsafe.Pointer, reqLen uint32, out unsafe.Pointer, outCap uint32) int64

//go:wasmimport monroe_v1 read
func read(handle uint32, ptr unsafe.Pointer, n uint32) int64

//go:wasmimport monroe_v1 write
func write(handle uint32, ptr unsafe.Pointer, n uint32) int64

//go:wasmimport monroe_v1 close
func closeHandle(handle uint32) int32

// table stands for what a real guest builds when it starts.
var table = func() map[string]int {
	m := map[string]int{}
	for i := range 2000 {
		m[fmt.Sprintf("key-%d", i)] = i
	}
	return m
}()

var buf [64]byte

// ask sends a request; a reply that does not fit the buffer is read from its handle.
func ask(req string) string {
	n := call(unsafe.Pointer(unsafe.StringData(req)), uint32(len(req)), unsafe.Pointer(&buf[0]), uint32(len(buf)))
	if n>>32 == 0 {
		return string(buf[:n])
	}
	var out []byte
	for {
		k := read(uint32(n), unsafe.Pointer(&buf[0]), uint32(len(buf)))
		if k == 0 {
			closeHandle(uint32(n))
			return string(out)
		}
		out = append(out, buf[:k]...)
	}
}

//go:wasmexport monroe_run
func run() int32 {
	n := read(0, unsafe.Pointer(&buf[0]), uint32(len(buf)))
	in := string(buf[:n])
	short := ask("echo " + in)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); time.Sleep(time.Hour) }() // virtual time
	wg.Wait()
	long := ask(fmt.Sprintf("random %d of %d, and more than fits the buffer", rand.Uint64(), len(table)))
	fmt.Println("printed at", time.Now().Unix())
	out := fmt.Sprintf("%s|%s", short, long)
	write(1, unsafe.Pointer(unsafe.StringData(out)), uint32(len(out)))
	return 0
}

func main() {}
