package source

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"postroad/delivery/mx"
	"postroad/delivery/spf"
)

// Verdict is what one look came to.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Bad     Verdict = "bad"
	Unknown Verdict = "unknown" // the name service failed
)

// Finding is one thing that a receiver looks at.
type Finding struct {
	Source  string  `json:"source,omitempty"`  // empty: the system's choice, or the domain
	Address string  `json:"address,omitempty"` // empty for what is about the domain
	Check   string  `json:"check"`             // ptr, forward, ehlo, spf, dmarc
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`         // what was found
	Do      string  `json:"do,omitempty"` // what to do about it
}

// Names is the name service as Check asks it; *mx.DNS is one.
type Names = spf.Resolver

// Check looks at a source as receivers do: each address has a name in reverse DNS that leads back to it (RFC 8601 §2.7.3, "iprev"), the
// name is that of EHLO, and the SPF record of each domain lets the address send. addrs are checked beside the source's own.
func Check(ctx context.Context, r Names, s Source, domains []string, addrs ...netip.Addr) []Finding {
	var list []Finding
	for _, addr := range slices.Concat(s.addrs(), addrs) {
		found := checkAddr(ctx, r, s.Hostname, addr)
		for _, domain := range domains {
			found = append(found, checkSPF(ctx, r, addr, domain))
		}
		for _, f := range found {
			f.Source, f.Address = s.Name, addr.String()
			list = append(list, f)
		}
	}
	return list
}

func checkAddr(ctx context.Context, r Names, hostname string, addr netip.Addr) []Finding {
	names, err := r.LookupAddr(ctx, addr)
	switch {
	case err != nil && !errors.Is(err, mx.ErrNoName):
		return []Finding{unknown("ptr", err)}
	case len(names) == 0:
		return []Finding{{Check: "ptr", Verdict: Bad, Text: "the address has no name", Do: fmt.Sprintf("have a PTR record made that names %s; the owner of the network can", hostname)}}
	}
	list := []Finding{{Check: "ptr", Verdict: Good, Text: strings.Join(names, ", ")}, checkForward(ctx, r, names, addr)}
	return append(list, checkHello(ctx, r, hostname, names, addr))
}

// maxPTR bounds the names of an address that are looked at, as receivers do.
const maxPTR = 10

// checkForward looks whether a name of the address leads back to it.
func checkForward(ctx context.Context, r Names, names []string, addr netip.Addr) Finding {
	var trouble error
	for _, name := range names[:min(len(names), maxPTR)] {
		is, err := leadsTo(ctx, r, name, addr)
		if is {
			return Finding{Check: "forward", Verdict: Good, Text: fmt.Sprintf("%s has the address", name)}
		}
		if err != nil {
			trouble = err
		}
	}
	if trouble != nil {
		return unknown("forward", trouble)
	}
	return Finding{Check: "forward", Verdict: Bad, Text: "no name of the address leads back to it", Do: fmt.Sprintf("give %s an address record %s", names[0], addr)}
}

// checkHello looks whether the name in EHLO is a name of the address, and leads to it.
func checkHello(ctx context.Context, r Names, hostname string, names []string, addr netip.Addr) Finding {
	if !slices.Contains(names, hostname) {
		return Finding{Check: "ehlo", Verdict: Bad, Text: fmt.Sprintf("EHLO says %s, which is not the name of the address", hostname),
			Do: fmt.Sprintf("set ehlo of the source to %s, or have the PTR record changed to %s", names[0], hostname)}
	}
	is, err := leadsTo(ctx, r, hostname, addr)
	switch {
	case err != nil:
		return unknown("ehlo", err)
	case !is:
		return Finding{Check: "ehlo", Verdict: Bad, Text: fmt.Sprintf("EHLO says %s, which does not have the address", hostname), Do: fmt.Sprintf("give %s an address record %s", hostname, addr)}
	}
	return Finding{Check: "ehlo", Verdict: Good, Text: hostname}
}

// leadsTo reports that a name has an address. A name that does not exist has none.
func leadsTo(ctx context.Context, r Names, name string, addr netip.Addr) (bool, error) {
	answer, err := r.LookupHost(ctx, name)
	if err != nil && !errors.Is(err, mx.ErrNoName) {
		return false, err
	}
	return slices.ContainsFunc(answer.Addrs, func(a mx.Address) bool { return a.Unmap() == addr.Unmap() }), nil
}

func checkSPF(ctx context.Context, r Names, addr netip.Addr, domain string) Finding {
	result, err := spf.Check(ctx, r, addr, domain)
	f := Finding{Check: "spf", Verdict: Good, Text: fmt.Sprintf("%s: %s", domain, result)}
	if err != nil {
		f.Text += ": " + err.Error()
	}
	prefix := "ip6:"
	if addr.Is4() {
		prefix = "ip4:"
	}
	switch result {
	case spf.Pass:
	case spf.TempError:
		f.Verdict = Unknown
	case spf.None:
		f.Verdict, f.Do = Bad, fmt.Sprintf("publish a TXT record of %s such as: v=spf1 %s%s -all", domain, prefix, addr)
	case spf.PermError:
		f.Verdict, f.Do = Bad, fmt.Sprintf("correct the SPF record of %s", domain)
	default:
		f.Verdict, f.Do = Bad, fmt.Sprintf("add %s%s to the SPF record of %s", prefix, addr, domain)
	}
	return f
}

// CheckDMARC looks whether a domain, or one that it is below, has a DMARC record (RFC 7489 §6.6.3).
func CheckDMARC(ctx context.Context, r Names, domain string) Finding {
	for name := domain; strings.Contains(name, "."); {
		texts, err := r.LookupTXT(ctx, "_dmarc."+name)
		if err != nil && !errors.Is(err, mx.ErrNoName) {
			return unknown("dmarc", err)
		}
		for _, text := range texts {
			if version, _, _ := strings.Cut(text, ";"); strings.TrimSpace(version) == "v=DMARC1" {
				return Finding{Check: "dmarc", Verdict: Good, Text: fmt.Sprintf("%s: %s", name, text)}
			}
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return Finding{Check: "dmarc", Verdict: Bad, Text: domain + " has no DMARC record",
		Do: fmt.Sprintf("publish a TXT record of _dmarc.%s such as: v=DMARC1; p=none; rua=mailto:postmaster@%s", domain, domain)}
}

func unknown(check string, err error) Finding {
	return Finding{Check: check, Verdict: Unknown, Text: err.Error(), Do: "see that the name servers (delivery.resolvers) answer, and ask again"}
}
