package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/getmonroe/monroe/abi"
)

// Host answers calls. In a guest it is the four imports of the ABI; natively it
// is the one in package guesttest.
type Host interface {
	// Call answers one request. The reply is valid until the next call.
	Call(request []byte) (reply []byte)
	// Input returns what the run was started with.
	Input() []byte
	// SetResult hands over the result. It is called once, at the end.
	SetResult([]byte)
}

// Program is a registered guest.
type Program struct{ run func(*Run) error }

// Run is one execution. It is used by one goroutine.
type Run struct {
	host   Host
	result []byte
	edited *abi.Edited
}

// Statuses of monroe_run (SPEC 2.3).
const (
	StatusOK     int32 = 0 // the run succeeded
	StatusFailed int32 = 1 // the guest returned an error; the result says which
	StatusNoMain int32 = 2 // the module has no program, or more than one
)

// Failure is the result of a run whose function returned an error.
type Failure struct {
	Error struct {
		Code   abi.Code `json:"code,omitempty"` // set where a denial was the cause
		Reason string   `json:"reason"`
		Remedy string   `json:"remedy,omitempty"`
	} `json:"error"`
}

// Execute runs f against a host and returns the status of monroe_run. Guests do
// not need it; package guesttest does.
func Execute(h Host, f func(*Run) error) int32 {
	r := &Run{host: h}
	err := f(r)
	if err == nil {
		if r.result != nil {
			h.SetResult(r.result)
		}
		return StatusOK
	}
	var fail Failure
	fail.Error.Reason = err.Error()
	if d, ok := Denied(err); ok {
		fail.Error.Code, fail.Error.Remedy = d.Code, d.Remedy
	}
	r.Log(LevelError, "%s", err)
	b, err := json.Marshal(fail)
	if err == nil {
		h.SetResult(b)
	}
	return StatusFailed
}

// Denied finds the denial in an error.
func Denied(err error) (*abi.Denial, bool) {
	var d *abi.Denial
	ok := errors.As(err, &d)
	return d, ok
}

// InputBytes returns the run's input as it came.
func (r *Run) InputBytes() []byte { return r.host.Input() }

// Input reads the run's input, a JSON object, into a struct. It is as strict as
// the ABI: an unknown or repeated field or a number with a fraction is an error.
// An empty input is an empty object.
func (r *Run) Input(v any) error {
	in := r.host.Input()
	if len(in) == 0 {
		in = []byte("{}")
	}
	if d := abi.DecodeArgs(in, v); d != nil {
		return fmt.Errorf("the run's input: %w", d)
	}
	return nil
}

// Result sets what the run returns. The last call counts.
func (r *Run) Result(v any) error {
	b, err := encode(v)
	if err != nil {
		return fmt.Errorf("result: %w", err)
	}
	if len(b) > abi.MaxResult {
		return abi.Deny(abi.TooLarge, fmt.Sprintf("the result has %d bytes, at most %d are allowed", len(b), abi.MaxResult), "return less")
	}
	r.result = b
	return nil
}

// Call makes any request and reads its result into out, which may be nil. The
// typed methods are built on it; use it for an op that this SDK does not know.
func (r *Run) Call(op abi.Op, args, out any) error {
	req, err := request(op, args)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	b := r.host.Call(req)
	r.edited = nil
	// Nearly every reply has nothing but its result, which is then read in one pass.
	// Where that does not work out, the slow way below says why.
	if ok, found := bytes.CutPrefix(b, []byte(`{"ok":`)); found && out != nil && bytes.HasSuffix(ok, []byte("}")) {
		if json.Unmarshal(ok[:len(ok)-1], out) == nil {
			return nil
		}
	}
	reply, err := abi.DecodeReply(b)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if reply.Error != nil {
		return fmt.Errorf("%s: %w", op, reply.Error)
	}
	r.edited = reply.Edited
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(reply.OK, out); err != nil {
		return fmt.Errorf("%s: the reply: %w", op, err)
	}
	return nil
}

// Edited says what a person made of the last request before it was carried out, and is
// nil if it was carried out as it was.
func (r *Run) Edited() *abi.Edited { return r.edited }

// request writes the one form that all requests of this SDK have, so that the
// arguments are encoded once.
func request(op abi.Op, args any) ([]byte, error) {
	name, err := encode(op)
	if err != nil {
		return nil, err
	}
	if args == nil {
		args = struct{}{}
	}
	var b bytes.Buffer
	b.WriteString(`{"op":`)
	b.Write(name)
	b.WriteString(`,"v":1,"args":`)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(args); err != nil {
		return nil, err
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Tool calls a connector's operation whose effect is read.
func (r *Run) Tool(operation string, args, out any) error {
	return r.operation(abi.OpToolCall, operation, args, out)
}

// Send calls a connector's operation with any other effect. It may wait for a
// person: the run then ends here and goes on later, which the guest does not see.
func (r *Run) Send(operation string, args, out any) error {
	return r.operation(abi.OpSend, operation, args, out)
}

func (r *Run) operation(op abi.Op, operation string, args, out any) error {
	raw, err := encode(args)
	if err == nil {
		err = r.Call(op, abi.CallArgs{Operation: operation, Args: raw}, out)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

// encode is json.Marshal without the escapes for HTML, each of which would take
// six bytes of a request that is bounded.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
