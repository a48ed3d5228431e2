package mx

import (
	"net/netip"
	"slices"
)

// metadata are the addresses at which clouds answer with secrets of the
// machine, as far as they are not link-local or private.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("168.63.129.16"),
}

// Ranges that IsGlobalUnicast and IsPrivate let through.
var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")      // RFC 1122 §3.2.1.3
	shared      = netip.MustParsePrefix("100.64.0.0/10")  // RFC 6598
	classE      = netip.MustParsePrefix("240.0.0.0/4")    // RFC 1112 §4
	compatible  = netip.MustParsePrefix("::/96")          // IPv4 in IPv6, given up by RFC 4291 §2.5.5.1
	translated  = netip.MustParsePrefix("64:ff9b::/96")   // IPv4 behind NAT64, RFC 6052 §2.1
	translating = netip.MustParsePrefix("64:ff9b:1::/48") // IPv4 behind a NAT64 of the network's own, RFC 8215
	sixToFour   = netip.MustParsePrefix("2002::/16")      // IPv4 behind its own relay, RFC 3056 §2
	siteLocal   = netip.MustParsePrefix("fec0::/10")      // given up by RFC 3879
)

// Dialable reports an address that a DNS record of a stranger may make us connect to: not loopback, link-local, multicast, private or
// unspecified, none at which a cloud tells secrets, and none that stands for one of these.
func Dialable(addr netip.Addr) bool {
	addr = addr.Unmap()
	if translated.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	} else if sixToFour.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[2:6]))
	}
	for _, p := range []netip.Prefix{thisNetwork, shared, classE, compatible, translating, siteLocal} {
		if p.Contains(addr) {
			return false
		}
	}
	return addr.IsGlobalUnicast() && !addr.IsPrivate() && !slices.Contains(metadata, addr)
}
