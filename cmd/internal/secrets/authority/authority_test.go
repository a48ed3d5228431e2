package authority

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// begun makes an authority and so many successors, a day apart.
func begun(t *testing.T, now time.Time, successors int) []*Authority {
	t.Helper()
	a, err := New(now)
	if err != nil {
		t.Fatal(err)
	}
	list := []*Authority{a}
	for i := range successors {
		if a, err = a.Successor(now.Add(time.Duration(i+1) * 24 * time.Hour)); err != nil {
			t.Fatal(err)
		}
		list = append(list, again(t, a))
	}
	return list
}

// again writes an authority and reads it.
func again(t *testing.T, a *Authority) *Authority {
	t.Helper()
	fields, err := a.Fields()
	if err != nil {
		t.Fatal(err)
	}
	read, err := Parse(fields, true)
	if err != nil {
		t.Fatal(err)
	}
	if !read.Root.Equal(a.Root) || len(read.Previous) != len(a.Previous) || len(read.Cross) != len(a.Cross) {
		t.Fatalf("an authority with %d previous roots came back with %d", len(a.Previous), len(read.Previous))
	}
	return read
}

// handshake speaks TLS with a server that has a pair, as a client that trusts only these roots.
func handshake(t *testing.T, p *Pair, name string, most uint16, trusted ...*x509.Certificate) error {
	t.Helper()
	chain, key, err := p.PEM()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer theirs.Close()
		_ = tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() // the client says what is wrong
	}()
	roots := x509.NewCertPool()
	for _, r := range trusted {
		roots.AddCert(r)
	}
	err = tls.Client(ours, &tls.Config{RootCAs: roots, ServerName: name, MaxVersion: most}).Handshake()
	ours.Close()
	<-served
	return err
}

// TestClientsOfAnyRoot: whoever trusts one of the roots, be it the oldest or the newest, verifies what the newest has issued.
func TestClientsOfAnyRoot(t *testing.T) {
	now := time.Now().Add(-4 * 24 * time.Hour)
	for _, isRSA := range []bool{false, true} {
		list := begun(t, now, 3)
		last := list[len(list)-1]
		p, err := last.Issue(Request{Names: []string{"relay.example.com", "192.0.2.1"}, RSA: isRSA, Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if _, is := p.Leaf.PublicKey.(*rsa.PublicKey); is != isRSA {
			t.Errorf("got a key %T", p.Leaf.PublicKey)
		}
		for i, a := range list {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				for _, name := range []string{"relay.example.com", "192.0.2.1"} {
					if err := handshake(t, p, name, version, a.Root); err != nil {
						t.Errorf("TLS %x for %s with root %d alone: %v", version, name, i, err)
					}
				}
			}
		}
		if err := handshake(t, p, "other.example.com", tls.VersionTLS13, last.Root); err == nil {
			t.Error("another name was accepted")
		}
		stranger := begun(t, now, 0)[0]
		if err := handshake(t, p, "relay.example.com", tls.VersionTLS13, stranger.Root); err == nil {
			t.Error("a root that has nothing to do with it was accepted")
		}
		if err := stranger.Check(p.Chain, time.Now()); err == nil {
			t.Error("Check took a chain of another authority")
		}
		for _, a := range list {
			if !last.HasIssued(p.Leaf) || a != last && a.HasIssued(p.Leaf) {
				t.Error("who has issued it is not told")
			}
		}
	}
}

// TestBeforeTheServerFollows: between the new root and the new certificate of the server, all is as before.
func TestBeforeTheServerFollows(t *testing.T) {
	list := begun(t, time.Now().Add(-24*time.Hour), 1)
	p, err := list[0].Issue(Request{Names: []string{"relay.example.com"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, p, "relay.example.com", tls.VersionTLS13, list[0].Root); err != nil {
		t.Error(err)
	}
	bundle, err := ParseCertificates(list[1].Bundle(time.Now()))
	if err != nil || len(bundle) != 2 || !bundle[0].Equal(list[1].Root) {
		t.Fatalf("got a bundle of %d, %v, want the new root and the old one", len(bundle), err)
	}
	if err := handshake(t, p, "relay.example.com", tls.VersionTLS13, bundle...); err != nil {
		t.Errorf("a client with both roots: %v", err)
	}
	if !list[1].HasIssued(p.Leaf) {
		t.Error("what the root before has issued is not ours any more")
	}
}

func TestLeaf(t *testing.T) {
	now := time.Now()
	a := begun(t, now, 0)[0]
	p, err := a.Issue(Request{Names: []string{"Relay.Example.COM.", "*.bücher.example", "[2001:db8::1]", "192.0.2.1"}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Names(p.Leaf), []string{"relay.example.com", "*.xn--bcher-kva.example", "2001:db8::1", "192.0.2.1"}; !slices.Equal(got, want) {
		t.Errorf("got names %v, want %v", got, want)
	}
	if life := p.Leaf.NotAfter.Sub(p.Leaf.NotBefore); life >= 825*24*time.Hour || life < 824*24*time.Hour {
		t.Errorf("it lives %s, want 825 days", life)
	}
	if _, is := p.Leaf.PublicKey.(*ecdsa.PublicKey); !is || p.Leaf.Subject.CommonName != "relay.example.com" || len(p.Chain) != 1 {
		t.Errorf("got %T for %q, a chain of %d", p.Leaf.PublicKey, p.Leaf.Subject.CommonName, len(p.Chain))
	}
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".example"
	if p, err = a.Issue(Request{Names: []string{long}, Now: now}); err != nil || p.Leaf.VerifyHostname(long) != nil {
		t.Errorf("a name that is too long for a common name: %v", err)
	}
	for _, names := range [][]string{nil, {"a b"}, {"*"}, {"x.*.example"}, {""}} {
		if _, err := a.Issue(Request{Names: names, Now: now}); err == nil {
			t.Errorf("%q: want an error", names)
		}
	}
	alone, err := SelfSigned(Request{Names: []string{"relay.example.com"}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if !IsSelfSigned(alone.Leaf) || IsSelfSigned(p.Leaf) || a.HasIssued(alone.Leaf) {
		t.Error("which one is signed by itself is not told")
	}
	if err := handshake(t, alone, "relay.example.com", tls.VersionTLS13, alone.Leaf); err != nil {
		t.Errorf("a client that knows it: %v", err)
	}
}

// TestEndOfRoots: a leaf ends with its root, an old root leaves the chain when it ends, and an ended one makes nothing any more.
func TestEndOfRoots(t *testing.T) {
	now := time.Now()
	first := begun(t, now, 0)[0]
	late := first.Root.NotAfter.Add(-30 * 24 * time.Hour)
	p, err := first.Issue(Request{Names: []string{"relay.example.com"}, Now: late})
	if err != nil || !p.Leaf.NotAfter.Equal(first.Root.NotAfter) {
		t.Errorf("got an end at %v, %v, want the root's", p.Leaf.NotAfter, err)
	}
	second, err := first.Successor(late)
	if err != nil {
		t.Fatal(err)
	}
	if end := second.Cross[0].NotAfter; !end.Equal(first.Root.NotAfter) {
		t.Errorf("the cross certificate ends at %v, want the end of the old root", end)
	}
	past := first.Root.NotAfter.Add(time.Hour)
	if _, err := first.Successor(past); err == nil {
		t.Error("a root that has ended has a successor")
	}
	if _, err := first.Issue(Request{Names: []string{"relay.example.com"}, Now: past}); err == nil {
		t.Error("a root that has ended issues")
	}
	third, err := second.Successor(past)
	if err != nil {
		t.Fatal(err)
	}
	if len(third.Previous) != 1 || len(third.Cross) != 1 {
		t.Errorf("got %d roots and %d cross certificates, want the first one gone", len(third.Previous), len(third.Cross))
	}
	if n := strings.Count(string(second.Bundle(past)), "BEGIN"); n != 1 {
		t.Errorf("got a bundle of %d, want the ended root gone", n)
	}
}

// TestRootThatAllowsNoOther: one that somebody has brought along cannot vouch for another one, and that is found out before it matters.
func TestRootThatAllowsNoOther(t *testing.T) {
	now := time.Now()
	a := begun(t, now, 0)[0]
	template := rootTemplate(a.Root.SerialNumber, a.Root.Subject, now, now.Add(24*time.Hour))
	template.MaxPathLenZero = true
	root, err := sign(template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	brought := &Authority{Root: root, key: a.key}
	if _, err := brought.Issue(Request{Names: []string{"relay.example.com"}, Now: now}); err != nil {
		t.Errorf("it issues for servers: %v", err)
	}
	if _, err := brought.Successor(now); err == nil || !strings.Contains(err.Error(), "allows 0 authorities") {
		t.Errorf("got %v", err)
	}
}

func TestTooManyRoots(t *testing.T) {
	list := begun(t, time.Now(), maxRoots-1)
	if _, err := list[len(list)-1].Successor(time.Now()); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v, want %v", err, ErrTooMany)
	}
}

func TestParseRefuses(t *testing.T) {
	a := begun(t, time.Now(), 0)[0]
	good, err := a.Fields()
	if err != nil {
		t.Fatal(err)
	}
	other, err := begun(t, time.Now(), 0)[0].Fields()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := SelfSigned(Request{Names: []string{"a.example"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := leaf.PEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ field, value, want string }{
		"no certificate": {FieldCertificate, "", "0 certificates"},
		"two":            {FieldCertificate, good[FieldCertificate] + other[FieldCertificate], "2 certificates"},
		"no root":        {FieldCertificate, string(chain), "may not issue"},
		"broken":         {FieldCertificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"},
		"no key":         {FieldPrivateKey, "", "no private key"},
		"another's key":  {FieldPrivateKey, other[FieldPrivateKey], "not the one"},
		"broken cross":   {FieldCross, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cross"},
	} {
		fields := map[string]string{}
		for k, v := range good {
			fields[k] = v
		}
		fields[tt.field] = tt.value
		if _, err := Parse(fields, true); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	good[FieldPrivateKey] = ""
	if _, err := Parse(good, false); err != nil {
		t.Errorf("without the key, which nobody asked for: %v", err)
	}
}
