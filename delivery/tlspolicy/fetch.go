package tlspolicy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"postroad/delivery/tlsrpt"
)

// fetch gets the policy of a domain (RFC 8461 §3.3). The error is a *Failure.
func (p *Policies) fetch(ctx context.Context, domain string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mta-sts."+domain+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return "", fetchFailure(err)
	}
	req.Header.Set("User-Agent", "postroad")
	res, err := p.web.Do(req)
	if err != nil {
		return "", fetchFailure(err)
	}
	defer res.Body.Close()
	kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch {
	case res.StatusCode != http.StatusOK: // a redirect too
		return "", fetchFailure(fmt.Errorf("the server says %s", res.Status))
	case err != nil || !strings.EqualFold(kind, "text/plain"):
		return "", fetchFailure(fmt.Errorf("content type %.100q, want text/plain", res.Header.Get("Content-Type")))
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxPolicyBytes+1))
	if err != nil {
		return "", fetchFailure(err)
	}
	if len(text) > maxPolicyBytes {
		return "", fetchFailure(errors.New("more than 64 KiB"))
	}
	return string(text), nil
}

func fetchFailure(err error) *Failure {
	f := &Failure{Result: tlsrpt.STSFetchError, Enhanced: "4.7.0", Text: "the MTA-STS policy cannot be fetched", Err: err}
	if _, is := errors.AsType[*tls.CertificateVerificationError](err); is {
		f.Result = tlsrpt.STSWebPKIInvalid
	} else if _, is := errors.AsType[x509.HostnameError](err); is {
		f.Result = tlsrpt.STSWebPKIInvalid
	}
	return f
}
