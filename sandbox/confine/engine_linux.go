//go:build !cgo

package confine

// engine is what this build needs beyond base.
var engine [0]rule

// stray are calls that this build may make by itself.
var stray [0]uint32
