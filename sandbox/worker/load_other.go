//go:build !linux

package worker

import "os"

func readModule(path string) ([]byte, error) { return os.ReadFile(path) }

func heapAhead(int) {}
