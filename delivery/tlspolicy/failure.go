package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"postroad/delivery/smtpc"
	"postroad/delivery/tlsrpt"
)

// Failure says in public words why a host cannot be trusted with mail under its policy. It is temporary unless Permanent: what a
// domain publishes may be an attack, or be mended soon.
type Failure struct {
	Result    tlsrpt.ResultType
	Enhanced  string // of the reply that we give for it
	Text      string
	Err       error // the cause; may be nil
	Permanent bool  // REQUIRETLS cannot be had (RFC 8689 §4.2.1)
}

// Error implements error.
func (f *Failure) Error() string {
	if f.Err == nil {
		return f.Text
	}
	return f.Text + ": " + f.Err.Error()
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Code is that of the reply that we give for it.
func (f *Failure) Code() int {
	if f.Permanent {
		return 550
	}
	return 451
}

// certFailure files an error of package x509.
func certFailure(text string, err error) *Failure {
	f := &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: text, Err: err}
	if _, is := errors.AsType[x509.HostnameError](err); is {
		f.Result = tlsrpt.HostMismatch
	} else if _, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		f.Result = tlsrpt.NotTrusted
	} else if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is && invalid.Reason == x509.Expired {
		f.Result = tlsrpt.CertificateExpired
	}
	return f
}

// checkPKIX checks chain, dates and name as browsers do.
func checkPKIX(state tls.ConnectionState, name string, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: "the host has no certificate"}
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name})
	if err != nil {
		return certFailure("the certificate is not valid for "+name, err)
	}
	return nil
}

// failureOf files what a dial came to, for reports. nil: it says nothing about TLS.
func failureOf(err error) *Failure {
	if f, is := errors.AsType[*Failure](err); is {
		return f
	}
	switch {
	case errors.Is(err, smtpc.ErrTLSRequired):
		return &Failure{Result: tlsrpt.NoSTARTTLS, Enhanced: "4.7.4", Text: "the host does not offer STARTTLS", Err: err}
	case errors.Is(err, smtpc.ErrTLSHandshake):
		return &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: "TLS handshake failed", Err: err}
	}
	return nil
}
