//go:build !failpoints

// Package failpoint names the steps of the queue protocol at which a crash test may kill the process, and the faults that
// it may plant. A normal build compiles all of it to nothing; `go build -tags failpoints` arms it by environment.
package failpoint

// Hit marks a named step.
func Hit(string) {}

// Planted reports a deliberate fault, for tests that must see the harness fail.
func Planted(string) bool { return false }
