//go:build !linux

package sandbox

func adviseCode() {}
