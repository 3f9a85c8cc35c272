package sandbox

import "github.com/getmonroe/monroe/abi/wire"

// Run runs one guest to its end: start function, _initialize, monroe_run. It
// returns what monroe_run returned and what the guest wrote as its result. An
// error is a *Fault, except that an error of Config.Call comes back as it is.
// A guest that does not end is stopped by killing the process.
func Run(m Module, h *Host) (status int32, result []byte, err error) {
	in, err := m.Instantiate(h)
	if err != nil {
		return 0, nil, h.cause(err)
	}
	defer in.Close() //nolint:errcheck // frees memory only
	if in.Has("_initialize") {
		if _, err := in.Call("_initialize"); err != nil {
			return 0, nil, h.cause(err)
		}
	}
	h.live = true
	out, err := in.Call("monroe_run")
	h.live = false
	if err != nil {
		return 0, nil, h.cause(err)
	}
	if len(out) != 1 {
		return 0, nil, fault(wire.FaultModule, "monroe_run returned %d values instead of one", len(out))
	}
	return int32(uint32(out[0])), h.result, nil
}

// cause prefers the host's own error to what an engine made of it.
func (h *Host) cause(err error) error {
	if h.fault != nil {
		return h.fault
	}
	return AsFault(err)
}
