//go:build unix

package worker

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/confine"
)

// Launch says that the confinement stands and becomes the program of descriptor
// wire.ProgramFD, with this process's environment and without another descriptor than
// the standard ones. It returns only if that fails.
func Launch(conn io.ReadWriter, c *confine.Confinement) error {
	l := newLink(conn)
	syscall.CloseOnExec(wire.FD)
	syscall.CloseOnExec(wire.ProgramFD)
	ready := wire.Ready{Protocol: wire.Version, Engine: "plugin", Enforced: c.Enforced()}
	if err := l.send(wire.KindReady, wire.EncodeJSON(ready)); err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", wire.ProgramFD)
	err := syscall.Exec(path, []string{"plugin"}, os.Environ())
	return l.fail(fmt.Errorf("the program cannot be executed; it has to be a static one of this machine that others may execute: %w", err))
}
