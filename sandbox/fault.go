package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/getmonroe/monroe/abi/wire"
)

// Fault is an error that ends a compilation or a run. Its text may quote the
// guest: whoever shows it escapes it.
type Fault struct {
	Code    wire.FaultCode
	Message string // valid UTF-8, at most maxMessage bytes
}

// maxMessage keeps a fault well within its frame.
const maxMessage = 2 << 10

func (f *Fault) Error() string { return string(f.Code) + ": " + f.Message }

func fault(code wire.FaultCode, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: bound(fmt.Sprintf(format, args...))}
}

// AsFault returns the fault in err's chain, or one with INTERNAL that tells err.
// It returns nil for nil.
func AsFault(err error) *Fault {
	if err == nil {
		return nil
	}
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return fault(wire.FaultInternal, "%v", err)
}

func bound(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage-len("…")] + "…"
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "?")
	}
	return s
}
