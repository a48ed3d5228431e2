package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/cmd/internal/dkim/dnstest"
	"postroad/queue"
	"postroad/signer"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

const dkimDomain = "example.com"

// dkimSetup is a configuration without a server, its DNS, and where keys are.
func dkimSetup(t *testing.T) (file string, dns *dnstest.Server, keys *keyring.Dir) {
	t.Helper()
	dns = dnstest.Start(t, dkimDomain)
	dir := shortDir(t)
	secrets := filepath.Join(dir, "secrets")
	if err := os.Mkdir(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	file = writeFile(t, filepath.Join(dir, "c.yaml"), fmt.Sprintf(
		"data_dir: %s/data\nhostname: relay.example.net\nsecrets: {dir: %s}\nsigner: {rotation: {resolvers: [%q], name_server_port: %d}}\n", dir, secrets, dns.Addr(), dns.Port()))
	keys, err := keyring.NewDir(keyring.DirOptions{Path: secrets, Refresh: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	return file, dns, keys
}

// TestDKIMWithoutServer takes a pair into force by hand while no server runs, and looks at it in all ways that there are.
func TestDKIMWithoutServer(t *testing.T) {
	t.Parallel()
	file, dns, keys := dkimSetup(t)
	do := func(status int, want string, args ...string) string {
		t.Helper()
		got, out, errs := command(t, append([]string{"dkim", "-c", file}, args...)...)
		if got != status || !strings.Contains(out+errs, want) {
			t.Errorf("%q: got status %d\n%s%s\nwant %d, %q", args, got, out, errs, status, want)
		}
		if strings.Contains(out+errs, "PRIVATE") {
			t.Errorf("%q prints a private half", args)
		}
		return out
	}
	do(0, "there are no keys", "status")
	do(0, "would make key rsa-", "new", dkimDomain, "--dry-run")
	do(0, "IN TXT", "new", dkimDomain)
	do(0, "generated", "list")
	do(0, "publish, when all authoritative servers", "status", dkimDomain)
	do(0, "v=DKIM1", "dns", dkimDomain)
	do(1, "has no record", "check", dkimDomain)
	do(1, "no key of example.com signs", "test-sign", dkimDomain)
	do(0, "waiting  publish", "rotate", dkimDomain)
	entries, err := keys.Entries(t.Context(), dkimDomain)
	if err != nil {
		t.Fatal(err)
	}
	var rsa string
	for _, e := range entries {
		dns.Set(rotation.Name(dkimDomain, e.Selector), e.Record)
		if e.Algorithm == keyring.RSA {
			rsa = e.Selector
		}
	}
	do(0, "is as it should be", "check", dkimDomain)
	do(0, "pass", "test-sign", dkimDomain, "--selector", rsa)
	do(1, "has no key nothere", "test-sign", dkimDomain, "--selector", "nothere")
	do(0, "published now", "rotate", dkimDomain)
	time.Sleep(1100 * time.Millisecond) // the zone says that "no" may be remembered for a second
	do(0, "is active now", "rotate", dkimDomain)
	if out := do(0, "", "test-sign", dkimDomain); strings.Count(out, "pass ") != 2 {
		t.Errorf("got %s, want that both pass", out)
	}
	do(0, "queued mail is not counted: there is no admin socket", "status")
	out := do(0, "", "status", "--json", "--check", dkimDomain)
	var row keyStatus
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &row); err != nil || row.State != keyring.Active || row.Queued != nil || row.Record == nil || !row.Record.OK() {
		t.Errorf("got %+v, %v of %s", row, err, out)
	}
	if out := do(0, "RECORD", "status", "--check"); strings.Count(out, "  ok  ") < 2 {
		t.Errorf("got %s, want two good records", out)
	}
	do(1, "count queued mail with its signature: there is no admin socket", "retire", dkimDomain, rsa, "--dry-run")
	dns.Set(rotation.Name(dkimDomain, rsa), "v=DKIM1; p=")
	do(0, "says that the key is revoked", "status", "--check")
	do(1, "permerror", "test-sign", dkimDomain)
}

// TestDKIMVerify reads a message from a file.
func TestDKIMVerify(t *testing.T) {
	t.Parallel()
	file, dns, _ := dkimSetup(t)
	key, err := keyring.Make(dkimDomain, "s1", keyring.RSA)
	if err != nil {
		t.Fatal(err)
	}
	dns.Set("s1._domainkey."+dkimDomain, keyring.Record(key))
	text := "From: a@example.com\r\nSubject: x\r\n\r\nhello\r\n"
	fields, err := signer.SignWith(t.Context(), []keyring.Key{key}, strings.NewReader(text), 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, tt := range []struct {
		name, mail string
		status     int
		out, err   string
	}{
		{"good", fields + text, 0, "pass       d=example.com s=s1 a=rsa-sha256\n", ""},
		{"spoilt", fields + text + "more\r\n", 1, "fail       d=example.com s=s1 a=rsa-sha256: the body is not the one that was signed\n", ""},
		{"unsigned", text, 1, "", "bears no DKIM-Signature"},
	} {
		path := writeFile(t, filepath.Join(dir, tt.name), tt.mail)
		status, out, errs := command(t, "dkim", "verify", path, "-c", file)
		if status != tt.status || out != tt.out || !strings.Contains(errs, tt.err) {
			t.Errorf("%s: got status %d, %q, %q", tt.name, status, out, errs)
		}
	}
	if status, out, _ := command(t, "dkim", "verify", filepath.Join(dir, "good"), "-c", file, "--json"); status != 0 || !strings.Contains(out, `"result":"pass"`) {
		t.Errorf("got %d, %q", status, out)
	}
	if status, _, errs := command(t, "dkim", "verify", filepath.Join(dir, "none"), "-c", file); status != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("got %d, %q", status, errs)
	}
}

// TestRevokeWithStaleSigners: by force a key is not revoked while a signer says that it does not reach its source of keys.
func TestRevokeWithStaleSigners(t *testing.T) {
	t.Parallel()
	file, dns, keys := dkimSetup(t)
	for _, selector := range []string{"s1", "s2"} {
		key, err := keyring.Make(dkimDomain, selector, keyring.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		e, err := keys.Create(t.Context(), key, "test")
		if err != nil {
			t.Fatal(err)
		}
		dns.Set(rotation.Name(dkimDomain, selector), e.Record)
		if _, err := keys.Change(t.Context(), e, keyring.Retiring, "test"); err != nil {
			t.Fatal(err)
		}
	}
	nodes := []queue.Node{{Name: "n1", Roles: []string{"ingress"}, Conditions: []queue.Condition{{Part: "secrets", Text: "sealed"}}}, {Name: "n2", Roles: []string{"signer"}}}
	socket := filepath.Join(shortDir(t), "ops.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path != "/v1/nodes" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(nodes)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); wg.Wait() })
	revoke := func(selector string, more ...string) (int, string) {
		status, out, errs := command(t, append([]string{"dkim", "revoke", dkimDomain, selector, "--force", "-c", file, "--socket", socket}, more...)...)
		return status, out + errs
	}
	if status, text := revoke("s1"); status != 0 || !strings.Contains(text, "revoked now") || strings.Contains(text, "not known") {
		t.Errorf("all signers reach their keys: got %d: %s", status, text)
	}
	mu.Lock()
	nodes[1].Conditions = []queue.Condition{{Part: "signer", Text: "mail is signed with keys in memory"}}
	mu.Unlock()
	if status, text := revoke("s2"); status != 1 || !strings.Contains(text, "n2 may not hear that s2 signs no more") || !strings.Contains(text, "--force-stale") {
		t.Errorf("stale: got %d: %s", status, text)
	}
	if status, text := revoke("s2", "--force-stale"); status != 0 || !strings.Contains(text, "revoked now") {
		t.Errorf("stale, by force: got %d: %s", status, text)
	}
}

// TestRevokeSettles: a key that was retired a moment ago is not revoked while a signer may have it still, by force neither.
func TestRevokeSettles(t *testing.T) {
	t.Parallel()
	file, dns, keys := dkimSetup(t)
	for _, selector := range []string{"s1", "s2"} {
		key, err := keyring.Make(dkimDomain, selector, keyring.RSA)
		if err != nil {
			t.Fatal(err)
		}
		e, err := keys.Create(t.Context(), key, "test")
		if err != nil {
			t.Fatal(err)
		}
		dns.Set(rotation.Name(dkimDomain, selector), e.Record)
		if _, err := keys.Change(t.Context(), e, keyring.Active, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if status, out, errs := command(t, "dkim", "retire", dkimDomain, "s1", "--force", "-c", file); status != 0 {
		t.Fatalf("got %d: %s%s", status, out, errs)
	}
	began := time.Now()
	status, out, errs := command(t, "dkim", "revoke", dkimDomain, "s1", "--force", "-c", file)
	took := time.Since(began)
	if status != 0 || took < 8*time.Second || took > 2*time.Minute || !strings.Contains(errs, "signers may still sign with it: waiting") || !strings.Contains(errs, "is not known") || !strings.Contains(out, "revoked now") {
		t.Errorf("after %v got %d: %s%s", took, status, out, errs)
	}
}
