package egress_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/store/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Main()
	os.Exit(m.Run())
}

// A message that was said to be delivered is there after a power cut, whole and once, also
// when the attempt that delivered it ended before it was synced.
func TestRootADeliveredMessageLasts(t *testing.T) {
	const text = "Subject: x\r\n\r\nbody\r\n"
	p := connectors.Plan{
		Resources: []string{"mail:a@example.com"}, Destination: "maildir:out", Audience: []string{"mail:a@example.com"},
		Frozen: connectors.Frozen{Maildir: &connectors.Maildir{Folder: "out", Unique: "1.k.monroe", From: "f@example.com", To: []string{"a@example.com"}, Data: []byte(text)}},
	}
	disk, empty := faultfs.Start(t), t.TempDir()
	deliver := func(dir string) bool {
		e := open(t, egress.Config{Maildirs: map[string]string{"out": filepath.Join(dir, "mail", "box")}}, &scripted{op: operation(abi.EffectSend), plan: planned(p)})
		return e.Perform(t.Context(), permitFor(t, p), doIt, p, nil).Denial == nil
	}
	for what, rule := range map[string]faultfs.Rule{
		"cut": {Cut: true}, "cut, names last": {Cut: true, Names: true},
		"cut off": {Errno: syscall.EIO}, // and delivered once more before the cut
	} {
		for rule.At = 1; ; rule.At++ {
			disk.Format(empty)
			dir := disk.Mount()
			disk.Inject(rule)
			said, when := deliver(dir), what+" at "+disk.Hit()
			end := disk.Hit() == ""
			if !rule.Cut {
				disk.Inject(faultfs.Rule{})
				if said = deliver(dir); !said {
					t.Fatalf("%s: it is not delivered any more", when)
				}
			}
			disk.Cut()
			disk.Unmount()
			dir = disk.Mount()
			got, err := os.ReadFile(filepath.Join(dir, "mail/box/new/1.k.monroe"))
			if (said || !errors.Is(err, fs.ErrNotExist)) && string(got) != text {
				t.Errorf("%s: said %v: %q, %v", when, said, got, err)
			}
			if !deliver(dir) {
				t.Errorf("%s: it cannot be delivered any more", when)
			}
			if list, err := os.ReadDir(filepath.Join(dir, "mail/box/new")); err != nil || len(list) != 1 {
				t.Errorf("%s: %d messages, %v", when, len(list), err)
			}
			disk.Unmount()
			if end {
				break
			}
		}
		if rule.At < 15 {
			t.Errorf("%s: only %d points", what, rule.At)
		}
	}
}
