package main

import (
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

type keysCmd struct {
	Show   keysShow   `cmd:"" help:"Tell of the keys, and show none."`
	Rotate keysRotate `cmd:"" help:"Make a new sealing key the one that seals. What older ones sealed opens as before."`
}

type keysShow struct{}

func (keysShow) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.KeysView, error) { return c.Keys(e.ctx) }, e.keys)
}

type keysRotate struct{}

func (keysRotate) Run(e *env) error {
	return answer(e, func(c *client.Client) (api.KeysView, error) { return c.RotateKeys(e.ctx) }, e.keys)
}

func (e *env) keys(v api.KeysView) {
	kek := v.KEK
	if kek == "" {
		kek = "nothing: the file is in clear text"
	}
	e.printf("sealing keys: %d\nkeyset's file sealed by: %s\n", v.Keys, plain(kek))
	if v.Rewrapping {
		e.printf("rows that an earlier key sealed are being sealed anew\n")
	}
	if v.Stale != "" {
		e.printf("nothing new is done: %s\n", plain(v.Stale))
	}
}
