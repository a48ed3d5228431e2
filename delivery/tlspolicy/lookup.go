package tlspolicy

import (
	"context"
	"crypto/tls"
	"errors"
	"strconv"

	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
	"postroad/delivery/tlsrpt"
)

// dane puts the host under its TLSA records, if it has any that DNSSEC proves. is: there is nothing left for other policies to say.
func (p *Policies) dane(ctx context.Context, d Domain, h Host, plan *Plan) (is bool, err error) {
	if p.o.Names == nil || p.o.NoDANE || d.isIgnored || !h.SecureMX {
		return false, nil // an insecure MX record proves nothing about its host (RFC 7672 §2.2.1)
	}
	bases, err := p.bases(ctx, h)
	if err != nil {
		plan.policy = tlsrpt.Policy{Type: tlsrpt.TLSA, Domain: h.Name}
		return false, tlsaFailure(h.Name, err)
	}
	for _, base := range bases {
		answer, err := p.o.Names.LookupTLSA(ctx, "_"+strconv.Itoa(int(h.Port))+"._tcp."+base)
		switch {
		case errors.Is(err, mx.ErrNoName):
			continue
		case err != nil:
			plan.policy = tlsrpt.Policy{Type: tlsrpt.TLSA, Domain: base}
			return false, tlsaFailure(base, err) // whoever can spoil the answer must not gain by it (RFC 7672 §2.1.1)
		case !answer.IsSecure || len(answer.Records) == 0:
			continue
		}
		return p.holdTLSA(d, base, answer.Records, plan), nil
	}
	return false, nil
}

// bases are the names under which TLSA records are looked for, in order (RFC 7672 §2.2.2, §2.2.3): that at the end of the aliases, then the
// host's own. Where the address is not proven, a proven alias still leads to the host's own name.
func (p *Policies) bases(ctx context.Context, h Host) ([]string, error) {
	isAlias := h.Canonical != "" && h.Canonical != h.Name
	switch {
	case h.Secure && isAlias:
		return []string{h.Canonical, h.Name}, nil
	case h.Secure:
		return []string{h.Name}, nil
	case !isAlias:
		return nil, nil
	}
	isSecure, err := p.o.Names.LookupAlias(ctx, h.Name)
	if err != nil || !isSecure {
		return nil, err
	}
	return []string{h.Name}, nil
}

func tlsaFailure(name string, err error) *Failure {
	return &Failure{Result: tlsrpt.DNSSECInvalid, Enhanced: "4.4.3", Text: "the TLSA records of " + name + " cannot be looked up", Err: err}
}

// holdTLSA plans for proven records. Where none is usable TLS is a must, but authenticates nobody (RFC 7672 §2.2); is: MTA-STS has
// nothing to add.
func (p *Policies) holdTLSA(d Domain, base string, records []mx.TLSA, plan *Plan) (is bool) {
	plan.Records = records[:min(len(records), maxRecords)]
	plan.ServerName = base
	policy := tlsrpt.Policy{Type: tlsrpt.TLSA, Domain: base}
	for _, r := range plan.Records {
		policy.Strings = append(policy.Strings, recordText(r))
	}
	good := usable(records)
	if len(good) == 0 {
		plan.demand(smtpc.TLSEncrypt)
		plan.Kind = DANEEncrypt
		plan.also = append(plan.also, tlsrpt.Result{Domain: plan.domain, Policy: policy,
			Failure: tlsrpt.Failure{Result: tlsrpt.TLSAInvalid, MX: plan.mx, Reason: "no TLSA record is usable"}})
		plan.ServerName = plan.mx
		return false
	}
	plan.policy, plan.Records = policy, good
	plan.demand(smtpc.TLSVerify)
	plan.Kind = DANE
	names := []string{base}
	if d.IsMX && d.Mail.Domain != base {
		names = append(names, d.Mail.Domain)
	}
	check := daneCheck{records: good, names: names, seen: plan.seen}
	isPinned := !d.IsMX && d.Floor == smtpc.TLSVerify // the operator says whose certificate it is, and nobody's records take his place
	name, roots := plan.mx, plan.roots
	plan.verify = func(state tls.ConnectionState) error {
		if isPinned {
			if err := checkPKIX(state, name, roots); err != nil {
				return err
			}
		}
		return check.verify(state)
	}
	return true
}
