package runner_test

import (
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/runner"
)

// A run that is ended between an attempt and its answer may have done it: neither its
// calls nor its receipt say that nothing left.
func TestAnEndedRunKeepsItsDoubt(t *testing.T) {
	for _, c := range []struct {
		name          string
		course        journal.Course
		before, after string
		says, never   string
	}{
		{"never attempted", journal.Course{}, "waiting", host.NotCarriedOut, "nothing outside the run; 1 not carried out", "doubt"},
		{"attempted", journal.Course{Attempts: 1}, "waiting", string(host.WaitUnknown), "cancelled: 1 in doubt", "nothing"},
		{"a person was asked", journal.Course{Attempts: 1, Unknown: &journal.Doubt{Why: "lost"}}, string(host.WaitUnknown), string(host.WaitUnknown), "cancelled: 1 in doubt", "nothing"},
		{"a person said yes", journal.Course{Attempts: 1, Unknown: &journal.Doubt{Resolution: host.Happened}}, "waiting", "ok", "cancelled: mail.send ×1", "nothing"},
		{"nobody could tell", journal.Course{Attempts: 1, Unknown: &journal.Doubt{Resolution: host.Abandoned}}, "waiting", string(host.WaitUnknown), "cancelled: 1 in doubt", "nothing"},
		{"a person said no", journal.Course{Attempts: 1, Unknown: &journal.Doubt{Resolution: host.DidNotHappen}}, "waiting", host.NotCarriedOut, "nothing outside the run; 1 not carried out", "doubt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := []*journal.Entry{{Ask: &journal.Ask{Operation: "mail.send"}, Course: &c.course}}
			for ended, want := range map[bool]string{false: c.before, true: c.after} {
				if got := broker.Views(list, ended)[0].Outcome; got != want {
					t.Errorf("ended %v: %s, not %s", ended, got, want)
				}
			}
			first, _, _ := strings.Cut(runner.Receipt(list), "\n")
			if !strings.Contains(first, c.says) || strings.Contains(first, c.never) {
				t.Errorf("the receipt says %q", first)
			}
		})
	}
}
