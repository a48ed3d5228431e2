package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/check"
)

// writeCertificate makes a certificate that signs itself.
func writeCertificate(t *testing.T, dir string, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = writeFile(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return cert, writeFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// guarded runs a server with a listener for logins under TLS and one in clear for nobody; it returns the configuration, the certificate and the addresses.
func guarded(t *testing.T) (file, cert, submission, relay string) {
	t.Helper()
	dir := shortDir(t)
	cert, key := writeCertificate(t, dir, "relay.test.example")
	file = writeFile(t, filepath.Join(dir, "postroad.yaml"), fmt.Sprintf(`
hostname: relay.test.example
data_dir: %s
queue: {max_bytes: 128MiB}
ingress:
  listeners:
    - {address: "127.0.0.1:0", tls: starttls, certificates: [{cert: %s, key: %s}], auth: required}
    - {address: "127.0.0.1:0", trusted_networks: []}
signer: {missing_key: pass}
delivery: {routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:1", tls: none, allow_private: true}]}
log: {format: json}
`, dir, cert, key))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	logs := &lockedBuffer{}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"serve", "-c", file}, logs, logs) }()
	t.Cleanup(func() {
		cancel()
		if status := <-ended; status != 0 {
			t.Errorf("serve ended with %d:\n%s", status, logs.String())
		}
	})
	waitFor(t, func() bool { return strings.Contains(logs.String(), `"msg":"ready"`) || len(ended) > 0 })
	var addrs []string
	for line := range strings.SplitSeq(logs.String(), "\n") {
		var l struct{ Msg, Address string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "accepting mail" {
			addrs = append(addrs, l.Address)
		}
	}
	if len(addrs) != 2 {
		t.Fatalf("the log does not tell two addresses:\n%s", logs.String())
	}
	return file, cert, addrs[0], addrs[1]
}

// TestOnBoarding is what a runbook says: a manifest, a test of the access, a test of the refusal.
func TestOnBoarding(t *testing.T) {
	file, cert, submission, relay := guarded(t)
	dir := manifests(t, map[string]string{"a.yaml": "name: grafana\nclass: service\nsenders: ['@from.example']\n---\nname: web1\nnetworks: [192.0.2.0/24]\n"})
	passwords := filepath.Join(t.TempDir(), "passwords")
	if status, _, errs := command(t, "client", "apply", dir, "--passwords-dir", passwords, "-c", file); status != 0 {
		t.Fatalf("got status %d: %s", status, errs)
	}
	writeFile(t, filepath.Join(filepath.Dir(file), "secrets", "clients", "theirs.json"), `{"password": "a long secret of theirs"}`)
	theirs := writeFile(t, filepath.Join(passwords, "theirs"), "a long secret of theirs\n")
	login := "smtp --host " + submission + " --ca " + cert + " --expect-name relay.test.example"
	for _, tt := range []struct {
		args   string
		status int
		want   []string
	}{
		{login + " --user grafana --password-file " + passwords + "/grafana --from a@from.example --send-to b@to.example", 0,
			[]string{" ~> MAIL FROM:<a@from.example>", "good  certificate", "SCRAM-SHA-256-PLUS as grafana", "queued as", "by CN=server, ECDSA P-256"}},
		{login + " --user theirs --password-file " + theirs, 0, []string{"SCRAM-SHA-256-PLUS as theirs"}},
		{login + " --user theirs --mechanism plain --password-file " + theirs, 0, []string{"PLAIN as theirs", "AUTH PLAIN ********"}},
		{login + " --user grafana --password-file " + passwords + "/web1", 1, []string{"BAD   auth", "535 5.7.8", "name or password wrong"}},
		{login + " --user web1 --password-file " + passwords + "/web1 --expect 535", 0, []string{"as expected"}},
		{login + " --user grafana --password-file " + passwords + "/grafana --from x@elsewhere.example", 1, []string{"BAD   mail", "may not send as this sender", "--sender"}},
		{login + " --quit-after helo", 0, []string{"AUTH SCRAM"}},
		{"smtp --host " + submission + " --tls none --from a@b.example", 1, []string{"530 5.7.0 say STARTTLS and log in first", "--tls starttls"}},
		{"smtp --host " + submission, 1, []string{"not for 127.0.0.1, but for relay.test.example", "signed by itself"}},
		{"tls --host " + submission + " --ca " + cert + " --expect-name relay.test.example", 0, []string{"TLS 1.3", "TLS 1.1 and older are refused"}},
		{"tls --host " + submission + " --ca " + cert + " --expect-name relay.test.example --min-left 72h", 1, []string{"BAD   certificate", "ends on"}},
		{"tls --implicit --host " + submission, 1, []string{"does not speak TLS here"}},
		{"relay --host " + relay, 0, []string{"MAIL FROM:<>", "RCPT TO:<postmaster@iana.org>", "550 5.7.1"}},
		{"relay --expect 550 --host " + relay, 0, []string{"as expected"}},
		{"relay --expect 554 --host " + relay, 1, []string{"expected was 554"}},
		{"relay --host " + relay + " --send-to a@to.example --send-to b@to.example", 0, []string{"<a@to.example>: 550", "<b@to.example>: 550"}},
		{"relay --tls starttls --host " + submission, 1, []string{"signed by itself"}},
		{"relay --expect 530 --host " + submission, 0, []string{"as expected"}},
		{"relay --host 127.0.0.1:1", 1, []string{"connection refused"}},
	} {
		status, out, errs := command(t, append([]string{"check"}, strings.Fields(tt.args)...)...)
		if status != tt.status || errs != "" {
			t.Errorf("%s: got status %d, want %d\n%s%s", tt.args, status, tt.status, out, errs)
		}
		mentions(t, out, tt.want...)
		if strings.Contains(out, "secret of theirs") {
			t.Errorf("%s: the password is shown:\n%s", tt.args, out)
		}
	}
	status, out, _ := command(t, "check", "tls", "--json", "--host", submission, "--ca", cert, "--expect-name", "relay.test.example")
	var r check.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 || !r.Good || r.TLS.Version != "TLS 1.3" || len(r.Transcript) == 0 {
		t.Errorf("got status %d, %v, %s", status, err, out)
	}
	t.Setenv("POSTROAD_PASSWORD", "a long secret of theirs")
	if status, out, _ := command(t, append([]string{"check"}, strings.Fields(login+" --user theirs -q")...)...); status != 0 || strings.Contains(out, "EHLO") {
		t.Errorf("got status %d, %s", status, out)
	}
}

func TestCheckErrors(t *testing.T) {
	dir := t.TempDir()
	noCert := writeFile(t, filepath.Join(dir, "none.pem"), "nothing")
	empty := writeFile(t, filepath.Join(dir, "empty"), "\n")
	long := writeFile(t, filepath.Join(dir, "long"), strings.Repeat("x", 5000))
	in, err := os.Open(noCert)
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = in
	t.Cleanup(func() { os.Stdin = before; _ = in.Close() })
	for args, want := range map[string]string{
		"smtp":                                                 "--host",
		"smtp --host a --tls maybe":                            "--tls",
		"smtp --host a --ca " + noCert:                         "holds no certificate",
		"smtp --host a --ca " + dir + "/x":                     "no such file",
		"smtp --host a --cert " + noCert:                       "--cert",
		"smtp --host a --quit-after lunch":                     "no place to stop",
		"smtp --host a --quit-after rcpt":                      "needs --send-to",
		"smtp --host a --expect 55":                            "no reply code",
		"relay --host a --expect x":                            "no reply code",
		"smtp --host a --timeout 0s":                           "--timeout",
		"smtp --host a --user x":                               "POSTROAD_PASSWORD",
		"smtp --host a --user x --password secret":             "unknown flag --password",
		"smtp --host a --user x --password-file " + empty:      "is empty",
		"smtp --host a --user x --password-file " + long:       "longer than",
		"smtp --host a --user x --password-file " + dir + "/x": "no such file",
		"tls --host a --starttls --implicit":                   "exclude each other",
	} {
		status, out, errs := command(t, append([]string{"check"}, strings.Fields(args)...)...)
		if status != 2 || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: got status %d, %q, %q, want 2 and %q", args, status, out, errs, want)
		}
	}
}

func TestSASLEncode(t *testing.T) {
	t.Setenv("POSTROAD_PASSWORD", "secret")
	for args, want := range map[string]string{
		"encode --user web1":                   "AHdlYjEAc2VjcmV0\n",
		"encode --user web1 --mechanism login": "d2ViMQ==\nc2VjcmV0\n",
		"encode --user web1 --json":            `{"mechanism":"PLAIN","responses":["AHdlYjEAc2VjcmV0"]}` + "\n",
	} {
		if status, out, errs := command(t, append([]string{"sasl"}, strings.Fields(args)...)...); status != 0 || out != want {
			t.Errorf("%s: got %d, %q, %s", args, status, out, errs)
		}
	}
}

func TestWithPort(t *testing.T) {
	for host, want := range map[string]string{"a": "a:25", "a:2525": "a:2525", "::1": "[::1]:25", "[::1]": "[::1]:25", "[::1]:26": "[::1]:26", "10.0.0.1": "10.0.0.1:25"} {
		if got := withPort(host, "25"); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}

func TestFirstLine(t *testing.T) {
	in := bytes.NewBufferString("a secret\r\nrest")
	if got, err := firstLine(in); err != nil || got != "a secret" || in.String() != "rest" {
		t.Errorf("got %q, %v, and %q is left", got, err, in)
	}
}
