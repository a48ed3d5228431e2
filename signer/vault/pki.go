package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CertificateRequest asks a PKI engine for a certificate. The key stays with who
// asks.
type CertificateRequest struct {
	Mount, Role string
	CSR         []byte        // PKCS #10, DER; it bears the names
	TTL         time.Duration // 0: that of the role. The role may allow less
}

// SignCertificate gets a certificate: PEM, the server's first, then each one's
// issuer, without the root, which clients have. What the certificate says is for
// the caller to check. Errors that wrap neither ErrUnavailable nor ErrDenied mean
// that the role does not want it so.
func (c *Client) SignCertificate(ctx context.Context, r CertificateRequest) ([]byte, error) {
	path := strings.Trim(r.Mount, "/") + "/sign/" + r.Role
	const doing = "get certificate from"
	if err := checkPath(path); err != nil || strings.Contains(r.Role, "/") {
		return nil, fmt.Errorf("%s %s: it is no path of a role", doing, brief(path))
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the request: %w", doing, path, err)
	}
	body := map[string]any{
		"csr":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR})),
		"format": "pem",
		// Roles take these from the request itself unless they say otherwise.
		"common_name": csr.Subject.CommonName,
		"alt_names":   strings.Join(csr.DNSNames, ","),
	}
	if r.TTL > 0 {
		body["ttl"] = strconv.FormatInt(int64(r.TTL/time.Second), 10) + "s"
	}
	got, err := c.do(ctx, doing, call{method: http.MethodPut, path: path, body: body})
	if err != nil {
		return nil, err
	}
	var data struct {
		Certificate string   `json:"certificate"`
		Issuer      string   `json:"issuing_ca"`
		Chain       []string `json:"ca_chain"`
	}
	if err := decode(got.Data, &data); err != nil {
		return nil, explain(ctx, doing, path, err)
	}
	if len(data.Chain) == 0 {
		data.Chain = []string{data.Issuer} // an engine whose issuer is a root of its own says only this
	}
	chain, err := certificateChain(data.Certificate, data.Chain)
	if err != nil {
		return nil, explain(ctx, doing, path, fmt.Errorf("%w: %w", errNoAnswer, err))
	}
	return chain, nil
}

// certificateChain puts a certificate and its issuers together, the way that
// leads from one to the next; a root is left out.
func certificateChain(leaf string, issuers []string) ([]byte, error) {
	last, err := parseCertificate(leaf)
	if err != nil {
		return nil, err
	}
	var pool []*x509.Certificate
	for _, text := range issuers {
		if strings.TrimSpace(text) == "" {
			continue
		}
		cert, err := parseCertificate(text)
		if err != nil {
			return nil, err
		}
		pool = append(pool, cert)
	}
	var out bytes.Buffer
	for range 1 + len(pool) {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: last.Raw}); err != nil {
			return nil, err
		}
		next := slices.IndexFunc(pool, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, last.RawIssuer) && !bytes.Equal(c.RawSubject, c.RawIssuer)
		})
		if next < 0 {
			break
		}
		last = pool[next]
	}
	return out.Bytes(), nil
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("what should be a certificate is none")
	}
	return x509.ParseCertificate(block.Bytes)
}
