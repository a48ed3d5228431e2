package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postroad/ingress/account"
)

// manifests writes files and returns their directory.
func manifests(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

const threeClients = `name: web1
class: host
networks: [10.0.0.0/8, 127.0.0.0/8]
senders: ["@example.com"]
---
name: Grafana
class: service
---
name: db
no_password: true
certificates: [db.example.com]
`

func TestClientApply(t *testing.T) {
	d := newDesk(t)
	dir := manifests(t, map[string]string{"clients.yaml": threeClients})

	out, errs := d.run(0, "apply", dir, "--dry-run")
	mentions(t, errs, "client web1: would be created", "networks: 10.0.0.0/8, 127.0.0.0/8", "would be 3 created, 0 updated")
	if _, err := os.Stat(d.secrets); out != "" || err == nil {
		t.Errorf("a dry run printed %q, or left something behind", out)
	}

	out, errs = d.run(0, "apply", dir)
	mentions(t, errs, "client grafana: created", "class: service", "3 created, 0 updated, 0 removed, 0 unchanged")
	passwords := make(map[string]string)
	for line := range strings.Lines(out) {
		name, password, _ := strings.Cut(strings.TrimSpace(line), " ")
		passwords[name] = password
		if !d.isGood(name, password) && name == "grafana" {
			t.Errorf("the password of %s is not good", name)
		}
	}
	if len(passwords) != 2 || passwords["db"] != "" || len(passwords["web1"]) != 32 || strings.Contains(errs, passwords["web1"]) {
		t.Errorf("got %q, want the passwords of web1 and grafana on standard output alone", out)
	}
	before := d.stored("web1")
	out, errs = d.run(0, "apply", dir)
	mentions(t, errs, "0 created, 0 updated, 0 removed, 3 unchanged")
	if out != "" || strings.Contains(errs, "web1") || d.stored("web1").Revision() != before.Revision() {
		t.Errorf("the same again printed %q and %q, or changed something", out, errs)
	}

	// The manifest is the whole state, but for passwords.
	dir = manifests(t, map[string]string{"a.yaml": "name: web1\nsenders: [.example.com]\n", "b.yml": "name: grafana\n---\nname: db\ncertificates: [db.example.com]\nno_password: true"})
	out, errs = d.run(0, "apply", dir)
	mentions(t, errs, "client web1: updated", "senders: .example.com, was @example.com", "networks: any, was 10.0.0.0/8", "class: none, was host", "0 created, 2 updated, 0 removed, 1 unchanged")
	c := d.stored("web1")
	if out != "" || c.Class != "" || len(c.Networks) != 0 || !d.isGood("web1", passwords["web1"]) {
		t.Errorf("got %q, %+v, want the manifest and the old password", out, c)
	}
}

// TestClientApplyDisabled: what was disabled by hand is enabled only by who says so.
func TestClientApplyDisabled(t *testing.T) {
	d := newDesk(t)
	password := d.json("add", "web1").Password
	d.run(0, "disable", "web1")
	_, errs := d.run(0, "apply", manifests(t, map[string]string{"a.yaml": "name: web1\n"}))
	mentions(t, errs, "client web1: nothing to change", "it is disabled, of which the manifest says nothing", "1 unchanged")
	if d.isGood("web1", password) {
		t.Error("it was enabled")
	}
	_, errs = d.run(0, "apply", manifests(t, map[string]string{"a.yaml": "name: web1\ndisabled: false\n"}))
	mentions(t, errs, "enabled, was disabled")
	if !d.isGood("web1", password) {
		t.Error("it was not enabled")
	}
	_, errs = d.run(0, "apply", manifests(t, map[string]string{"a.yaml": "name: web1\ndisabled: true\n"}))
	mentions(t, errs, "disabled, was enabled")
	d.run(0, "apply", manifests(t, map[string]string{"a.yaml": "name: web2\ndisabled: true\n"}))
	if !d.stored("web1").Disabled || !d.stored("web2").Disabled {
		t.Error("they are not disabled")
	}
}

func TestClientApplyPrune(t *testing.T) {
	d := newDesk(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		d.json("add", name)
	}
	dir := manifests(t, map[string]string{"a.yaml": "name: a\nclass: host\n---\nname: b\n---\nname: c\n"})
	_, errs := d.run(1, "apply", dir, "--prune")
	mentions(t, errs, "no manifest names d: --prune would remove 1 of 4 clients, and may remove 0", "--prune-at-most 1", "Nothing was changed")
	if d.stored("a").Class != "" {
		t.Error("something was changed all the same")
	}
	_, errs = d.run(0, "apply", dir)
	mentions(t, errs, "no manifest names d: --prune removes", "1 updated, 0 removed")
	_, errs = d.run(0, "apply", dir, "--prune", "--prune-at-most", "25%", "--dry-run")
	mentions(t, errs, "client d: would be removed")
	d.stored("d")
	out, errs := d.run(0, "apply", dir, "--prune", "--prune-at-most", "1", "--json")
	if !strings.Contains(out, `{"client":"d","action":"removed"}`) || strings.Count(out, "\n") != 4 || errs != "" {
		t.Errorf("got %q, %q, want a report for each client", out, errs)
	}
	if _, errs := d.run(0, "list"); strings.Contains(errs, "d ") {
		t.Error("d is still there")
	}
	_, errs = d.run(0, "apply", dir, "--prune")
	mentions(t, errs, "0 created, 0 updated, 0 removed, 3 unchanged")
}

func TestClientApplyPasswordsDir(t *testing.T) {
	d := newDesk(t)
	dir, passwords := manifests(t, map[string]string{"a.yaml": "name: web1\n---\nname: web2\n"}), filepath.Join(t.TempDir(), "new", "passwords")
	d.run(0, "apply", dir, "--passwords-dir", passwords, "--dry-run")
	if _, err := os.Stat(passwords); err == nil {
		t.Error("a dry run left something behind")
	}
	if err := os.MkdirAll(passwords, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(passwords, "web2"), "of another environment")
	out, errs := d.run(1, "apply", dir, "--passwords-dir", passwords)
	mentions(t, errs, "its password is in "+filepath.Join(passwords, "web1"), "client web2: ", "is there already", "1 created")
	text, err := os.ReadFile(filepath.Join(passwords, "web1"))
	if err != nil || out != "" || !d.isGood("web1", strings.TrimSpace(string(text))) {
		t.Errorf("got %q, %q, %v, want the password in its file only", out, text, err)
	}
	if info, err := os.Stat(filepath.Join(passwords, "web1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(passwords, "web2")); err != nil {
		t.Fatal(err)
	}
	out, _ = d.run(0, "apply", dir, "--passwords-dir", passwords, "--json")
	if strings.Contains(out, `"password":`) || !strings.Contains(out, `"action":"created"`) {
		t.Errorf("got %s, want the password in its file only", out)
	}
	entries, err := os.ReadDir(passwords)
	if err != nil || len(entries) != 2 {
		t.Errorf("got %v, %v, want two files", entries, err)
	}
}

func TestClientApplyErrors(t *testing.T) {
	d := newDesk(t)
	d.json("add", "web1")
	for _, tt := range []struct {
		text   string
		args   string
		status int
		want   string
	}{
		{"", "", 2, "there is no manifest in"},
		{"name: a\nclas: x\n", "", 2, "a.yaml:2: clas: there is no such setting; did you mean class?"},
		{"name: ../x\n", "", 2, `a.yaml:1: name: "../x" is no name of a client`},
		{"name: a\nclass: Web\n", "", 2, `a.yaml:2: class: "Web" is no class`},
		{"name: a\nnetworks:\n- 10.0.0.0/8\n- ten\n", "", 2, `a.yaml:4: networks[1]: "ten" is no network`},
		{"name: a\nsenders: [a.example, '@b.example', '@b.example']\n", "", 2, `senders[2]: "@b.example" stands there twice`},
		{"name: a\ncertificates: ['sha256:1']\n", "", 2, "a.yaml:2: certificates[0]: "},
		{"name: a\n---\nname: A\n", "", 2, "a.yaml:3: name: a is named in "},
		{"name: a\npassword: x\n", "", 2, "a.yaml:2: password: there is no such setting"},
		{"name: a\n", "--prune-at-most 101%", 2, "--prune-at-most"},
		{"name: a\n", "--prune-at-most -1", 2, "expected"},
		{"name: a\n", "/does/not/exist", 2, "no such file"},
	} {
		dir := manifests(t, map[string]string{"a.yaml": tt.text})
		out, errs := d.run(tt.status, append([]string{"apply", dir}, strings.Fields(tt.args)...)...)
		mentions(t, errs, tt.want)
		if out != "" {
			t.Errorf("%q: got %q on standard output of a command that failed", tt.text, out)
		}
	}
	// One that cannot be read does not keep the others back.
	bad := writeFile(t, filepath.Join(d.secrets, "clients", "bad.json"), "{")
	out, errs := d.run(1, "apply", manifests(t, map[string]string{"a.yaml": "name: bad\n---\nname: new\n"}))
	mentions(t, errs, bad, "client new: created", "1 created")
	if !strings.HasPrefix(out, "new ") {
		t.Errorf("got %q", out)
	}
}

// TestClientWithPasswordInClear: a record of which somebody wrote nothing but the password.
func TestClientWithPasswordInClear(t *testing.T) {
	d := newDesk(t)
	d.json("add", "web1") // makes the directory
	writeFile(t, filepath.Join(d.secrets, "clients", "plain.json"), `{"password": "a long secret of theirs"}`)
	if !d.isGood("plain", "a long secret of theirs") || d.isGood("plain", "a long secret of ours") {
		t.Error("the password is not good, or another one is")
	}
	out, errs := d.run(0, "list")
	mentions(t, out, "plain")
	mentions(t, errs, "client plain: whoever may read its record knows its password; postroad client passwd plain")
	out, errs = d.run(0, "list", "--json")
	line, _, _ := strings.Cut(out, "\n")
	var l listedClient
	if err := json.Unmarshal([]byte(line), &l); err != nil || l.Passwords[0].Kind != "plain" || strings.Contains(out+errs, "secret") {
		t.Errorf("got %s, %v", out, err)
	}
	d.run(0, "add", "plain", "--class", "service")
	if c := d.stored("plain"); !c.InClear() || c.Class != "service" {
		t.Errorf("got %+v, want the class and the password where it was", c)
	}
	out, errs = d.run(0, "passwd", "plain")
	mentions(t, errs, "the old one (plain, of ", "stays good until")
	var c *account.Client = d.stored("plain")
	if c.InClear() || !d.isGood("plain", "a long secret of theirs") || !d.isGood("plain", strings.TrimSpace(out)) {
		t.Errorf("got %+v, want two verifiers", c)
	}
}

// TestClientApplyToVault: records lie elsewhere, and one of them was added by the means of Vault alone.
func TestClientApplyToVault(t *testing.T) {
	d, v := vaultDesk(t)
	v.Put("postroad/clients/theirs", map[string]any{"password": "a long secret of theirs"})
	dir := manifests(t, map[string]string{"a.yaml": "name: web1\nclass: host\n---\nname: theirs\nclass: service\nnetworks: [10.0.0.0/8]\n"})
	passwords := t.TempDir()
	_, errs := d.run(0, "apply", dir, "--passwords-dir", passwords)
	mentions(t, errs, "client theirs: updated", "class: service, was none", "client web1: created", "1 created, 1 updated")
	versions := v.Data("postroad/clients/theirs")
	if got := versions[len(versions)-1]; got["password"] != "a long secret of theirs" || got["class"] != "service" {
		t.Errorf("got %v, want the password where it was", got)
	}
	_, errs = d.run(0, "apply", dir, "--passwords-dir", passwords)
	mentions(t, errs, "0 created, 0 updated, 0 removed, 2 unchanged")
	if len(v.Data("postroad/clients/web1")) != 1 {
		t.Error("the same again wrote a version")
	}
	_, errs = d.run(0, "apply", manifests(t, map[string]string{"a.yaml": "name: web1\nclass: host\n"}), "--prune", "--prune-at-most", "50%")
	mentions(t, errs, "client theirs: removed")
	if out, _ := d.run(0, "list"); strings.Contains(out, "theirs") {
		t.Errorf("it is still there:\n%s", out)
	}
	v.Seal(true)
	if _, errs = d.run(1, "apply", dir, "--prune", "--prune-at-most", "100%"); errs == "" {
		t.Error("got no error from a sealed Vault")
	}
	v.Seal(false)
	if out, _ := d.run(0, "list"); !strings.Contains(out, "web1") {
		t.Errorf("a sealed Vault led to a removal:\n%s", out)
	}
}
