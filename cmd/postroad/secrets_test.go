package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/authority"
	"postroad/cmd/internal/secrets/fakevault"
	"postroad/ingress/account"
	"postroad/queue"
)

// vaultDesk keeps the secrets of a configuration in Vault.
func vaultDesk(t *testing.T) (*desk, *fakevault.Server) {
	t.Helper()
	v := fakevault.New(t)
	dir := shortDir(t)
	file := writeFile(t, filepath.Join(dir, "postroad.yaml"), fmt.Sprintf("data_dir: %s\nsecrets: {vault: {address: %q, login: token, secret_file: %s}}\n", dir, v.URL, v.TokenFile))
	t.Setenv("POSTROAD_VAULT_TOKEN_FILE", v.TokenFile)
	return &desk{t: t, file: file}, v
}

// give gives any command; it must end with a status.
func (d *desk) give(status int, args ...string) (stdout, stderr string) {
	d.t.Helper()
	got, stdout, stderr := command(d.t, append([]string{"-c", d.file}, args...)...)
	if got != status {
		d.t.Fatalf("%s: got status %d, want %d\nout: %s\nerr: %s", strings.Join(args, " "), got, status, stdout, stderr)
	}
	return stdout, stderr
}

// rotate gives a rotation that must be complete, and returns its report.
func (d *desk) rotate(args ...string) (r renewalReport) {
	d.t.Helper()
	out, _ := d.give(0, append([]string{"secrets", "rotate", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		d.t.Fatalf("%v in %q", err, out)
	}
	return r
}

// listed are the secrets of a kind as JSON tells them.
func (d *desk) listed(kind string) map[string]listedSecret {
	d.t.Helper()
	out, _ := d.give(0, "secrets", "list", "--json", kind)
	found := make(map[string]listedSecret)
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		var one listedSecret
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			d.t.Fatalf("%v in %q", err, line)
		}
		found[one.Name] = one
	}
	return found
}

func desks(t *testing.T, test func(t *testing.T, d *desk)) {
	t.Run("directory", func(t *testing.T) { test(t, newDesk(t)) })
	t.Run("vault", func(t *testing.T) { d, _ := vaultDesk(t); test(t, d) })
}

func TestRotate(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		_, errs := d.give(0, "secrets", "list")
		mentions(t, errs, "there are no secrets in", "postroad secrets schema")
		d.run(0, "add", "web1")
		all := []string{"--ca", "--server-cert", "relay", "--client", "web1"}

		_, errs = d.give(0, append([]string{"secrets", "rotate", "--dry-run", "--names", "relay.example.com,192.0.2.1"}, all...)...)
		mentions(t, errs, "would make a new root ca/postroad", "would make a new key and certificate tls/relay: ECDSA P-256, for relay.example.com, 192.0.2.1", "would give client web1 a new password")
		if out, _ := d.give(0, "secrets", "list"); strings.Contains(out, "tls") || strings.Contains(out, "ca ") {
			t.Errorf("a dry run has made something:\n%s", out)
		}

		out, errs := d.give(0, append([]string{"secrets", "rotate", "--names", "relay.example.com,192.0.2.1"}, all...)...)
		if password, rest, _ := strings.Cut(out, "\n"); len(password) != 32 || rest != "" || strings.Contains(errs, password) {
			t.Errorf("got %q on standard output, want the password alone", out)
		}
		mentions(t, errs, "SECRET", "ca/postroad", "tls/relay", "clients/web1", "for what it issues", "give clients the root")
		root := d.listed("ca")["postroad"]
		leaf := d.listed("tls")["relay"]
		if root.State != "root" || leaf.Issuer != root.Issuer || strings.Join(leaf.Names, " ") != "relay.example.com 192.0.2.1" {
			t.Errorf("got root %+v, leaf %+v", root, leaf)
		}

		// A second time, as JSON: names are kept, and the table tells old from new.
		d.run(0, "add", "web2")
		r := d.rotate("--ca", "--server-cert", "relay", "--client", "web2", "--grace", "2h")
		if len(r.Rows) != 3 || !r.Complete || r.Rows[0].Old != root.Fingerprint || r.Rows[1].Old != leaf.Fingerprint || r.Rows[2].Secret != "clients/web2" {
			t.Fatalf("got %+v", r)
		}
		now := d.listed("")
		if now["postroad"].Fingerprint != r.Rows[0].New || now["relay"].Fingerprint != r.Rows[1].New || now["web2"].Passwords[0].ID != r.Rows[2].New || r.Passwords[0].ID != r.Rows[2].New {
			t.Errorf("what is there is not what the table says: %+v", now)
		}
		if got := now["relay"].Names; strings.Join(got, " ") != "relay.example.com 192.0.2.1" {
			t.Errorf("got names %v, want those of before", got)
		}
		if p := now["web2"].Passwords; len(p) != 2 || p[1].ID != r.Rows[2].Old || time.Until(p[1].NotAfter) > 2*time.Hour {
			t.Errorf("got passwords %+v", p)
		}
		if now["web2"].UseIs != "unknown" {
			t.Errorf("got use %q although no server runs", now["web2"].UseIs)
		}

		out, _ = d.give(0, "secrets", "ca")
		roots, err := authority.ParseCertificates([]byte(out))
		if err != nil || len(roots) != 2 || authority.Fingerprint(roots[0]) != r.Rows[0].New || authority.Fingerprint(roots[1]) != root.Fingerprint || strings.Contains(out, "PRIVATE") {
			t.Errorf("got %d roots, %v:\n%s", len(roots), err, out)
		}
		out, _ = d.give(0, "secrets", "list")
		mentions(t, out, "KIND", "LAST USE", "clients  web1", "root, 1 before it", "in 824d", "unknown")
		for _, secret := range []string{"SCRAM", "PRIVATE", r.Passwords[0].Password} {
			if strings.Contains(out, secret) {
				t.Errorf("%q in the list", secret)
			}
		}
	})
}

func TestRotateRefuses(t *testing.T) {
	d := newDesk(t)
	d.run(0, "add", "web1")
	for args, want := range map[string]string{
		"":                            "say what is to be rotated",
		"--client web1 --client web1": "named twice",
		"--server-cert a --server-cert b --names x": "one --server-cert",
		"--server-cert a --names a_b!":              "no name for a certificate",
		"--distrust-old --client web1":              "goes with --ca",
		"--client ../x":                             "no name of a client",
		"--client web1 --grace=-1h":                 "must not be negative",
		"--server-cert relay":                       "give --names",
		"--server-cert ../relay":                    "no name of a secret",
	} {
		status, out, errs := command(t, append([]string{"-c", d.file, "secrets", "rotate"}, strings.Fields(args)...)...)
		if status == 0 || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: got %d, %q, want %q", args, status, errs, want)
		}
	}
	// Nothing of a command is done when one part of it is refused.
	_, errs := d.give(1, "secrets", "rotate", "--ca", "--server-cert", "relay", "--names", "relay.example.com", "--client", "web2")
	mentions(t, errs, "nothing is changed", "there is no client web2; did you mean web1?")
	if _, err := os.Stat(filepath.Join(d.secrets, "ca")); err == nil {
		t.Error("there is an authority")
	}
	d.give(2, "secrets", "list", "keys")
	d.give(2, "secrets", "schema", "keys")
	d.give(1, "secrets", "ca")
	_, errs = d.give(1, "secrets", "list", "--old-passwords")
	mentions(t, errs, "known to running servers only")
}

// TestRepeatedPassword: a second rotation within the grace does not end the password that clients have.
func TestRepeatedPassword(t *testing.T) {
	d := newDesk(t)
	out, _ := d.run(0, "add", "web1")
	first := strings.TrimSpace(out)
	out, _ = d.give(0, "secrets", "rotate", "--client", "web1")
	second := strings.TrimSpace(out)
	_, errs := d.give(1, "secrets", "rotate", "--client", "web1")
	mentions(t, errs, "nothing is changed", "--again", "--old-passwords", "postroad client passwd web1")
	out, errs = d.give(0, "secrets", "rotate", "--client", "web1", "--again", "--grace", "3h")
	third := strings.TrimSpace(out)
	mentions(t, errs, "is replaced")
	if !d.isGood("web1", first) || d.isGood("web1", second) || !d.isGood("web1", third) {
		t.Errorf("good are %t %t %t, want the one that clients have and the newest", d.isGood("web1", first), d.isGood("web1", second), d.isGood("web1", third))
	}
	if c := d.stored("web1"); time.Until(c.Passwords[1].NotAfter) < 2*time.Hour {
		t.Errorf("the old one is good until %v, want the grace to begin anew", c.Passwords[1].NotAfter)
	}
}

// TestRotateWithoutAuthority: by itself, kind of key kept, with a warning; and what others have issued is not replaced unasked.
func TestRotateWithoutAuthority(t *testing.T) {
	d := newDesk(t)
	dir := filepath.Join(d.secrets, "tls", "relay")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(p *authority.Pair, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		chain, key, err := p.PEM()
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "cert.pem"), string(chain))
		writeFile(t, filepath.Join(dir, "key.pem"), string(key))
	}
	request := authority.Request{Names: []string{"relay.example.com"}, RSA: true, Now: time.Now()}
	put(authority.SelfSigned(request))
	_, errs := d.give(0, "secrets", "rotate", "--server-cert", "relay")
	mentions(t, errs, "signed by itself", "--ca makes an authority", "new RSA 2048 certificate", "not known")

	foreign, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	put(foreign.Issue(request))
	_, errs = d.give(1, "secrets", "rotate", "--ca", "--server-cert", "relay")
	mentions(t, errs, "nothing is changed", "was issued by", "--take-over")
	_, errs = d.give(0, "secrets", "rotate", "--ca", "--server-cert", "relay", "--take-over")
	mentions(t, errs, "new RSA 2048 certificate")
	_, errs = d.give(0, "secrets", "rotate", "--ca", "--server-cert", "relay", "--distrust-old")
	mentions(t, errs, "clients that do not know the new root refuse servers", "give clients the root")
	out, _ := d.give(0, "secrets", "ca", "--json")
	if strings.Count(out, `"newest":true`) != 1 || strings.Contains(out, `"newest":false`) {
		t.Errorf("got %s, want one root", out)
	}
}

// TestRotateInterrupted: Vault breaks off in the middle. The table tells what is there, the next command does the rest, and nothing is lost.
func TestRotateInterrupted(t *testing.T) {
	d, v := vaultDesk(t)
	out, _ := d.run(0, "add", "web1")
	first := strings.TrimSpace(out)
	d.rotate("--ca", "--server-cert", "relay", "--names", "relay.example.com")
	before := d.listed("")

	// Writes that happen although the answer is lost are found to have happened.
	v.LoseAnswers(func(method, path string) bool { return method == "PUT" && strings.HasPrefix(path, "secret/data/") })
	r := d.rotate("--ca", "--server-cert", "relay", "--client", "web1")
	v.LoseAnswers(nil)
	now := d.listed("")
	if now["postroad"].Fingerprint != r.Rows[0].New || now["relay"].Fingerprint != r.Rows[1].New || now["web1"].Passwords[0].ID != r.Rows[2].New || r.Rows[0].Old != before["postroad"].Fingerprint {
		t.Errorf("got %+v", r)
	}
	if n := len(v.Data("postroad/clients/web1")); n != 2 {
		t.Errorf("the client was written %d times, want 2", n)
	}
	if p := now["web1"].Passwords; len(p) != 2 || len(first) != 32 {
		t.Errorf("got %+v, want the old password beside the new one", p)
	}

	// Vault is away after the authority is written.
	d.run(0, "add", "web2")
	v.LoseAnswers(func(method, path string) bool {
		if strings.Contains(path, "data/postroad/tls/") && method == "PUT" {
			v.Seal(true)
		}
		return false
	})
	before = d.listed("")
	_, errs := d.give(1, "secrets", "rotate", "--ca", "--server-cert", "relay", "--client", "web2", "--grace", "1h")
	v.LoseAnswers(nil)
	v.Seal(false)
	now = d.listed("")
	if now["postroad"].Fingerprint == before["postroad"].Fingerprint {
		t.Error("the authority was not written")
	}
	mentions(t, errs, "MISSING", "Go on with this, not with the whole command again", "postroad secrets rotate --server-cert relay --client web2 --grace 1h0m0s")
	d.rotate("--server-cert", "relay", "--client", "web2", "--grace", "1h")
}

// TestRotateGoesOnAlone: the command that is printed when a root that stands alone is stored and the certificate is not, is one that works.
func TestRotateGoesOnAlone(t *testing.T) {
	d, v := vaultDesk(t)
	d.rotate("--ca", "--server-cert", "relay", "--names", "relay.example.com")
	v.LoseAnswers(func(method, path string) bool {
		if strings.Contains(path, "data/postroad/tls/") && method == "PUT" {
			v.Seal(true)
		}
		return false
	})
	_, errs := d.give(1, "secrets", "rotate", "--ca", "--server-cert", "relay", "--distrust-old")
	v.LoseAnswers(nil)
	v.Seal(false)
	_, line, _ := strings.Cut(errs, "\n  postroad ")
	line, _, _ = strings.Cut(line, "\n")
	if line != "secrets rotate --server-cert relay --take-over" {
		t.Fatalf("got %q in\n%s", line, errs)
	}
	d.give(0, strings.Fields(line)...)
	now := d.listed("")
	if now["relay"].Issuer != now["postroad"].Issuer {
		t.Errorf("got %+v, want a certificate of the new root", now)
	}
}

func TestSchemaCommand(t *testing.T) {
	d := newDesk(t)
	out, _ := d.give(0, "secrets", "schema")
	mentions(t, out, "dkim/<domain>/<selector>", "clients/<name>", "tls/<name>", "smarthosts/<name>", "ca/<name>", "read by: signer", "read by: no role, only administrators",
		"private_key", "passwords[].not_after", "# example: clients/<name>")
	out, _ = d.give(0, "secrets", "schema", "--json", "tls")
	var kinds []secrets.Kind
	if err := json.Unmarshal([]byte(out), &kinds); err != nil || len(kinds) != 1 || kinds[0].Fields[1].Name != "private_key" || !kinds[0].Fields[1].Secret {
		t.Errorf("got %v, %s", err, out)
	}
}

func TestOldUse(t *testing.T) {
	now := time.Now()
	e := &secrets.Entry{Name: "web1", Passwords: []secrets.Password{
		{ID: "new", Created: now.Add(-time.Hour), Good: true}, {ID: "old", Created: now.Add(-48 * time.Hour), NotAfter: now.Add(time.Hour), Good: true}}}
	use := func(id string, ago time.Duration) queue.Use {
		return queue.Use{Client: "web1", Password: id, Last: now.Add(-ago)}
	}
	for name, tt := range map[string]struct {
		uses       []queue.Use
		want, sure bool
	}{
		"nobody came":           {nil, false, false},
		"new one only":          {[]queue.Use{use("new", time.Minute)}, false, false},
		"old one long ago":      {[]queue.Use{use("old", 2*time.Hour)}, false, false},
		"old one since":         {[]queue.Use{use("old", time.Minute), use("new", time.Second)}, true, true},
		"old one just before":   {[]queue.Use{use("old", time.Hour+5*time.Minute)}, true, false},
		"another one long gone": {[]queue.Use{use("gone", time.Minute)}, false, false},
	} {
		old := oldUse(e, tt.uses)
		if (old != nil) != tt.want || old != nil && old.isSure != tt.sure {
			t.Errorf("%s: got %+v", name, old)
		}
	}
	e.Passwords[1].Good = false
	if oldUse(e, []queue.Use{use("old", time.Minute)}) != nil {
		t.Error("a password that has ended is used")
	}
}

func TestCertificatesOfNodes(t *testing.T) {
	node := func(name string, facts ...string) queue.Node {
		n := queue.Node{Name: name, Roles: []string{"ingress"}, Facts: map[string]string{}}
		for i := 0; i < len(facts); i += 2 {
			n.Facts["certificate "+facts[i]] = facts[i+1] + " until 2030-01-01T00:00:00Z"
		}
		return n
	}
	draining, signer := node("d", "relay", "sha256:aa"), node("s", "relay", "sha256:aa")
	draining.Draining, signer.Roles = true, []string{"signer"}
	nodes := []queue.Node{
		node("a", "relay", "sha256:aa"), node("b", "tls/relay", "sha256:aa"), node("c", "/etc/postroad/secrets/tls/relay/cert.pem", "sha256:bb"),
		node("two", "relay", "sha256:aa", "tls/relay", "sha256:bb"), node("none", "other", "sha256:aa"), draining, signer,
	}
	got := certificatesOf(nodes, "relay")
	want := map[string]string{"a": "sha256:aa", "b": "sha256:aa", "c": "sha256:bb", "two": ""}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	row := &renewalRow{New: "sha256:aa"}
	if row.serve(nodes, &newPair{name: "relay"}, time.Now()) || !strings.Contains(row.Missing, "c") || row.InForce != "on 2 of 4 nodes" {
		t.Errorf("got %+v", row)
	}
	if !row.serve(nodes[:2], &newPair{name: "relay"}, time.Now()) || row.InForce != "on 2 of 2 nodes" || row.Missing != "" {
		t.Errorf("got %+v", row)
	}
	if !row.serve(nodes[:2], &newPair{name: "fresh"}, time.Now()) || row.Missing != "" {
		t.Errorf("one that is new and that no listener names: got %+v", row)
	}
	before, err := authority.SelfSigned(authority.Request{Names: []string{"a.example"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if row.serve(nodes[:2], &newPair{name: "fresh", before: before.Leaf}, time.Now()) || row.Missing == "" {
		t.Errorf("one that was there and that no listener names: got %+v", row)
	}
}

// TestGeneratedPasswordWorks: what rotate prints is what lets in.
func TestGeneratedPasswordWorks(t *testing.T) {
	d := newDesk(t)
	d.run(0, "add", "web1")
	d.run(0, "add", "web2")
	out, _ := d.give(0, "secrets", "rotate", "--client", "web1", "--client", "web2", "--grace", "0")
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		name, password, _ := strings.Cut(line, " ")
		if !d.isGood(name, password) {
			t.Errorf("%s cannot log in with what was printed", name)
		}
		if c := d.stored(name); len(c.Passwords) != 1 || account.CheckPassword(password) != nil {
			t.Errorf("got %d passwords without a grace", len(c.Passwords))
		}
	}
}
