package main

import (
	"fmt"
	"time"

	"github.com/getmonroe/monroe/host/api"
)

type egressCmd struct{}

// Run shows what left, and what left for no call.
func (egressCmd) Run(e *env) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	v, err := c.Egress(e.ctx)
	if err != nil {
		return err
	}
	return e.show(v, func() {
		if v.Mode == "off" {
			e.printf("the kernel is not asked: start the daemon by monroe up, as root or with CAP_BPF and CAP_NET_ADMIN (docs/confinement.md)\n")
			return
		}
		e.printf("mode %s: %d flows belong to a call; the daemon's group was refused %d connections, the workers' %d attempts\n", plain(v.Mode), v.Matched, v.Daemon.Denied, v.Workers.Denied)
		for _, f := range v.Flows {
			e.printf("%s  %-6s %-4s %-24s %8d out %8d in  %s\n", f.Began.Local().Format(time.TimeOnly), state(f), f.Proto, plain(f.To), f.BytesOut, f.BytesIn, plain(owner(f)))
		}
		for _, x := range v.Violations {
			passed := "denied"
			if !x.Denied {
				passed = "PASSED"
			}
			e.printf("%s  %s %s %s %s %s, %d times since %s, process %d\n", x.Last.Local().Format(time.TimeOnly), passed, plain(x.By), plain(x.Hook), x.Proto, plain(x.To), x.Count, x.First.Local().Format(time.TimeOnly), x.PID)
		}
	})
}

func state(f api.EgressFlow) string {
	if f.Ended == nil {
		return "open"
	}
	return "ended"
}

func owner(f api.EgressFlow) string {
	if f.Purpose != "" {
		return "the daemon's " + f.Purpose
	}
	return fmt.Sprintf("%s call %d %s", f.Run, f.Call, f.Operation)
}
