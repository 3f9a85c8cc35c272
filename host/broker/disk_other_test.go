//go:build !linux

package broker_test

func serveDisk() {}
