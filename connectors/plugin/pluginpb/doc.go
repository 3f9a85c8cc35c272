// Package pluginpb is the protocol between the host and plugins, generated from
// plugin.proto by buf with plugins of this machine alone.
package pluginpb

//go:generate ./generate
