// Command guest is the peer's guest: it asks its host n times to echo 100 bytes.
// The work is in run_wasip1.go, which only builds for WebAssembly.
package main

func main() {}
