package mx

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// TLSA is one TLSA record (RFC 6698 §2.1).
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// TLSAAnswer is what the name service says of the TLSA records of a name.
type TLSAAnswer struct {
	Records  []TLSA
	IsSecure bool // proven by DNSSEC, aliases included; also that there are no records
}

// LookupTLSA gives the TLSA records of a name such as _25._tcp.mx.example.net. Errors are as those of Resolver.
func (d *DNS) LookupTLSA(ctx context.Context, name string) (TLSAAnswer, error) {
	found := d.lookup(ctx, name, dns.TypeTLSA)
	if found.err != nil {
		return TLSAAnswer{}, fmt.Errorf("look up TLSA of %s: %w", name, found.err)
	}
	out := TLSAAnswer{IsSecure: found.secure}
	for _, rr := range found.rrs {
		t, ok := rr.(*dns.TLSA)
		if !ok {
			continue
		}
		data, err := hex.DecodeString(t.Certificate)
		if err != nil {
			continue // the library reads and writes it as hexadecimal digits
		}
		out.Records = append(out.Records, TLSA{Usage: t.Usage, Selector: t.Selector, Matching: t.MatchingType, Data: data})
	}
	return out, nil
}

// LookupAlias reports that a host name is an alias and that DNSSEC proves that, whatever becomes of the name that it leads to (RFC 7672
// §2.2.2). Errors are as those of Resolver.
func (d *DNS) LookupAlias(ctx context.Context, host string) (isSecure bool, err error) {
	found := d.lookup(ctx, host, dns.TypeCNAME)
	if errors.Is(found.err, ErrNoName) {
		return false, nil
	}
	if found.err != nil {
		return false, fmt.Errorf("look up alias %s: %w", host, found.err)
	}
	return found.secure && len(found.rrs) > 0, nil
}
