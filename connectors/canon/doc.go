// Package canon has the one form of paths, URLs and mail addresses.
//
// Laws, each with a test of the same name:
//
//  1. It refuses and does not repair: what two readers could understand differently
//     has no form here.
//  2. A form is its own form: applying a function twice changes nothing.
//  3. A path in its form stays below its folder, and a URL in its form is what the
//     HTTP library writes.
//
// It knows text. It must not know files, networks, grants or operations.
package canon
