//go:build !linux

package runner_test

func serveDisk() {}
