// Command sender does what its input lists, one call after the other, and goes on
// after a refusal. testdata/torture and the tests of monroed use it.
package main

import (
	"encoding/json"
	"fmt"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {} // Go wants one; the host calls run instead

type step struct {
	Operation string          `json:"operation"`
	Args      json.RawMessage `json:"args"`
}

func run(r *guest.Run) error {
	var in struct {
		Steps []step `json:"steps"`
	}
	if err := r.Input(&in); err != nil {
		return err
	}
	results := []any{}
	for _, s := range in.Steps {
		var out json.RawMessage
		var err error
		if s.Operation == guest.HTTPFetch {
			err = r.Call(abi.OpHTTPFetch, s.Args, &out)
		} else {
			err = r.Send(s.Operation, s.Args, &out)
		}
		if d, ok := guest.Denied(err); ok {
			results = append(results, map[string]any{"code": d.Code, "effect": d.Effect, "reason": d.Reason})
			continue
		} else if err != nil {
			return fmt.Errorf("%s: %w", s.Operation, err)
		}
		results = append(results, out)
	}
	return r.Result(map[string]any{"results": results})
}
