// Command dozer is the guest that waking up is measured with: an ordinary Go program
// that makes some calls, and then sleeps so many times for so long.
package main

import (
	"time"

	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {}

func run(r *guest.Run) error {
	var in struct {
		Calls  int `json:"calls"`
		Sleeps int `json:"sleeps"`
		MS     int `json:"ms"` // of each sleep
	}
	if err := r.Input(&in); err != nil {
		return err
	}
	for range in.Calls {
		if _, err := r.Describe(); err != nil {
			return err
		}
	}
	for range in.Sleeps {
		if err := r.Sleep(time.Duration(in.MS) * time.Millisecond); err != nil {
			return err
		}
	}
	return r.Result(in)
}
