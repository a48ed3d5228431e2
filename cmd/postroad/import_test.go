package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postroad/cmd/internal/config"
)

// TestS4_25_ImportEximRelay: what comes out is a configuration that is good as it is and says the same; no password is in it.
func TestS4_25_ImportEximRelay(t *testing.T) {
	const all = `HOSTNAME=relay.example.org
# a comment
SMARTHOST=smtp.provider.example::587
SMTP_USERNAME=relay@example.org
SMTP_PASSWORD="very secret"
LOCAL_DOMAINS=@ : local.example.org
RELAY_FROM_HOSTS=10.0.0.0/8:192.0.2.7:2001::db8::::/32:client.example.org
RELAY_TO_DOMAINS=example.org:*.example.net
RELAY_TO_USERS=bob@example.com
`
	for _, tt := range []struct{ name, env, allowed, via, tls, auth, networks, note string }{
		{"all", all, "[@example.org .example.net bob@example.com]", "smtp:[smtp.provider.example]:587", "verify", "smarthost",
			"[127.0.0.0/8 ::1/128 10.0.0.0/8 192.0.2.7/32 2001:db8::/32]", `Not taken over: RELAY_FROM_HOSTS "client.example.org"`},
		{"little", "HOSTNAME=relay.example.org\nRELAY_FROM_HOSTS=<; 10.0.0.0/8; 2001:db8::/32\nRELAY_TO_DOMAINS=*\n", "[]", "mx", "encrypt", "",
			"[127.0.0.0/8 ::1/128 10.0.0.0/8 2001:db8::/32]", "refuse_null_mx"},
		{"without login", "HOSTNAME=relay.example.org\nSMARTHOST=smtp.provider.example\nDISABLE_SENDER_VERIFICATION=1\n", "[]", "smtp:[smtp.provider.example]:25", "encrypt", "",
			"[127.0.0.0/8 ::1/128]", ""},
	} {
		t.Run("S4-25 "+tt.name, func(t *testing.T) {
			status, out, errs := command(t, "import", "exim-relay-env", writeFile(t, filepath.Join(shortDir(t), "env"), tt.env))
			if status != 0 {
				t.Fatalf("got status %d: %s", status, errs)
			}
			c, err := config.Parse("imported", []byte(out))
			if err != nil {
				t.Fatalf("%v in\n%s", err, out)
			}
			last := c.Delivery.Routes[len(c.Delivery.Routes)-1]
			if c.Hostname != "relay.example.org" || fmt.Sprint(c.Ingress.AllowedRecipients) != tt.allowed || fmt.Sprint(c.Ingress.Listeners[0].TrustedNetworks) != tt.networks {
				t.Errorf("got %s", out)
			}
			if last.Via != tt.via || string(last.TLS) != tt.tls || last.Auth != tt.auth {
				t.Errorf("got route %+v", last)
			}
			if strings.Contains(out, "very secret") || !strings.Contains(out, tt.note) {
				t.Errorf("a password, or no %q, in\n%s", tt.note, out)
			}
			if tt.name == "all" && (len(c.Delivery.Routes) != 3 || c.Delivery.Routes[0].Domains[0] != "relay.example.org" || c.Delivery.Routes[1].Domains[0] != "local.example.org") {
				t.Errorf("got routes %+v", c.Delivery.Routes)
			}
		})
	}
	for _, name := range eximSettings {
		t.Setenv(name, "")
	}
	t.Setenv("HOSTNAME", "relay.example.org")
	t.Setenv("SMARTHOST", "not a host")
	if status, out, errs := command(t, "import", "exim-relay-env"); status != exitUsage || out != "" || !strings.Contains(errs, "not a host") {
		t.Errorf("got status %d: %s%s", status, out, errs)
	}
	if status, _, errs := command(t, "import", "exim-relay-env", filepath.Join(os.TempDir(), "no such file")); status != exitUsage || errs == "" {
		t.Errorf("no file: got status %d: %s", status, errs)
	}
}
