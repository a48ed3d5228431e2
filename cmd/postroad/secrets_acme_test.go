package main

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/dkim/dnstest"
	"postroad/cmd/internal/secrets/acme/fakeacme"
)

// acmeDesks are desks whose configuration publishes records, with an authority that looks for them.
func acmeDesks(t *testing.T, test func(t *testing.T, d *desk, dns *dnstest.Server, ca *fakeacme.Server)) {
	desks(t, func(t *testing.T, d *desk) {
		dns, ca := dnstest.Start(t, "example.com"), fakeacme.New(t)
		ca.Look = dns.Get
		text, err := os.ReadFile(d.file)
		if err != nil {
			t.Fatal(err)
		}
		hook := dns.Hook(t)
		writeFile(t, d.file, fmt.Sprintf("%ssigner: {rotation: {resolvers: [%q], name_server_port: %d, hook: [%s, %s]}}\n", text, dns.Addr(), dns.Port(), hook[0], hook[1]))
		test(t, d, dns, ca)
	})
}

// acme gives the command for tls/relay; it must end with a status.
func (d *desk) acme(status int, ca *fakeacme.Server, args ...string) (stderr string) {
	d.t.Helper()
	_, stderr = d.give(status, append([]string{"secrets", "acme", "relay", "--directory", ca.URL, "--ca", ca.CAFile}, args...)...)
	return stderr
}

// TestS4_10_ACME: a certificate by ACME is stored where listeners read certificates, in a directory and in Vault; it is replaced when it is
// due and not before; what goes wrong changes nothing and leaves nothing behind.
func TestS4_10_ACME(t *testing.T) {
	acmeDesks(t, func(t *testing.T, d *desk, dns *dnstest.Server, ca *fakeacme.Server) {
		first := []string{"--names", "relay.example.com,*.relay.example.com,mx.example.com"}
		mentions(t, d.acme(1, ca, first...), "tls/relay is as it was", "read "+fakeacme.Terms+", then give --accept-terms")
		mentions(t, d.acme(0, ca, append(first, "--dry-run")...), "would prove mx.example.com by a TXT record of _acme-challenge.mx.example.com", "would have a certificate tls/relay issued for relay.example.com, *.relay.example.com, mx.example.com")
		if out, _ := d.give(0, "secrets", "list", "tls"); ca.Count("order") > 0 || out != "" {
			t.Fatal("a dry run has done something")
		}

		mentions(t, d.acme(0, ca, append(first, "--accept-terms")...), "made the account", "tls/relay: new ECDSA P-256 certificate", "all name servers show it")
		leaf, account := d.listed("tls")["relay"], d.listed("acme")
		if strings.Join(leaf.Names, " ") != "relay.example.com *.relay.example.com mx.example.com" || leaf.Problem != "" || len(account) != 1 {
			t.Fatalf("got %+v and accounts %+v", leaf, account)
		}

		// A timer: nothing until it is due.
		orders := ca.Count("order")
		mentions(t, d.acme(0, ca), "is good until", "a new one is due at")
		if got := d.listed("tls")["relay"]; got.Fingerprint != leaf.Fingerprint || ca.Count("order") != orders {
			t.Errorf("a second run has done something: %+v", got)
		}
		ca.Template = func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(59*time.Minute)
		}
		d.acme(0, ca, "--force")
		due := d.listed("tls")["relay"]
		if due.Fingerprint == leaf.Fingerprint || len(due.Names) != 3 {
			t.Errorf("--force has made %+v", due)
		}

		// It is due from now on, and everything goes wrong in turn.
		refuse := func(step, kind string) {
			ca.Fault = func(is string, _ int) *fakeacme.Problem {
				if is != step {
					return nil
				}
				return &fakeacme.Problem{Status: 403, Type: kind, Detail: "because of " + step}
			}
		}
		for step, kind := range map[string]string{"account": "userActionRequired", "order": "rejectedIdentifier", "authz": "unauthorized", "challenge": "dns", "finalize": "caa", "cert": "serverInternal"} {
			refuse(step, kind)
			mentions(t, d.acme(1, ca), "tls/relay is as it was", "the authority says 403 "+kind+": because of "+step)
		}
		ca.Fault, ca.Stranger = nil, true
		mentions(t, d.acme(1, ca), "has a chain in which")
		ca.Stranger = false
		dns.AddServer("ns2.example.com", "127.0.0.3")
		mentions(t, d.acme(1, ca, "--dns-wait", "3s"), "is not at all name servers", "ns2.example.com")
		dns.AddServer("ns2.example.com", "127.0.0.1")
		mentions(t, d.acme(1, ca, "--names", "relay.example.org"), "zone of _acme-challenge.relay.example.org")
		if got := d.listed("tls")["relay"]; got.Fingerprint != due.Fingerprint {
			t.Errorf("a failure has made %+v", got)
		}

		ca.Template = nil
		d.acme(0, ca)
		if got := d.listed("tls")["relay"]; got.Fingerprint == due.Fingerprint || len(got.Names) != 3 {
			t.Errorf("what was due is still %+v", got)
		}
		if got := d.listed("acme"); len(got) != 1 || ca.Count("account") < 2 {
			t.Errorf("got accounts %+v, want the one of before", got)
		}
		for _, name := range []string{"relay", "mx"} {
			if got := dns.Get("_acme-challenge." + name + ".example.com"); got != "" {
				t.Errorf("left in the DNS: %s: %s", name, got)
			}
		}
	})
}

func TestACMERefuses(t *testing.T) {
	d := newDesk(t)
	ca := fakeacme.New(t)
	open := writeFile(t, filepath.Join(t.TempDir(), "open.key"), "a2V5")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                            "give --names",
		"--names a..b":                "no name for a certificate",
		"--names 192.0.2.1":           "is an address",
		"--names a.example,A.example": "named twice",
		"--names a.example --directory http://ca.example": "begins with https://",
		"--names a.example --eab-kid x":                   "go together",
		"--names a.example --dns-wait 0s":                 "must be positive",
		"--names a.example":                               "nobody publishes records in the DNS",
	} {
		_, out, errs := command(t, append([]string{"-c", d.file, "secrets", "acme", "relay", "--directory", ca.URL}, strings.Fields(args)...)...)
		if !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: got %q, want %q", args, errs, want)
		}
	}
	if _, err := (&secretsACMECmd{EABKeyFile: open}).eabKey(); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("got %v for a key that others can read", err)
	}
	for text, want := range map[string]string{"a2V5Lw==\n": "key/", "-_8": "\xfb\xff", "+/8": "\xfb\xff"} {
		file := writeFile(t, filepath.Join(t.TempDir(), "bound.key"), text)
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := (&secretsACMECmd{EABKeyFile: file}).eabKey(); err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}

	// What clients know by the built-in authority stays.
	d.rotate("--ca", "--server-cert", "relay", "--names", "relay.example.com")
	mentions(t, d.acme(1, ca, "--force"), "issued by the built-in authority", "--take-over")
}
