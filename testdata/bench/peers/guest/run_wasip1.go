//go:build wasip1

package main

import (
	"bytes"
	"strconv"

	pdk "github.com/extism/go-pdk"
)

//go:wasmimport extism:host/user host_echo
func hostEcho(offset uint64) uint64

//go:wasmexport run
func run() int32 {
	n, err := strconv.Atoi(string(pdk.Input()))
	if err != nil {
		return 1
	}
	payload := bytes.Repeat([]byte("x"), 100)
	for range n {
		out := pdk.AllocateBytes(payload)
		in := pdk.FindMemory(hostEcho(out.Offset()))
		if !bytes.Equal(in.ReadBytes(), payload) {
			return 2
		}
		in.Free()
		out.Free()
	}
	return 0
}
