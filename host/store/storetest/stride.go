//go:build !race

package storetest

// Stride is how many points a test of all points goes on at a time. The race detector makes
// each five times as slow, so with it most are left out; .ci/gotest has those tests run once
// more, without it and over every point.
const Stride = 1
