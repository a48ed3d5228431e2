// Package mx finds the hosts that take mail for a domain.
//
// Candidates asks a Resolver and gives the addresses to try, in order: the
// rules of RFC 5321 §5.1 (preference, implicit MX, loops) and RFC 7505 (null
// MX). DNS is the Resolver on the network, with a cache; package mxtest has
// one made of records.
//
//	hosts, err := mx.Candidates(ctx, resolver, "example.net", mx.Options{Self: []string{"relay.example.org"}})
//	for _, h := range hosts { dial h.Name at h.Addr }
//
// Errors are *Error: a code for the report, and permanent only when the DNS
// proved it.
package mx

import (
	"context"
	"net/netip"
	"slices"
)

// MX is one MX record.
type MX struct {
	Host       string // lower case, no dot at the end; "" for the root (null MX)
	Preference uint16
}

// MXAnswer is what the name service says of the MX records of a domain.
type MXAnswer struct {
	Records  []MX
	IsSecure bool // proven by DNSSEC, aliases included; also that there are no records
}

// IsNull reports that the domain takes no mail (RFC 7505 §3). With other records beside it a null MX says nothing.
func (a MXAnswer) IsNull() bool {
	return len(a.Records) > 0 && !slices.ContainsFunc(a.Records, func(m MX) bool { return m.Host != "" })
}

// HostAnswer is what the name service says of the addresses of a host.
type HostAnswer struct {
	Addrs     []Address
	Canonical string // the name at the end of the aliases; the host's own name when there are none
	Trouble   error  // of one family, where the other has addresses: there may be more
}

// Address is one address record.
type Address struct {
	netip.Addr
	IsSecure bool // proven by DNSSEC, aliases included
}

// Resolver looks names up. Aliases are followed. A name that does not exist
// gives ErrNoName; one that exists without such records gives none and no error; any other error is temporary.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) (MXAnswer, error)
	LookupHost(ctx context.Context, host string) (HostAnswer, error) // A and AAAA; an error of one family is one of both unless the other has addresses
}

// Host is one address to try.
type Host struct {
	Name       string // for SNI, logs and limits: the name in the MX record, or the domain of an implicit MX
	Canonical  string // at the end of the aliases of Name: another candidate for TLSA records (RFC 7672 §2.2.2)
	Addr       netip.Addr
	Preference uint16
	Site       string // the site that the domain's whole MX set makes
	SecureMX   bool   // DNSSEC proves the MX set, or that there is none
	Secure     bool   // and this address
}

// Site is the site that hosts, as given by Candidates, belong to.
func Site(hosts []Host) string {
	if len(hosts) == 0 {
		return ""
	}
	return hosts[0].Site
}

// Options of Candidates.
type Options struct {
	Self         []string     // our own host names: they and whatever is not preferred to them are dropped
	SelfAddrs    []netip.Addr // our own addresses, with the same effect
	MaxAddresses int          // default 5
	AllowPrivate bool         // also loopback, link-local and such: for tests and demos
	AllowLiteral bool         // also domains like [192.0.2.1]
	NoIPv4       bool         // there is no source address of this family
	NoIPv6       bool

	// Shuffle puts n equal things into random order; default math/rand/v2.Shuffle.
	Shuffle func(n int, swap func(i, j int))
}
