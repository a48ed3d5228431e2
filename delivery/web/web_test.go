package web

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func lookup(addrs ...string) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "fails.test" {
			return nil, errors.New("SERVFAIL")
		}
		var out []netip.Addr
		for _, a := range addrs {
			out = append(out, netip.MustParseAddr(a))
		}
		return out, nil
	}
}

func public(a netip.Addr) bool { return !a.IsPrivate() && !a.IsLoopback() }

// Row E5-70: never to private addresses, whatever the name service says of a stranger's host.
func TestE5_70_PrivateAddressesRefused(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		addrs     []string
		dialled   string
		want      string
	}{
		{"private", "https://a.test/", []string{"10.0.0.1", "127.0.0.1", "::ffff:127.0.0.1"}, "", ErrPrivate.Error()},
		{"private first", "https://a.test/", []string{"10.0.0.1", "192.0.2.1"}, "192.0.2.1:443", "refused"},
		{"private as a number", "https://127.0.0.1/", nil, "", ErrPrivate.Error()},
		{"no address", "https://a.test/", nil, "", "no address"},
		{"name service fails", "https://fails.test/", nil, "", "SERVFAIL"},
		{"not more than four", "https://a.test/", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"}, "192.0.2.1:443 192.0.2.2:443 192.0.2.3:443 192.0.2.4:443", "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dialled []string
			c := NewClient(Options{Lookup: lookup(tt.addrs...), Dialable: public, Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
				dialled = append(dialled, addr)
				return nil, errors.New("refused")
			}})
			_, err := c.Get(tt.url)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Join(dialled, " ") != tt.dialled {
				t.Errorf("got %v after %q", err, dialled)
			}
		})
	}
}

func TestE5_70_NoRedirectsAndBoundedTime(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-release
		default:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	defer server.Close()
	defer close(release)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	o := Options{Lookup: lookup("127.0.0.1"), AllowPrivate: true, Roots: roots, Timeout: time.Minute}
	c := NewClient(o)
	o.Timeout = 300 * time.Millisecond
	hasty := NewClient(o)
	base := "https://example.com" + server.Listener.Addr().String()[len("127.0.0.1"):]
	res, err := c.Get(base + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusFound {
		t.Errorf("got %s, want the redirect itself", res.Status)
	}
	if _, err := hasty.Get(base + "/slow"); err == nil {
		t.Error("slow: got an answer")
	}
	if _, err := NewClient(Options{Lookup: lookup("127.0.0.1"), AllowPrivate: true}).Get(base + "/"); err == nil {
		t.Error("certificate of nobody we trust: got an answer")
	}
}
