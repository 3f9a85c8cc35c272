package conformance

import "slices"

// Vectors are all of them, in their order. The modules are built when they are asked for.
//
// What the answers to ops say (3.5 to 3.12) is held by vectors only as far as a host
// carries requests and replies: the answers depend on a workspace, which is no part of the
// protocol. Where a module is compiled (9.4) is held as far as a host goes on.
func Vectors() []Vector {
	return slices.Concat(moduleVectors(), wasiVectors(), replayVectors(), messageVectors(), admissionVectors(), readVectors(), decideVectors(), versionVectors())
}
