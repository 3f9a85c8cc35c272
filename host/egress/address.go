package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ErrAddress is wrapped when an address is not one that may be reached.
var ErrAddress = errors.New("address refused")

// refusedPrefixes are what no request may reach, beside what netip itself knows:
// the IANA special-purpose registries, and the addresses at which clouds answer
// with credentials (those below 169.254 and fc00 are covered by their blocks).
func refusedPrefixes() []string {
	return []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"168.63.129.16/32", // a cloud's host agent
		"2001::/23",        // protocol assignments, Teredo among them
		"2001:db8::/32", "3fff::/20",
		"2002::/16", // 6to4 embeds an IPv4 address and is not in use
	}
}

// checkAddress refuses every address that is not public, in every spelling: IPv4
// inside IPv6 is taken out and judged as IPv4.
func checkAddress(a netip.Addr, own []netip.Addr) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %s is %s", ErrAddress, a, why) }
	if !a.IsValid() || a.Zone() != "" {
		return refuse("not a plain address")
	}
	x := a.Unmap()
	if nat64 := netip.MustParsePrefix("64:ff9b::/96"); x.Is6() && nat64.Contains(x) {
		b := x.As16()
		x = netip.AddrFrom4([4]byte(b[12:]))
	}
	if x.Is6() && !netip.MustParsePrefix("2000::/3").Contains(x) {
		return refuse("not a public address")
	}
	for _, s := range refusedPrefixes() {
		if netip.MustParsePrefix(s).Contains(x) {
			return refuse("not a public address")
		}
	}
	if !x.IsGlobalUnicast() || x.IsPrivate() {
		return refuse("not a public address")
	}
	if slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Unmap().WithZone("") == x }) {
		return refuse("this machine")
	}
	return nil
}
