package approval

import "time"

// Clock says when questions expire: the later of the wall's time and of the time that
// has passed since the Clock was made. So a wall clock that is set back lengthens no
// question's life while the daemon runs, and one that is set forward ends it.
type Clock struct {
	wall  func() time.Time
	start time.Time
}

// NewClock returns a clock over wall, such as time.Now.
func NewClock(wall func() time.Time) *Clock { return &Clock{wall, wall()} }

// Now is the moment that expiry is judged by.
func (c *Clock) Now() time.Time {
	wall := c.wall()
	return later(c.start, wall, wall.Sub(c.start)) // the monotonic readings, where there are any
}

func later(start, wall time.Time, elapsed time.Duration) time.Time {
	if steady := start.Round(0).Add(elapsed); steady.After(wall.Round(0)) {
		return steady
	}
	return wall
}
