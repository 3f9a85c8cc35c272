package approval

import (
	"testing"
	"time"
)

// Law 3: neither clock alone can keep a question open.
func TestExpiryIsJudgedByTheLaterOfTwoClocks(t *testing.T) {
	start := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		wall    time.Time
		elapsed time.Duration
		expired bool
	}{
		"both just before":                      {start.Add(Life - time.Second), Life - time.Second, false},
		"both after":                            {start.Add(Life), Life, true},
		"the wall was set back":                 {start.Add(-48 * time.Hour), Life, true},
		"set back, and early":                   {start.Add(-48 * time.Hour), time.Hour, false},
		"the wall was set ahead":                {start.Add(Life), time.Minute, true},
		"the machine slept (no monotonic time)": {start.Add(2 * Life), time.Minute, true},
	} {
		if got := later(start, c.wall, c.elapsed); !got.Before(start.Add(Life)) != c.expired {
			t.Errorf("%s: it is %s", name, got)
		}
	}
	real := NewClock(time.Now)
	if got := real.Now(); time.Until(got).Abs() > time.Minute {
		t.Errorf("the clock says %s", got)
	}
	at := start
	fake := NewClock(func() time.Time { return at })
	if at = start.Add(-time.Hour); !fake.Now().Equal(at) {
		t.Error("a clock without a monotonic reading is taken at its word")
	}
}
