package egress

import (
	"testing"
	"time"
)

// TestEitherClockEndsAnAttempt: a wall that is set back, or a machine that sleeps, gives
// an attempt no time beyond its own.
func TestEitherClockEndsAnAttempt(t *testing.T) {
	end := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		left time.Duration
		wall time.Time
		want bool
	}{
		"in time":                             {time.Second, end.Add(-time.Second), false},
		"at its end":                          {0, end, false},
		"both are past":                       {-time.Second, end.Add(time.Second), true},
		"past, and the wall was set back":     {-time.Second, end.Add(-time.Hour), true},
		"the machine slept":                   {time.Second, end.Add(time.Hour), true},
		"the wall was set forward by so much": {time.Minute, end.Add(time.Nanosecond), true},
	} {
		if got := over(c.left, c.wall, end); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
