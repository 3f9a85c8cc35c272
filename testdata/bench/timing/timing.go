// Package timing times an engine alone, without a host or a process around it.
//
// It must not know which engine it is.
package timing

import (
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox"
)

// Times is what testdata/guests/bench took on an engine.
type Times struct {
	Starts []time.Duration // from the request for an instance to its first host call
	Calls  []time.Duration // from one host call that echoes 100 bytes to the next
}

// Guest starts a module so many times, and then lets one instance make so many calls.
func Guest(module sandbox.Module, starts, calls int) (t Times, err error) {
	var entered []time.Time
	run := func(n int) (time.Time, error) {
		entered = entered[:0]
		begin := time.Now()
		h := sandbox.NewHost(sandbox.Config{
			Limits: abi.Limits{Calls: 1<<32 - 1}, Input: fmt.Appendf(nil, `{"n":%d}`, n),
			Call: func(request []byte) ([]byte, int64, error) {
				entered = append(entered, time.Now())
				r, denial := abi.DecodeRequest(request)
				if denial != nil {
					return nil, 0, denial
				}
				return abi.OK(r.Args).Encode(), 0, nil
			},
		})
		status, _, err := sandbox.Run(module, h)
		if err == nil && (status != 0 || len(entered) < n) {
			err = fmt.Errorf("status %d after %d of %d calls", status, len(entered), n)
		}
		return begin, err
	}
	for range starts {
		begin, err := run(1)
		if err != nil {
			return t, err
		}
		t.Starts = append(t.Starts, entered[0].Sub(begin))
	}
	if _, err := run(calls + 1); err != nil {
		return t, err
	}
	for i := range calls {
		t.Calls = append(t.Calls, entered[i+1].Sub(entered[i]))
	}
	return t, nil
}
