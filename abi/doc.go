// Package abi is what a guest and a host agree on: requests, replies, denials,
// effects, manifests, scopes and limits. SPEC.md in this folder is normative;
// clause numbers in comments refer to it.
//
// It knows the shape of every message and how to read one strictly: a message
// that two readers could understand differently is refused.
//
// It must not know clocks, files, networks or policy. It imports the standard
// library only, so that a third party can build a host or a guest on it.
package abi

// Version is the major version of the ABI. It is part of the import module's
// name, so that a mismatch is visible before linking.
const Version = 1

// ImportModule is the name of the module that a guest imports its four host
// functions from.
const ImportModule = "monroe_v1"

// ManifestSection is the name of the custom section that holds the manifest.
const ManifestSection = "monroe.manifest"
