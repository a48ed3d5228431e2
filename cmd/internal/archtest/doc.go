// Package archtest has no code. Its tests hold the shape of the whole module: who may import whom, where the big libraries may be
// used, and the marks of every package and file (a package comment, at most 600 lines, no skipped tests).
//
//	go test ./cmd/internal/archtest
//
// A rule that fails names the file, the rule and why there is one. Change a rule only together with the design.
package archtest
