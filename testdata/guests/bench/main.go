// Command bench is the guest that hosts are measured with: it asks its host n
// times to echo 100 bytes, by an op that only a measuring host answers. It does the
// same work as the peer's guest in testdata/bench/peers/guest.
package main

import (
	"errors"
	"strings"

	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {}

type echo struct {
	Text string `json:"text"`
}

func run(r *guest.Run) error {
	var in struct {
		N int `json:"n"`
	}
	if err := r.Input(&in); err != nil {
		return err
	}
	payload := echo{strings.Repeat("x", 100)}
	for range in.N {
		var back echo
		if err := r.Call("bench.echo", payload, &back); err != nil {
			return err
		}
		if back != payload {
			return errors.New("the echo differs")
		}
	}
	return r.Result(in)
}
