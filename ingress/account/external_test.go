package account

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestExternal(t *testing.T) {
	trusted, foreign := newAuthority(t), newAuthority(t)
	state := func(cert *tls.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{Version: tls.VersionTLS12, PeerCertificates: []*x509.Certificate{cert.Leaf}}
	}
	web1 := state(trusted.certify(t, "web1.example.com"))
	verified := state(foreign.certify(t, "web1.example.com"))
	verified.VerifiedChains = [][]*x509.Certificate{{verified.PeerCertificates[0], foreign.cert}}
	expired := state(trusted.certifyUntil(t, time.Now().Add(-time.Hour), "web1.example.com"))
	pinned := state(foreign.certify(t, "something"))
	pinnedExpired := state(foreign.certifyUntil(t, time.Now().Add(-time.Hour), "something"))
	tests := []struct {
		name     string
		tls      *tls.ConnectionState
		says     string
		want     error
		text     string
		lets     string
		withName bool // there is no authority
	}{
		{"short name from the certificate", web1, "", nil, "", "web1", false},
		{"name given", web1, "web1", nil, "", "web1", false},
		{"name in capitals", web1, "WEB1", nil, "", "web1", false},
		{"full name from the certificate", state(trusted.certify(t, "db.example.com")), "", nil, "", "db.example.com", false},
		{"second name of the certificate", state(trusted.certify(t, "nothing.example.org", "DB.example.com")), "", nil, "", "db.example.com", false},
		{"certificate of another", state(trusted.certify(t, "web2.example.com")), "web1", ErrCredentials, "lists nothing that this certificate shows", "", false},
		{"wildcard", state(trusted.certify(t, "*.example.com")), "web1", ErrCredentials, "lists nothing", "", false},
		{"nobody", state(trusted.certify(t, "nobody.example.com")), "", ErrCredentials, "no account for this certificate", "", false},
		{"unknown name", web1, "nobody", ErrCredentials, "no account for this certificate", "", false},
		{"no name", web1, "../web1", ErrCredentials, "no account for this certificate", "", false},
		{"foreign authority", state(foreign.certify(t, "web1.example.com")), "web1", ErrCredentials, "lists nothing", "", false},
		{"no authority at all", web1, "web1", ErrCredentials, "lists nothing", "", true},
		{"verified by TLS", verified, "web1", nil, "", "web1", true},
		{"expired", expired, "web1", ErrCredentials, "lists nothing", "", false},
		{"fingerprint", pinned, "pinned", nil, "", "pinned", true},
		{"fingerprint without a name", pinned, "", ErrCredentials, "no account for this certificate", "", true},
		{"fingerprint, expired", pinnedExpired, "pinned", ErrCredentials, "lists nothing", "", false},
		{"disabled", state(trusted.certify(t, "disabled.example.com")), "", ErrDisabled, "", "", false},
		{"network", state(trusted.certify(t, "inside.example.com")), "", ErrNetwork, "", "", false},
		{"not UTF-8", web1, "\xff", ErrMalformed, "not UTF-8", "", false},
		{"NUL", web1, "web1\x00", ErrMalformed, "not UTF-8", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBook(t)
			for name, cert := range map[string]Certificate{
				"web1": "web1.example.com", "db.example.com": "db.example.com", "pinned": fingerprint(pinned.PeerCertificates[0]),
				"disabled": "disabled.example.com", "inside": "inside.example.com",
			} {
				b.change(name, func(c *Client) { c.Certificates = []Certificate{"other.example", cert} })
			}
			b.change("pinned", func(c *Client) {
				c.Certificates = append(c.Certificates, fingerprint(pinnedExpired.PeerCertificates[0]))
			})
			a := newAuth(t, b, func(o *Options) {
				o.Delay = time.Millisecond
				if !tt.withName {
					o.ClientCAs = trusted.pool
				}
			})
			peer := from("192.0.2.1")
			peer.TLS = tt.tls
			x, err := a.Begin(External, peer)
			if err != nil {
				t.Fatal(err)
			}
			if challenge, _, err := x.Next(t.Context(), nil); err != nil || len(challenge) != 0 {
				t.Fatalf("got %q, %v, want an empty challenge", challenge, err)
			}
			_, done, err := x.Next(t.Context(), []byte(tt.says))
			if !errors.Is(err, tt.want) || done != (tt.want == nil) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %t, %v, want %v with %q", done, err, tt.want, tt.text)
			}
			if err != nil {
				return
			}
			if id, isNewest := x.Verifier(); x.Client().Name != tt.lets || id != "" || !isNewest {
				t.Errorf("got %s by %q, %t, want %s", x.Client().Name, id, isNewest, tt.lets)
			}
		})
	}
}

// TestExternalOverTLS uses what a real handshake leaves.
func TestExternalOverTLS(t *testing.T) {
	trusted := newAuthority(t)
	server, _ := tlsPair(t, tls.VersionTLS13, trusted.certify(t, "web1.example.com"))
	b := newBook(t)
	a := newAuth(t, b, func(o *Options) { o.ClientCAs = trusted.pool })
	b.lag()
	b.change("web1", func(c *Client) { c.Certificates = []Certificate{"web1.example.com"} }) // good at once
	peer := from("192.0.2.1")
	peer.TLS = server
	x, err := a.Begin(External, peer)
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := x.Next(t.Context(), []byte{}); !done || err != nil || x.Client().Name != "web1" {
		t.Errorf("got %t, %v", done, err)
	}
}

// TestExternalUnavailable: when nothing is known, nothing is refused.
func TestExternalUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trusted := newAuthority(t)
		b := newBook(t)
		b.fail(ErrUnavailable)
		a := newAuth(t, b, func(o *Options) { o.ClientCAs = trusted.pool })
		peer := from("192.0.2.1")
		peer.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{trusted.certify(t, "web1.example.com").Leaf}}
		x, err := a.Begin(External, peer)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.Next(t.Context(), []byte{}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrCredentials) {
			t.Errorf("got %v, want %v", err, ErrUnavailable)
		}
	})
}
