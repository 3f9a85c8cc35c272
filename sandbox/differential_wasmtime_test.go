//go:build wasmtime

package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/getmonroe/monroe/abi/conformance"
	"github.com/getmonroe/monroe/sandbox"
)

// TestEnginesGiveTheSameTranscript plays every vector of the conformance kit that is a
// module on both engines and compares what the guest did, call by call. The endless
// ones are left to those who can kill a process (sandbox/spawn), the replays to those who keep records.
func TestEnginesGiveTheSameTranscript(t *testing.T) {
	wazero, err := sandbox.NewWazero(sandbox.EngineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer wazero.Close()
	wasmtime, err := sandbox.NewWasmtime(sandbox.EngineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer wasmtime.Close()
	compared := 0
	for _, v := range conformance.Vectors() {
		if v.Module == nil || v.Limits.Wall > 0 || v.Limits.CPU > 0 || len(v.Past) > 0 {
			continue
		}
		one, two := transcript(wazero, &v), transcript(wasmtime, &v)
		if !slices.Equal(one, two) {
			t.Errorf("%s\nwazero\n\t%.1000q\nwasmtime\n\t%.1000q", v.Name, one, two)
		}
		compared++
	}
	if compared < 200 {
		t.Errorf("only %d vectors were compared", compared)
	}
}

// transcript is what one engine makes of a vector.
func transcript(e sandbox.Engine, v *conformance.Vector) (lines []string) {
	code := v.Module()
	end := func(err error) []string { return append(lines, "fault "+string(sandbox.AsFault(err).Code)) }
	if _, err := sandbox.Admit(code); err != nil {
		return end(err)
	}
	m, err := e.Compile(code)
	if err != nil {
		return end(err)
	}
	if v.Compile {
		return []string{"compiled"}
	}
	var log bytes.Buffer
	status, result, err := sandbox.Run(m, sandbox.NewHost(sandbox.Config{
		Limits: v.Limits, Seed: [32]byte{v.Seed}, TimeNS: v.TimeNS, Input: v.Input,
		Log: func(text []byte) { log.Write(text) },
		Call: func(request []byte) ([]byte, int64, error) {
			lines = append(lines, fmt.Sprintf("call %q", request))
			if v.Answer == nil {
				return []byte(`{"ok":{}}`), 0, nil
			}
			a := v.Answer(len(lines), request)
			return []byte(a.Reply), a.AtNS, nil
		},
	}))
	lines = append(lines, "log "+log.String())
	if f := new(sandbox.Fault); err != nil && !errors.As(err, &f) {
		return append(lines, err.Error())
	} else if err != nil {
		return end(err)
	}
	return append(lines, fmt.Sprintf("done %d %q", status, result))
}
