package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postroad/signer/keyring"
)

// TestExplainSigning shows whose signatures a message would bear, for whom, and why.
func TestExplainSigning(t *testing.T) {
	dir := shortDir(t)
	file := writeFile(t, filepath.Join(dir, "c.yaml"), `domain: relay.example.net
data_dir: `+dir+`/data
signer:
  domains:
    - {names: [example.com], clients: [web1, "class:host", 10.0.0.0/8], others: relay, relay_signature: true}
    - {names: [.example.com], clients: ["class:host"], others: hold}
    - {names: [example.org], missing_key: relay, relay_signature: true, only_unsigned: true}
    - {names: [dept.example.net], clients: [10.0.0.0/8]}
`)
	for domain, algorithms := range map[string][]keyring.Algorithm{"example.com": {keyring.RSA, keyring.Ed25519}, "relay.example.net": {keyring.RSA}} {
		for _, algorithm := range algorithms {
			if _, err := keyring.Generate(filepath.Join(dir, "data", "secrets"), domain, strings.TrimSuffix(string(algorithm), "-sha256"), algorithm); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, args := range [][]string{{"client", "add", "web1"}, {"client", "add", "web2", "--class", "host"}, {"client", "add", "jane", "--class", "user"}} {
		if status, _, errs := command(t, append(args, "-c", file)...); status != 0 {
			t.Fatalf("%v: got status %d: %s", args, status, errs)
		}
	}
	both := `  d=example.com s=rsa a=rsa-sha256
  d=example.com s=ed25519 a=ed25519-sha256
  d=relay.example.net s=rsa a=rsa-sha256  (the relay's)
`
	for _, tt := range []struct{ name, from, client, want string }{
		{"nobody in particular", "a@example.com", "", "yes  (signer.domains: example.com)\n  for web1, class:host, 10.0.0.0/8; mail of others: relay\n" + both},
		{"account", "a@example.com", "web1", "yes  (signer.domains: example.com)\n" + both},
		{"class", "a@example.com", "web2", "yes  (signer.domains: example.com)\n" + both},
		{"network", "a@example.com", "net:10.0.0.0/8", "yes  (signer.domains: example.com)\n" + both},
		{"others", "a@example.com", "jane", "yes: jane may not have mail signed by example.com  (signer.domains: example.com)\n" +
			"  d=relay.example.net s=rsa a=rsa-sha256  (the relay's)\n"},
		{"held", "a@news.example.com", "jane", "not yet, it waits in the queue: jane may not have mail signed by news.example.com  (signer.domains: .example.com)\n"},
		{"a class, no key", "a@news.example.com", "", "not yet, it waits in the queue  (signer.domains: .example.com)\n" +
			"  for class:host; mail of others: hold\n  there is no DKIM key of news.example.com\n"},
		{"no key", "a@example.org", "jane", "yes: no DKIM key for example.org  (signer.domains: example.org)\n" +
			"  d=relay.example.net s=rsa a=rsa-sha256  (the relay's)\n  there is no DKIM key of example.org\n" +
			"  mail that bears a DKIM signature already passes as it is\n"},
		{"unsigned", "a@dept.example.net", "jane", "no, it goes out without a signature: jane may not have mail signed by dept.example.net  (signer.domains: dept.example.net)\n"},
		{"nothing names it", "a@free.example", "jane", "not yet, it waits in the queue\n  there is no DKIM key of free.example\n"},
	} {
		args := []string{"explain", "-c", file, tt.from, "bob@there.example"}
		if tt.client != "" {
			args = append(args, "--client", tt.client)
		}
		status, out, errs := command(t, args...)
		if status != 0 || errs != "" {
			t.Errorf("%s: got status %d: %s", tt.name, status, errs)
			continue
		}
		_, got, _ := strings.Cut(out, "\nsigned     ")
		if diff := cmp.Diff(tt.want, strings.ReplaceAll(got, "\n           ", "\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}

	status, out, _ := command(t, "explain", "-c", file, "--json", "a@example.com", "bob@there.example", "--client", "web1")
	var got explanation
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 || got.Signing == nil {
		t.Fatalf("got status %d, %v: %s", status, err, out)
	}
	want := []explainedSignature{{"example.com", "rsa", "rsa-sha256", "author"}, {"example.com", "ed25519", "ed25519-sha256", "author"},
		{"relay.example.net", "rsa", "rsa-sha256", "relay"}}
	if diff := cmp.Diff(want, got.Signing.Signatures); diff != "" || got.Signing.Result != "signed" {
		t.Errorf("%s (-want +got):\n%s", got.Signing.Result, diff)
	}
	if status, out, _ := command(t, "explain", "-c", file, "<>", "bob@there.example"); status != 0 || strings.Contains(out, "\nsigned ") {
		t.Errorf("no sender: got status %d: %s", status, out)
	}
	if status, _, errs := command(t, "explain", "-c", file, "a@example.com", "bob@there.example", "--client", "net:x"); status != 2 || !strings.Contains(errs, "net:10.0.0.0/8") {
		t.Errorf("no network: got status %d: %s", status, errs)
	}
}
