//go:build !cgo

package confine

import "github.com/landlock-lsm/go-landlock/landlock"

// secondImage says that this process has put Landlock on itself and become itself again,
// which a build without cgo need not.
func secondImage() bool { return false }

// restrict leaves these places and nothing else. Go's runtime carries it to every thread.
func restrict(_ int, places []place) error {
	rules := make([]landlock.Rule, len(places))
	for i, p := range places {
		rules[i] = landlock.PathAccess(landlock.AccessFSSet(p.access), p.path)
	}
	return landlock.V11.BestEffort().Restrict(rules...)
}
