package acme

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	requestTimeout = 30 * time.Second
	maxBody        = 1 << 20 // far more than a chain of certificates takes
	maxHeader      = 64 << 10
	maxTries       = 5
	// longestRest is the longest pause between tries of a request that is waited for here. An authority that wants more has a limit.
	longestRest = 10 * time.Second
)

// newHTTP makes a client that no answer can fill or hold.
func newHTTP(caFile string) (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.MaxResponseHeaderBytes = maxHeader
	if caFile != "" {
		text, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("read the authority's root: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read the authority's root: %s has no certificate in PEM", caFile)
		}
		t.TLSClientConfig.RootCAs = roots
	}
	return &http.Client{
		Transport:     bounded{t},
		Timeout:       requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// bounded holds the authority to https and its answers to a size.
type bounded struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("the authority names %s, which is not https", clean(r.URL.Redacted()))
	}
	res, err := b.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if retryAfter(res.Header) <= 0 {
		res.Header.Del("Retry-After") // a time that is over would have the library ask without a pause
	}
	res.Body = &boundedBody{res.Body, maxBody}
	return res, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is larger than %d octets", maxBody)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// pause is how long to wait before a request is tried again; 0: no more.
func pause(n int, _ *http.Request, res *http.Response) time.Duration {
	rest := retryAfter(res.Header)
	switch {
	case n > maxTries || res.StatusCode < http.StatusBadRequest || rest > longestRest:
		return 0
	case res.StatusCode == http.StatusBadRequest: // a nonce that has ended; a new one is there
		return 50 * time.Millisecond
	case rest > 0:
		return rest
	case res.StatusCode == http.StatusTooManyRequests:
		return 0
	}
	return min(time.Second<<(n-1), longestRest)
}

// retryAfter reads the field (RFC 9110 §10.2.3); 0 if there is none.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(n, int(24*time.Hour/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return time.Until(at)
}
