package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/getmonroe/monroe/abi"
)

// Protocol is the version of what kit and host say to each other.
const Protocol = 1

// A Message is one line of JSON, in either direction; docs/conformance.md has the
// conversation. Bytes are base64. The kit sets Do, the host sets Is.
type Message struct {
	Do string `json:"do,omitempty"` // hello, compile, run, reply, read, manifest, covers, decide
	Is string `json:"is,omitempty"` // hello, compiled, call, done, read, manifest, covers, decided, fault

	// hello
	Protocol int    `json:"protocol,omitempty"`
	Name     string `json:"name,omitempty"`
	Engine   string `json:"engine,omitempty"`

	// compile, run
	Module []byte      `json:"module,omitempty"`
	Input  []byte      `json:"input,omitempty"`
	Limits *abi.Limits `json:"limits,omitempty"`
	Seed   []byte      `json:"seed,omitempty"`    // 32 bytes
	TimeNS int64       `json:"time_ns,omitempty"` // the clock of SPEC 8.1 at the start
	Past   []Past      `json:"past,omitempty"`    // recorded calls, in order

	// call, read, manifest
	Request  []byte `json:"request,omitempty"`
	Manifest []byte `json:"manifest,omitempty"`
	// reply
	Reply []byte `json:"reply,omitempty"`
	AtNS  int64  `json:"at_ns,omitempty"` // time stamp of the reply
	// covers
	Pattern  string `json:"pattern,omitempty"`
	Resource string `json:"resource,omitempty"`
	Covers   bool   `json:"covers,omitempty"`
	// decide, with the manifest
	Decide *Decision `json:"decide,omitempty"`

	// done
	Status int32  `json:"status,omitempty"`
	Result []byte `json:"result,omitempty"`
	Log    []byte `json:"log,omitempty"` // what the guest printed
	// read
	Fingerprint string `json:"fingerprint,omitempty"` // SPEC 6.2, hexadecimal
	// fault, and of read, manifest and decided if they refuse
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"` // for people; the kit does not look at it
}

// Past is a recorded call.
type Past struct {
	Fingerprint string `json:"fingerprint"`
	Reply       []byte `json:"reply"`
	AtNS        int64  `json:"at_ns,omitempty"`
}

// A Decision is one call of a skill, and what holds besides its manifest (SPEC 4.2).
// Grants are as a workspace has them, Ceiling as an operator does; without one he sets none.
type Decision struct {
	Op        string `json:"op"`
	Operation string `json:"operation,omitempty"` // empty: the op reaches none
	Effect    string `json:"effect"`
	Resource  string `json:"resource,omitempty"`
	Grants    []Line `json:"grants,omitempty"`
	Ceiling   []Line `json:"ceiling,omitempty"`
	Looks     bool   `json:"looks,omitempty"` // the person may look, and have no effect
}

// A Line covers resources of one operation.
type Line struct {
	Operation string `json:"operation"`
	Resource  string `json:"resource"`
	Other     bool   `json:"other,omitempty"` // it is granted to another module of the same name
}

// Kinds of faults that the kit tells apart.
const (
	FaultModule   = "MODULE"    // the module is refused: form, import, profile
	FaultTooLarge = "TOO_LARGE" // the module is refused: a limit of SPEC 9.3
	FaultTrap     = "TRAP"      // the guest's own code trapped
	FaultMemory   = "MEMORY"    // a pointer or handle
	FaultExit     = "EXIT"      // proc_exit
	FaultInit     = "INIT"      // a host call during start-up
	FaultLimit    = "LIMIT"     // a limit of the run: calls, result, parked replies, memory
	FaultKilled   = "KILLED"    // running time or processor time
	FaultDiverged = "DIVERGED"  // another request than the recorded one
)

// patience is how long a host may take for one line.
const patience = 60 * time.Second

// maxLine is the longest line: a reply or a module in base64, with room to spare.
const maxLine = 32 << 20

// A Host is a host under test: a process and its two pipes.
type Host struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	Hello Message
}

// Start starts a host and reads its hello. Its standard error is this process's.
func Start(ctx context.Context, command ...string) (*Host, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("the host cannot be started: %w", err)
	}
	h := &Host{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 64<<10)}
	h.Hello, err = h.ask(Message{Do: "hello", Protocol: Protocol})
	if err == nil && (h.Hello.Is != "hello" || h.Hello.Protocol != Protocol) {
		err = fmt.Errorf("it answers hello with %q and protocol %d, this kit speaks %d", h.Hello.Is, h.Hello.Protocol, Protocol)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the host did not say hello: %w", err), h.Close())
	}
	return h, nil
}

// Close ends the host.
func (h *Host) Close() error {
	err := h.in.Close()
	stop := time.AfterFunc(5*time.Second, func() { _ = h.cmd.Process.Kill() })
	defer stop.Stop()
	return errors.Join(err, h.cmd.Wait())
}

// ask sends one line and reads one. A host that is silent is killed.
func (h *Host) ask(m Message) (Message, error) {
	stop := time.AfterFunc(patience, func() { _ = h.cmd.Process.Kill() })
	defer stop.Stop()
	var answer Message
	if err := WriteLine(h.in, m); err != nil {
		return answer, err
	}
	answer, err := ReadLine(h.out)
	if err != nil {
		return answer, fmt.Errorf("it gave no answer to %q: %w", m.Do, err)
	}
	return answer, nil
}

// WriteLine writes a message.
func WriteLine(w io.Writer, m Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ReadLine reads a message of at most 32 MiB. io.EOF means that the other side is done.
func ReadLine(r *bufio.Reader) (Message, error) {
	var m Message
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return m, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return m, err
		}
		break
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("a line that is no message: %w", err)
	}
	return m, nil
}
