//go:build unix && !linux

package storetest

func memory() string { return "" }
