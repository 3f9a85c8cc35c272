//go:build !cgo

package confine

// engine is what this build needs beyond base.
func engine() []rule { return nil }
