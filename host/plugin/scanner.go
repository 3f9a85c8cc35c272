package plugin

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/plugin"
	"github.com/getmonroe/monroe/connectors/plugin/pluginpb"
	"github.com/getmonroe/monroe/host/label"
)

// MaxContent is how many bytes a scanner is shown; what is larger is held back.
const MaxContent = plugin.MaxMessage - 64<<10

// Finding is an id that a scanner may answer with, and what is said then.
type Finding struct{ ID, Reason string }

// Scanner is a plugin as a scanner. It is safe for concurrent use.
type Scanner struct {
	s      *supervisor
	pinned []Finding
}

// NewScanner checks the pin and starts the plugin. While it does not start, everything
// is held back.
func NewScanner(c Config, pinned []Finding) (*Scanner, error) {
	if !nameForm.MatchString(c.Name) {
		return nil, fmt.Errorf("plugin %q: a name is a lower-case letter, then letters, digits or _", c.Name)
	}
	if len(pinned) == 0 {
		return nil, fmt.Errorf("plugin %s: a scanner has findings", c.Name)
	}
	var ids []string
	for _, f := range pinned {
		if !nameForm.MatchString(f.ID) || f.Reason == "" || slices.Contains(ids, f.ID) {
			return nil, fmt.Errorf("plugin %s: finding %q: an id of its own and a reason", c.Name, f.ID)
		}
		ids = append(ids, f.ID)
	}
	s, err := newSupervisor(c, plugin.KindScanner, func(ctx context.Context, conn *grpc.ClientConn) error {
		d, err := pluginpb.NewScannerClient(conn).Describe(ctx, &pluginpb.DescribeRequest{})
		if err != nil {
			return fmt.Errorf("it does not describe itself: %w", quoted(err))
		}
		if got := d.GetFindings(); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(ids))) {
			return fmt.Errorf("%w: its findings differ", ErrPinned)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", c.Name, err)
	}
	_, _ = s.get() // what is wrong is in the log
	return &Scanner{s: s, pinned: pinned}, nil
}

// Close ends the plugin.
func (x *Scanner) Close() error { return x.s.Close() }

// Scanners are all of them as one: each has to let a thing pass.
type Scanners []*Scanner

// Out holds frozen bytes back if a scanner finds something in them, or cannot look.
func (l Scanners) Out(ctx context.Context, p connectors.Plan) (label.Set, *abi.Denial) {
	for _, x := range l {
		q := &pluginpb.ScanRequest{Direction: pluginpb.Direction_DIRECTION_OUT, Kind: p.Frozen.Kind(), Destination: p.Destination, Content: content(p.Frozen)}
		if d := x.scan(ctx, q); d != nil {
			return label.Clean(), d
		}
	}
	return label.Clean(), nil
}

// In gives the strictest label to a reply in which a scanner finds something, or at
// which it cannot look: the guest may see it and send it nowhere.
func (l Scanners) In(ctx context.Context, reply []byte) label.Set {
	for _, x := range l {
		if x.scan(ctx, &pluginpb.ScanRequest{Direction: pluginpb.Direction_DIRECTION_IN, Content: reply}) != nil {
			return label.Set{}
		}
	}
	return label.Clean()
}

func (x *Scanner) scan(ctx context.Context, q *pluginpb.ScanRequest) *abi.Denial {
	if len(q.GetContent()) > MaxContent {
		return abi.Deny(abi.Scan, "it is too large for the scanner "+x.s.Name, "send less")
	}
	var reply *pluginpb.ScanReply
	denial := x.s.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, err = pluginpb.NewScannerClient(conn).Scan(ctx, q)
		return err
	})
	if denial != nil {
		return abi.Deny(abi.Scan, "the scanner "+x.s.Name+" could not look, and nothing passes unseen", "try again later, or tell the operator")
	}
	if reply.GetFinding() == "" {
		return nil
	}
	for _, f := range x.pinned {
		if f.ID == reply.GetFinding() {
			return abi.Deny(abi.Scan, x.s.Name+": "+f.Reason, "leave it out")
		}
	}
	x.s.Alarm("it answered with a finding that is not pinned")
	return abi.Deny(abi.Scan, "the scanner "+x.s.Name+" found something that has no name", "tell the operator")
}

// content is what a scanner is shown of frozen bytes: everything that would leave, in
// order, as it is.
func content(f connectors.Frozen) []byte {
	var b bytes.Buffer
	switch {
	case f.HTTP != nil:
		fmt.Fprintf(&b, "%s %s\n", f.HTTP.Method, f.HTTP.URL)
		for _, h := range f.HTTP.Header {
			fmt.Fprintf(&b, "%s: %s\n", h.Name, h.Value)
		}
		b.WriteByte('\n')
		b.Write(f.HTTP.Body)
	case f.SMTP != nil:
		fmt.Fprintf(&b, "%s\n%q\n\n%s", f.SMTP.From, f.SMTP.To, f.SMTP.Data)
	case f.Maildir != nil:
		fmt.Fprintf(&b, "%s\n%q\n\n%s", f.Maildir.From, f.Maildir.To, f.Maildir.Data)
	case f.FileRead != nil:
		fmt.Fprintf(&b, "%s/%s", f.FileRead.Folder, f.FileRead.Path)
	case f.FileList != nil:
		fmt.Fprintf(&b, "%s/%s", f.FileList.Folder, f.FileList.Path)
	case f.Find != nil:
		fmt.Fprintf(&b, "%s/%s", f.Find.Folder, f.Find.Unique)
	}
	return b.Bytes()
}
