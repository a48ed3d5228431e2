// Package mxtest is a name service for tests: made of one struct of records (Records), or on a socket (Serve).
package mxtest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"postroad/delivery/mx"
)

// Records answer lookups. Names are in lower case without a dot at the end.
// A name that no field holds does not exist.
type Records struct {
	MX    map[string][]mx.MX
	Hosts map[string][]string // addresses; empty: the name exists without them
	Fail  map[string]error    // lookups of these names fail
	Alias map[string]string   // canonical names of hosts that are aliases; Hosts has their addresses too

	Secure map[string]bool // names whose records DNSSEC proves
}

var _ mx.Resolver = Records{}

// LookupMX implements mx.Resolver.
func (r Records) LookupMX(ctx context.Context, domain string) (mx.MXAnswer, error) {
	domain, err := r.find(ctx, domain)
	if err != nil {
		return mx.MXAnswer{}, err
	}
	return mx.MXAnswer{Records: r.MX[domain], IsSecure: r.Secure[domain]}, nil
}

// LookupHost implements mx.Resolver.
func (r Records) LookupHost(ctx context.Context, host string) (mx.HostAnswer, error) {
	host, err := r.find(ctx, host)
	if err != nil {
		return mx.HostAnswer{}, err
	}
	out := mx.HostAnswer{Canonical: host}
	if alias := r.Alias[host]; alias != "" {
		out.Canonical = alias
	}
	for _, s := range r.Hosts[host] {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return mx.HostAnswer{}, fmt.Errorf("address of %s: %w", host, err)
		}
		out.Addrs = append(out.Addrs, mx.Address{Addr: addr, IsSecure: r.Secure[host]})
	}
	return out, nil
}

func (r Records) find(ctx context.Context, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if err := r.Fail[name]; err != nil {
		return "", err
	}
	_, hasMX := r.MX[name]
	_, hasHost := r.Hosts[name]
	if !hasMX && !hasHost {
		return "", fmt.Errorf("look up %s: %w", name, mx.ErrNoName)
	}
	return name, nil
}
