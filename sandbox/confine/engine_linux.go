//go:build !cgo

package confine

// engine is what this build needs beyond base.
var engine [0]rule

// stray is what comes of a call for files once a run is sealed: no healthy worker makes one.
const stray = end
