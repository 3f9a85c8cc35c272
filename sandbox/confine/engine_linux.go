//go:build !cgo

package confine

// engine is what this build needs beyond base.
var engine [0]rule
