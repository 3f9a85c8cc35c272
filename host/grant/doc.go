// Package grant decides. It is the only place that can make a Permit.
package grant
