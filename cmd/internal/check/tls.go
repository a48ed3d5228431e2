package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// TLSReport is the connection and what the server showed.
type TLSReport struct {
	Version      string        `json:"version"`
	Cipher       string        `json:"cipher"`
	Group        string        `json:"group,omitempty"` // of the key exchange
	Name         string        `json:"name"`            // that was asked for
	Trusted      bool          `json:"trusted"`
	Certificates []Certificate `json:"certificates"` // the server's own first
}

// Certificate is one of the chain.
type Certificate struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Names       []string  `json:"names,omitempty"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key"`
	Signature   string    `json:"signature"`
	Fingerprint string    `json:"fingerprint"` // sha256: and hexadecimal digits
}

// Bounds of what is reported of a chain.
const (
	maxCertificates = 10
	maxNames        = 50
)

// minRSABits is what everybody takes today.
const minRSABits = 2048

// startTLS changes to TLS where that is asked for (RFC 3207).
func (s *session) startTLS() bool {
	if s.o.TLS != StartTLS {
		return true
	}
	if _, ok := s.ext["STARTTLS"]; !ok {
		s.bad("tls", "the listener has no certificate (tls: none), or somebody in between takes the offer away; --tls implicit for a port like 465, --tls none to go on in clear",
			"the server does not offer STARTTLS")
		return false
	}
	r, err := s.ask("STARTTLS")
	if err != nil {
		return s.broken("tls", err)
	}
	if !r.ok() {
		return s.answered("tls", r, false)
	}
	if s.in.Buffered() > 0 {
		s.dead = true
		s.bad("tls", "somebody in between may put commands of his own into the session", "the server sent text behind its reply to STARTTLS")
		return false
	}
	return s.handshake()
}

// handshake begins TLS and judges what it sees. A certificate that is not good does not end the check: the rest may be of interest.
func (s *session) handshake() bool {
	if err := s.raw.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return s.broken("tls", err)
	}
	conn := tls.Client(s.raw, s.tlsConfig(tls.VersionTLS10, 0))
	if err := conn.Handshake(); err != nil {
		s.dead = true
		text, hint := explainTLS(err, s.timeout)
		s.bad("tls", hint, "%s", text)
		return false
	}
	s.conn, s.isTLS = conn, true
	s.in.Reset(conn)
	state := conn.ConnectionState()
	s.r.TLS = describe(&state, s.o.Name)
	t := s.r.TLS
	s.note(fromCheck, fmt.Sprintf("TLS begins: %s, %s", t.Version, t.Cipher))
	if state.Version < tls.VersionTLS12 {
		s.bad("tls", "RFC 8996: set a minimum of TLS 1.2 at the server", "%s is outdated", t.Version)
	} else {
		s.good("tls", "%s, %s", t.Version, strings.TrimSuffix(t.Cipher+", "+t.Group, ", "))
	}
	faults := s.faultsOf(state.PeerCertificates)
	for _, f := range faults {
		s.bad("certificate", f.hint, "%s", f.text)
	}
	if t.Trusted = len(faults) == 0; t.Trusted {
		leaf := state.PeerCertificates[0]
		s.good("certificate", "for %s, by %s, until %s (%d days)", s.o.Name, clean(leaf.Issuer.String()), leaf.NotAfter.Format(time.DateOnly), days(time.Until(leaf.NotAfter)))
	}
	s.safe = t.Trusted && state.Version >= tls.VersionTLS12
	return true
}

func (s *session) tlsConfig(least, most uint16) *tls.Config {
	c := &tls.Config{MinVersion: least, MaxVersion: most, ServerName: s.o.Name, InsecureSkipVerify: true} // faultsOf looks at it, and says more
	if s.o.Certificate != nil {
		c.Certificates = []tls.Certificate{*s.o.Certificate}
	}
	return c
}

func (s *session) tlsState() (tls.ConnectionState, bool) {
	if conn, ok := s.conn.(*tls.Conn); ok {
		return conn.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

type certificateFault struct{ text, hint string }

// faultsOf finds all that is wrong with a chain.
func (s *session) faultsOf(chain []*x509.Certificate) (faults []certificateFault) {
	add := func(hint, format string, args ...any) {
		faults = append(faults, certificateFault{clean(fmt.Sprintf(format, args...)), hint})
	}
	if len(chain) == 0 {
		add("", "the server showed no certificate")
		return faults
	}
	leaf, now := chain[0], time.Now()
	switch left := leaf.NotAfter.Sub(now); {
	case now.Before(leaf.NotBefore):
		add("is the clock of this machine right?", "not good before %s", leaf.NotBefore.Format(time.DateTime))
	case left <= 0:
		add("renew it; postroad reads the files again by itself", "ended on %s, %d days ago", leaf.NotAfter.Format(time.DateOnly), days(-left))
	case left < s.o.MinLeft:
		add("renew it; postroad reads the files again by itself", "ends on %s, in %d days", leaf.NotAfter.Format(time.DateOnly), days(left))
	}
	if err := leaf.VerifyHostname(s.o.Name); err != nil {
		add("a certificate for the name that clients use, or --expect-name with one of these", "not for %s, but for %s", s.o.Name, namesOf(leaf))
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSABits {
		add("make a new one", "RSA key of %d bits, at least %d are wanted", key.N.BitLen(), minRSABits)
	}
	if err := s.verify(leaf, chain[1:], now); err != nil {
		faults = append(faults, chainFault(err, chain))
	}
	return faults
}

// verify looks at the chain alone: the time of the leaf is judged already.
func (s *session) verify(leaf *x509.Certificate, others []*x509.Certificate, now time.Time) error {
	between := x509.NewCertPool()
	for _, c := range others {
		between.AddCert(c)
	}
	if now.After(leaf.NotAfter) {
		now = leaf.NotAfter
	} else if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: s.o.CAs, Intermediates: between, CurrentTime: now})
	return err
}

func chainFault(err error, chain []*x509.Certificate) certificateFault {
	leaf, last := chain[0], chain[len(chain)-1]
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		return certificateFault{clean(err.Error()), ""}
	}
	if leaf.CheckSignatureFrom(leaf) == nil || leaf.Issuer.String() == leaf.Subject.String() {
		return certificateFault{"signed by itself and by nobody whom this machine trusts", "for a development server give it by --ca FILE"}
	}
	return certificateFault{
		clean(fmt.Sprintf("%s, the end of the chain of %d, is issued by %s, whom this machine does not trust", last.Subject, len(chain), last.Issuer)),
		"give the authority by --ca FILE; or the server leaves out intermediate certificates: its file must hold the whole chain",
	}
}

// describe reports a connection.
func describe(state *tls.ConnectionState, name string) *TLSReport {
	t := &TLSReport{Version: tls.VersionName(state.Version), Cipher: tls.CipherSuiteName(state.CipherSuite), Name: name, Certificates: []Certificate{}}
	if state.CurveID != 0 {
		t.Group = state.CurveID.String()
	}
	for _, c := range state.PeerCertificates[:min(len(state.PeerCertificates), maxCertificates)] {
		sum := sha256.Sum256(c.Raw)
		t.Certificates = append(t.Certificates, Certificate{
			Subject: clean(c.Subject.String()), Issuer: clean(c.Issuer.String()), Names: namesIn(c), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
			Key: keyOf(c), Signature: c.SignatureAlgorithm.String(), Fingerprint: "sha256:" + hex.EncodeToString(sum[:]),
		})
	}
	return t
}

func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}

func namesIn(c *x509.Certificate) []string {
	names := make([]string, 0, len(c.DNSNames)+len(c.IPAddresses))
	for _, n := range c.DNSNames {
		names = append(names, clean(n))
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names[:min(len(names), maxNames)]
}

func namesOf(c *x509.Certificate) string {
	if names := namesIn(c); len(names) > 0 {
		return strings.Join(names, ", ")
	}
	return "no name that counts (only the subject " + c.Subject.String() + ")"
}

func days(d time.Duration) int { return int(d / (24 * time.Hour)) }

// explainTLS says why a handshake failed.
func explainTLS(err error, timeout time.Duration) (text, hint string) {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not speak TLS here", "this port begins in clear: --tls starttls"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "the server refused: " + clean(op.Err.Error()), "no certificate for this name (--expect-name), no protocol version in common, or it wants a client certificate"
	}
	return explain(err, timeout)
}

// oldVersions tries what nobody should offer any more (RFC 8996), by a connection of its own.
func oldVersions(ctx context.Context, o Options) Verdict {
	o.Say, o.Stop = nil, FirstHelo
	s := newSession(o)
	defer s.close()
	v := Verdict{State: Note, Step: "old versions", Text: "could not be tried"}
	if !s.open(ctx) {
		return v
	}
	if o.TLS == StartTLS {
		if !s.dialogue() {
			return v
		}
		if r, err := s.ask("STARTTLS"); err != nil || !r.ok() {
			return v
		}
	}
	if err := s.raw.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return v
	}
	conn := tls.Client(s.raw, s.tlsConfig(tls.VersionTLS10, tls.VersionTLS11))
	if err := conn.Handshake(); errors.Is(err, os.ErrDeadlineExceeded) {
		return v
	} else if err != nil {
		return Verdict{State: Good, Step: "old versions", Text: "TLS 1.1 and older are refused"}
	}
	return Verdict{State: Bad, Step: "old versions", Text: tls.VersionName(conn.ConnectionState().Version) + " is accepted", Hint: "RFC 8996: set a minimum of TLS 1.2 at the server"}
}
