package tlspolicy

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"postroad/delivery/mx"
	"postroad/delivery/tlsrpt"
)

// Values of TLSA fields (RFC 6698 §2.1, names of RFC 7218).
const (
	usageTA = 2 // an authority that the chain leads to
	usageEE = 3 // the server's own certificate

	selectorCert = 0 // the whole certificate
	selectorSPKI = 1 // its public key

	matchFull   = 0
	matchSHA256 = 1
	matchSHA512 = 2
)

// maxRecords bounds the TLSA records of one host that are looked at.
const maxRecords = 50

// usable are the records that say something about the certificate of a mail host. Usages 0 and 1 do not (RFC 7672 §3.1.3), nor does
// what is malformed. Of several digests of the same thing the strongest counts (RFC 7671 §9).
func usable(records []mx.TLSA) []mx.TLSA {
	var out []mx.TLSA
	hasSHA512 := make(map[[2]uint8]bool)
	for _, r := range records[:min(len(records), maxRecords)] {
		if !isUsable(r) {
			continue
		}
		out = append(out, r)
		if r.Matching == matchSHA512 {
			hasSHA512[[2]uint8{r.Usage, r.Selector}] = true
		}
	}
	kept := out[:0]
	for _, r := range out {
		if r.Matching != matchSHA256 || !hasSHA512[[2]uint8{r.Usage, r.Selector}] {
			kept = append(kept, r)
		}
	}
	return kept
}

func isUsable(r mx.TLSA) bool {
	if r.Usage != usageTA && r.Usage != usageEE || r.Selector > selectorSPKI {
		return false
	}
	switch r.Matching {
	case matchSHA256:
		return len(r.Data) == sha256.Size
	case matchSHA512:
		return len(r.Data) == sha512.Size
	case matchFull:
		var err error
		if r.Selector == selectorCert {
			_, err = x509.ParseCertificate(r.Data)
		} else {
			_, err = x509.ParsePKIXPublicKey(r.Data)
		}
		return err == nil
	}
	return false
}

// matches holds a certificate against a record.
func matches(cert *x509.Certificate, r mx.TLSA) bool {
	data := cert.Raw
	if r.Selector == selectorSPKI {
		data = cert.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case matchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case matchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return bytes.Equal(data, r.Data)
}

// daneCheck authenticates a host by TLSA records.
type daneCheck struct {
	records []mx.TLSA // usable ones
	names   []string  // reference identifiers (RFC 7672 §3.2.2): the first is the host's, others are the domain's
	seen    *verdict  // learns whether it was the name of the domain that fitted
}

// verify looks for one record that fits. A usage 3 record says all there is to say: neither name nor dates count (RFC 7672 §3.1.1). With
// usage 2 the chain must lead to the authority, be in date, and have one of the names (§3.1.2).
func (d daneCheck) verify(state tls.ConnectionState) error {
	certs := state.PeerCertificates
	if len(certs) == 0 {
		return &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: "the host has no certificate"}
	}
	roots, hasRoot, hasTA := x509.NewCertPool(), false, false
	for _, r := range d.records {
		if r.Usage == usageEE {
			if matches(certs[0], r) {
				return nil
			}
			continue
		}
		hasTA = true
		if r.Selector == selectorCert && r.Matching == matchFull { // need not be sent by the host (RFC 7671 §5.2.2)
			if anchor, err := x509.ParseCertificate(r.Data); err == nil {
				roots.AddCert(anchor)
				hasRoot = true
			}
		}
		for _, c := range certs[1:] {
			if matches(c, r) {
				roots.AddCert(c)
				hasRoot = true
			}
		}
	}
	if !hasTA || !hasRoot {
		return &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: "the certificate does not match the TLSA records"}
	}
	return d.verifyChain(certs, roots)
}

func (d daneCheck) verifyChain(certs []*x509.Certificate, roots *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return certFailure("the certificate does not lead to the authority of the TLSA records", err)
	}
	for i, name := range d.names {
		isCN := len(certs[0].DNSNames) == 0 && strings.EqualFold(certs[0].Subject.CommonName, name) // RFC 7672 §3.2.3
		if isCN || certs[0].VerifyHostname(name) == nil {
			d.seen.byDomain(i > 0)
			return nil
		}
	}
	return &Failure{Result: tlsrpt.HostMismatch, Enhanced: "4.7.5", Text: "the certificate is not for " + strings.Join(d.names, ", ")}
}

// recordText is a record as zone files and reports have it.
func recordText(r mx.TLSA) string {
	return fmt.Sprintf("%d %d %d %s", r.Usage, r.Selector, r.Matching, hex.EncodeToString(r.Data))
}

// recordKinds are the first three fields of the records, each once, for people.
func recordKinds(records []mx.TLSA) string {
	var kinds []string
	seen := make(map[string]bool)
	for _, r := range records {
		kind := fmt.Sprintf("%d %d %d", r.Usage, r.Selector, r.Matching)
		if !seen[kind] {
			seen[kind] = true
			kinds = append(kinds, kind)
		}
	}
	return strings.Join(kinds, ", ")
}
