// Package conformance holds hosts and guests to the clauses of abi/SPEC.md.
//
// A vector is a conversation: a module, an input, what the kit answers, and the
// transcript that is owed. A host under test is a process that speaks lines of JSON
// (docs/conformance.md), in whatever language it is written. A guest under test is
// run on such a host, with the kit in the place of whoever answers.
//
// Laws, each with its test:
//
//   - Every clause of the SPEC is named by a vector (TestEveryClause).
//   - What version 1 has it keeps (TestVersionOneKeepsWhatItHas).
//   - Vectors are built by code and are the same bytes on each machine
//     (TestVectorsAreDeterministic).
//   - A host with one wrong line fails (TestLinuxBrokenHosts in cmd/monroe-conformance).
//
// It knows the ABI, the protocol and the modules.
//
// It must not know an engine, this repository's host, or how a host is built.
package conformance
