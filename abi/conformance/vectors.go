package conformance

import "slices"

// Vectors are all of them, in their order. The modules are built when they are asked for.
func Vectors() []Vector {
	return slices.Concat(moduleVectors(), wasiVectors(), replayVectors(), messageVectors(), admissionVectors(), readVectors())
}

// Untestable are the clauses that no vector names, each with its reason. What the
// answers to ops say (3.5 to 3.12) is held by vectors only as far as a host carries
// requests and replies: the answers depend on a workspace, which is no part of the protocol.
var Untestable = map[string]string{
	"4.2":  "what a manifest gets depends on grants, a ceiling and a person: it is tested at the door (host/broker, host/grant)",
	"9.4":  "where a module is compiled cannot be seen from outside; that a bomb does not occupy a host is in 9.3's vectors",
	"10.2": "it binds later versions of the SPEC",
	"10.3": "it binds later versions of the SPEC",
	"10.4": "it is about these vectors",
}
