//go:build unix && !linux

package store

// OnNetwork knows no file systems here; guests do not run on this platform either.
func OnNetwork(string) (string, error) { return "", nil }
