package account

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxCandidates bounds the accounts that one certificate can be meant for.
const maxCandidates = 16

// external lets in by client certificate (RFC 4422 appendix A). The response is
// the name of the account; when it is empty, the account is looked for by the
// names in the certificate: whole, and as short host names.
func (t *attempt) external(ctx context.Context, response []byte) ([]byte, step, error) {
	if response == nil {
		return nil, t.external, nil // an empty challenge
	}
	if !utf8.Valid(response) || strings.ContainsRune(string(response), 0) {
		return nil, nil, malformed("not UTF-8")
	}
	t.began = time.Now()
	t.setName(string(response))
	chain := t.peer.TLS.PeerCertificates
	names := []string{t.name}
	if len(response) == 0 {
		names = candidates(chain[0])
	}
	shown := t.certificates(chain)
	reason := fmt.Errorf("%w: there is no account for this certificate", ErrCredentials)
	for _, name := range names {
		t.setName(name)
		v, err := t.look(ctx, t.auth.options.Source.Client)
		if err == nil && !v.admitsCertificate(shown) {
			v, err = t.look(ctx, t.auth.options.Source.Latest)
		}
		switch {
		case err != nil:
			return nil, nil, err
		case v.admitsCertificate(shown):
			t.accept(v, "")
			return nil, nil, nil
		case v.client == nil:
		case v.denied != nil:
			reason = v.denied
		default:
			reason = fmt.Errorf("%w: account %s lists nothing that this certificate shows: %s", ErrCredentials, name, brief(fmt.Sprint(shown)))
		}
	}
	return nil, nil, t.refuse(ctx, reason, false) // nobody guesses certificates
}

// admitsCertificate tells whether one of the certificates that were shown is the
// client's.
func (v *view) admitsCertificate(shown []Certificate) bool {
	return v.client != nil && v.denied == nil &&
		slices.ContainsFunc(v.client.Certificates, func(c Certificate) bool { return slices.Contains(shown, c) })
}

// certificates are all the ways in which a record can name what was shown: by
// fingerprint, and by its DNS names if somebody whom we trust has signed it.
func (t *attempt) certificates(chain []*x509.Certificate) []Certificate {
	leaf, now := chain[0], time.Now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return nil
	}
	shown := []Certificate{fingerprint(leaf)}
	if !t.isTrusted(chain) {
		return shown
	}
	for _, name := range leaf.DNSNames[:min(len(leaf.DNSNames), maxCandidates)] {
		shown = append(shown, Certificate(strings.ToLower(name)))
	}
	return shown
}

// isTrusted tells whether the chain leads to an authority for clients.
func (t *attempt) isTrusted(chain []*x509.Certificate) bool {
	if len(t.peer.TLS.VerifiedChains) > 0 {
		return true
	}
	if t.auth.options.ClientCAs == nil {
		return false
	}
	roots := t.auth.options.ClientCAs()
	if roots == nil {
		return false // not: those of the system
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

// candidates are the accounts that a certificate may be meant for.
func candidates(leaf *x509.Certificate) []string {
	var out []string
	add := func(name string) {
		if clean, ok := CleanName(name); ok && len(out) < maxCandidates && !slices.Contains(out, clean) {
			out = append(out, clean)
		}
	}
	for _, name := range append(slices.Clone(leaf.DNSNames[:min(len(leaf.DNSNames), maxCandidates)]), leaf.Subject.CommonName) {
		add(name)
		short, _, _ := strings.Cut(name, ".")
		add(short)
	}
	return out
}
