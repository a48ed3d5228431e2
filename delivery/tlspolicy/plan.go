package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"

	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
	"postroad/delivery/tlsrpt"
)

// Kind is what protects a connection, in a word.
type Kind string

// The kinds.
const (
	None        Kind = "none"         // no TLS is wanted
	May         Kind = "may"          // TLS when it is offered
	Encrypt     Kind = "encrypt"      // TLS, any certificate
	Verify      Kind = "verify"       // TLS, a valid certificate
	DANE        Kind = "dane"         // TLS, authenticated by TLSA records
	DANEEncrypt Kind = "dane-encrypt" // TLS: there are TLSA records, but none that is usable
	STSEnforce  Kind = "sts"          // TLS, a valid certificate of a host that the MTA-STS policy names
	STSTesting  Kind = "sts-testing"  // as the route says; what the policy would have refused is reported
)

// kinds are those of the modes of routes.
var kinds = map[smtpc.TLSMode]Kind{smtpc.TLSNone: None, smtpc.TLSMay: May, smtpc.TLSEncrypt: Encrypt, smtpc.TLSVerify: Verify}

func kindOf(m smtpc.TLSMode) Kind { return kinds[m] }

// Plan is how one host is to be dialled.
type Plan struct {
	Kind       Kind
	Mode       smtpc.TLSMode
	ServerName string // for SNI
	Need       bool   // REQUIRETLS must be offered
	Records    []mx.TLSA

	domain     string
	mx         string
	isSilent   bool
	isImplicit bool // TLS from the first octet
	policy     tlsrpt.Policy
	also       []tlsrpt.Result
	verify     func(tls.ConnectionState) error // nil: any certificate
	isLoose    bool                            // verify reports, and does not refuse
	seen       *verdict
	roots      *x509.CertPool
	sessions   tls.ClientSessionCache
}

// verdict is what a check found that the dial does not tell.
type verdict struct {
	mu        sync.Mutex
	err       error // of a loose check
	forDomain bool  // the certificate has the name of the domain, not of the host
}

func (v *verdict) byDomain(is bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forDomain = is
}

func (v *verdict) set(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err = err
}

func (v *verdict) get() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// demand raises the mode.
func (p *Plan) demand(mode smtpc.TLSMode) {
	if mode > p.Mode {
		p.Mode = mode
		if p.Kind == May || p.Kind == None || p.Kind == Encrypt {
			p.Kind = kindOf(mode)
		}
	}
}

// maxLines bounds what reports say of a policy.
const maxLines = 30

// holdSTS puts the host under an MTA-STS policy (RFC 8461 §5).
func (p *Plan) holdSTS(s *STS) error {
	lines := s.Lines()
	p.policy = tlsrpt.Policy{Type: tlsrpt.STS, Strings: lines[:min(len(lines), maxLines)], Domain: p.domain, MXHosts: s.MX[:min(len(s.MX), maxLines)]}
	isNamed := s.Matches(p.mx)
	mismatch := &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.0", Text: "the MTA-STS policy of " + p.domain + " does not name the host " + p.mx}
	roots, name := p.roots, p.mx
	if s.Mode == Enforce {
		p.demand(smtpc.TLSVerify)
		p.Kind = STSEnforce
		if !isNamed {
			return mismatch
		}
		return nil
	}
	p.Kind = STSTesting
	p.isLoose = true
	p.verify = func(state tls.ConnectionState) error {
		if !isNamed {
			return mismatch
		}
		return checkPKIX(state, name, roots)
	}
	return nil
}

// finish settles who judges the certificate.
func (p *Plan) finish() {
	if p.Mode == smtpc.TLSVerify && (p.verify == nil || p.isLoose) {
		strict, name, roots := p.verify, p.ServerName, p.roots
		loose := p.isLoose
		p.isLoose = false
		seen := p.seen
		p.verify = func(state tls.ConnectionState) error {
			if loose {
				seen.set(strict(state))
			}
			return checkPKIX(state, name, roots)
		}
	}
	if p.isLoose {
		check, seen := p.verify, p.seen
		p.verify = func(state tls.ConnectionState) error {
			seen.set(check(state))
			return nil
		}
	}
}

// Apply sets what a dial needs to know.
func (p *Plan) Apply(o *smtpc.Options) {
	o.TLS, o.ImplicitTLS = p.Mode, p.isImplicit
	o.RequireTLS = p.Need
	o.TLSConfig = &tls.Config{ServerName: p.ServerName, VerifyConnection: p.verify}
	if p.sessions != nil {
		o.Sessions = ownSessions{p.sessions, string(p.Kind) + " " + p.mx + " " + p.domainKey()}
	}
}

// domainKey keeps sessions of domains with policies of their own apart.
func (p *Plan) domainKey() string {
	if p.policy.Type == tlsrpt.NoPolicy {
		return ""
	}
	return p.domain
}

// ownSessions is the part of a cache that holds the sessions with one host under one policy: a session says who the peer was then.
type ownSessions struct {
	tls.ClientSessionCache
	prefix string
}

func (s ownSessions) Get(key string) (*tls.ClientSessionState, bool) {
	return s.ClientSessionCache.Get(s.prefix + " " + key)
}

func (s ownSessions) Put(key string, state *tls.ClientSessionState) {
	s.ClientSessionCache.Put(s.prefix+" "+key, state)
}

// OnlyFor is the domain that a connection made by this plan may be used for; empty: for every one with the same Key.
func (p *Plan) OnlyFor() string {
	p.seen.mu.Lock()
	defer p.seen.mu.Unlock()
	if p.seen.forDomain {
		return p.domain
	}
	return ""
}

// MayFallBack reports that clear text will do where TLS fails (RFC 7435).
func (p *Plan) MayFallBack() bool { return p.Mode == smtpc.TLSMay }

// Refuse says what a failed dial means under this plan, in a *Failure where it is about TLS; other errors come back as they are. With
// REQUIRETLS what the host lacks is final (RFC 8689 §4.2.1); a connection that broke is not.
func (p *Plan) Refuse(err error) error {
	f := failureOf(err)
	switch {
	case p.Need && errors.Is(err, smtpc.ErrNeedRequireTLS):
		return &Failure{Enhanced: "5.7.30", Permanent: true, Text: "the host " + p.mx + " does not offer REQUIRETLS", Err: err}
	case f == nil:
		return err
	case p.Need && isProven(err):
		return &Failure{Result: f.Result, Enhanced: "5.7.30", Permanent: true, Text: "the message needs REQUIRETLS: " + f.Text, Err: err}
	}
	return &Failure{Result: f.Result, Enhanced: f.Enhanced, Text: f.Text, Err: err}
}

// isProven reports a failure that the host has shown, and not the road to it. What it has no TLS for now (454, RFC 3207 §4), it may have
// later.
func isProven(err error) bool {
	if _, isOurs := errors.AsType[*Failure](err); isOurs {
		return true
	}
	said, is := errors.AsType[*smtpc.Error](err)
	return errors.Is(err, smtpc.ErrTLSRequired) && !(is && said.Reply != nil && said.Reply.Code/100 == 4)
}

// Results are what reports say of a dial (RFC 8460 §4.3): state is that of the connection, nil in clear text; err is that of the dial.
// Errors that say nothing about TLS are in no report.
func (p *Plan) Results(state *tls.ConnectionState, err error) []tlsrpt.Result {
	if p.isSilent || p.Mode == smtpc.TLSNone {
		return nil
	}
	var f *Failure
	switch {
	case err != nil:
		if f = failureOf(err); f == nil || f.Result == tlsrpt.OK {
			return nil
		}
	case state == nil:
		f = &Failure{Result: tlsrpt.NoSTARTTLS, Text: "the host does not offer STARTTLS"}
	default:
		if loose := p.seen.get(); loose != nil {
			f = failureOf(loose)
		}
	}
	r := tlsrpt.Result{Domain: p.domain, Policy: p.policy}
	if f != nil {
		r.Failure = tlsrpt.Failure{Result: f.Result, MX: p.mx, Reason: f.Error()}
	}
	return append([]tlsrpt.Result{r}, p.also...)
}

// String is the plan for people: "dane 3 1 1", "sts", "may".
func (p *Plan) String() string {
	if len(p.Records) > 0 {
		return string(p.Kind) + " " + recordKinds(p.Records)
	}
	return string(p.Kind)
}
