package ebpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A Guard is a set of programs that stands at one control group. Its maker needs
// CAP_BPF and CAP_NET_ADMIN. They stay for as long as the group is there, also when
// their maker dies; that is why they are attached and not linked.
type Guard struct {
	dir   *os.File
	hooks []hook
	maps  []*ebpf.Map // in the order of Hand
	objs  interface{ Close() error }
}

type hook struct {
	at   ebpf.AttachType
	prog *ebpf.Program
}

// DenyAll lets no process below the control group use the network.
func DenyAll(dir string) (*Guard, error) {
	var o workersObjects
	if err := loadWorkersObjects(&o, nil); err != nil {
		return nil, unsupported(err)
	}
	return stand(dir, &o, []*ebpf.Map{o.Events, o.Counters}, []hook{
		{ebpf.AttachCGroupInetSockCreate, o.WorkerCreate},
		{ebpf.AttachCGroupInet4Connect, o.WorkerConnect4},
		{ebpf.AttachCGroupInet6Connect, o.WorkerConnect6},
		{ebpf.AttachCGroupUDP4Sendmsg, o.WorkerSendmsg4},
		{ebpf.AttachCGroupUDP6Sendmsg, o.WorkerSendmsg6},
		{ebpf.AttachCGroupInet4Bind, o.WorkerBind4},
		{ebpf.AttachCGroupInet6Bind, o.WorkerBind6},
		{ebpf.AttachCGroupInetEgress, o.WorkerSkb},
	})
}

// RequireLeases lets processes below the control group connect with a lease alone. A
// socket counts for the group that it was made in.
func RequireLeases(dir string, mode Mode) (*Guard, error) {
	spec, err := loadLeases()
	if err != nil {
		return nil, unsupported(err)
	}
	if mode == Audit {
		if err := spec.Variables["audit"].Set(uint32(1)); err != nil {
			return nil, unsupported(err)
		}
	}
	var o leasesObjects
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return nil, unsupported(err)
	}
	return stand(dir, &o, []*ebpf.Map{o.Leases, o.Revoked, o.Flows, o.Events, o.Counters}, []hook{
		{ebpf.AttachCGroupInetSockCreate, o.LeaseCreate},
		{ebpf.AttachCGroupInet4Connect, o.LeaseConnect4},
		{ebpf.AttachCGroupInet6Connect, o.LeaseConnect6},
		{ebpf.AttachCGroupUDP4Sendmsg, o.LeaseSendmsg4},
		{ebpf.AttachCGroupUDP6Sendmsg, o.LeaseSendmsg6},
		{ebpf.AttachCGroupInetEgress, o.LeaseOut},
		{ebpf.AttachCGroupInetIngress, o.LeaseIn},
	})
}

func unsupported(err error) error {
	if errors.Is(err, unix.EPERM) { // whose text blames a memory limit that kernels of today do not have
		err = fmt.Errorf("CAP_BPF and CAP_NET_ADMIN are needed: %w", unix.EPERM)
	}
	return fmt.Errorf("%w: %w", ErrUnsupported, err)
}

// stand attaches all or none.
func stand(dir string, objs interface{ Close() error }, maps []*ebpf.Map, hooks []hook) (*Guard, error) {
	g := &Guard{maps: maps, objs: objs}
	var err error
	if g.dir, err = os.Open(dir); err != nil {
		return nil, errors.Join(unsupported(err), objs.Close())
	}
	for _, h := range hooks {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(g.dir.Fd()), Program: h.prog, Attach: h.at, Flags: unix.BPF_F_ALLOW_MULTI})
		if err != nil {
			return nil, errors.Join(unsupported(fmt.Errorf("%s at %s: %w", h.at, dir, err)), g.Detach(), g.Close())
		}
		g.hooks = append(g.hooks, h)
	}
	return g, nil
}

// Detach takes the programs away.
func (g *Guard) Detach() error {
	var errs []error
	for _, h := range g.hooks {
		errs = append(errs, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(g.dir.Fd()), Program: h.prog, Attach: h.at}))
	}
	g.hooks = nil
	return errors.Join(errs...)
}

// Close lets go of the programs, which stay where they are.
func (g *Guard) Close() error { return errors.Join(g.objs.Close(), g.dir.Close()) }

// variable names the descriptors that a daemon inherits: the mode, a colon, and the
// number of the first.
const variable = "MONROE_BACKSTOP"

// Hand gives a process that is about to start the tables of both guards: it can take
// leases and read reports, and reach no program.
func Hand(cmd *exec.Cmd, workers, daemon *Guard, mode Mode) error {
	first := 3 + len(cmd.ExtraFiles)
	for _, m := range append(append([]*ebpf.Map{}, workers.maps...), daemon.maps...) {
		fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), m.String()))
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s:%d", variable, mode, first))
	return nil
}

// Inherited opens what Hand gave this process; nil means that it gave nothing. The
// variable is taken out of the environment. What an earlier daemon left in the tables
// is removed.
func Inherited() (*Backstop, error) {
	text := os.Getenv(variable)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	mode, number, _ := strings.Cut(text, ":")
	first, err := strconv.Atoi(number)
	if err != nil || Mode(mode) != Enforce && Mode(mode) != Audit {
		return nil, fmt.Errorf("%s=%q is not what monroe up passes", variable, text)
	}
	var maps []*ebpf.Map
	for i := range 7 {
		unix.CloseOnExec(first + i)
		m, err := ebpf.NewMapFromFD(first + i)
		if err != nil {
			return nil, fmt.Errorf("%s=%q: descriptor %d: %w", variable, text, first+i, err)
		}
		maps = append(maps, m)
	}
	return open(maps, Mode(mode))
}

// Tables opens the tables of guards of this process.
func Tables(workers, daemon *Guard, mode Mode) (*Backstop, error) {
	var maps []*ebpf.Map
	for _, m := range append(append([]*ebpf.Map{}, workers.maps...), daemon.maps...) {
		c, err := m.Clone()
		if err != nil {
			return nil, err
		}
		maps = append(maps, c)
	}
	return open(maps, mode)
}
