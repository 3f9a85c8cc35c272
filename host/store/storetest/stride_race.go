//go:build race

package storetest

// Stride leaves out most points; see the other one.
const Stride = 5
