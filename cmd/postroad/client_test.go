package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/ingress/account"
)

// desk runs postroad client on a configuration of its own.
type desk struct {
	t       *testing.T
	file    string
	secrets string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	dir := shortDir(t)
	return &desk{t: t, file: writeFile(t, filepath.Join(dir, "postroad.yaml"), "data_dir: "+dir+"\n"), secrets: filepath.Join(dir, "secrets")}
}

// run gives a command; it must end with a status.
func (d *desk) run(status int, args ...string) (stdout, stderr string) {
	d.t.Helper()
	got, stdout, stderr := command(d.t, append([]string{"client", "-c", d.file}, args...)...)
	if got != status {
		d.t.Fatalf("client %s: got status %d, want %d\nout: %s\nerr: %s", strings.Join(args, " "), got, status, stdout, stderr)
	}
	return stdout, stderr
}

// json gives a command and reads its answer.
func (d *desk) json(args ...string) (r clientReport) {
	d.t.Helper()
	out, _ := d.run(0, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		d.t.Fatalf("client %s: %v in %q", strings.Join(args, " "), err, out)
	}
	return r
}

// input makes text the standard input.
func (d *desk) input(text string) {
	d.t.Helper()
	f, err := os.Open(writeFile(d.t, filepath.Join(d.t.TempDir(), "input"), text))
	if err != nil {
		d.t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = f
	d.t.Cleanup(func() {
		os.Stdin = before
		_ = f.Close()
	})
}

// stored is a record as a server sees it.
func (d *desk) stored(name string) *account.Client {
	d.t.Helper()
	dir, err := account.NewDir(account.DirOptions{Path: d.secrets})
	if err != nil {
		d.t.Fatal(err)
	}
	c, err := dir.Latest(d.t.Context(), name)
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// isGood tells whether a password lets a client in.
func (d *desk) isGood(name, password string) bool {
	d.t.Helper()
	dir, err := account.NewDir(account.DirOptions{Path: d.secrets})
	if err != nil {
		d.t.Fatal(err)
	}
	a, err := account.New(account.Options{Source: dir, Delay: time.Millisecond})
	if err != nil {
		d.t.Fatal(err)
	}
	x, err := a.Begin(account.Plain, account.Peer{Addr: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		d.t.Fatal(err)
	}
	_, done, _ := x.Next(d.t.Context(), []byte("\x00"+name+"\x00"+password))
	return done
}

func mentions(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestClientAdd(t *testing.T) {
	d := newDesk(t)
	args := []string{"add", "Web1", "--class", "host", "--sender", "@example.com", "--sender", ".example.org", "--network", "10.0.0.0/8"}

	out, errs := d.run(0, append(args, "--dry-run")...)
	mentions(t, errs, "client web1: would be created", "senders: @example.com, .example.org")
	if _, err := os.Stat(d.secrets); out != "" || err == nil {
		t.Errorf("a dry run printed %q, or left something behind", out)
	}

	out, errs = d.run(0, args...)
	mentions(t, errs, "client web1: created", "class: host", "networks: 10.0.0.0/8", "certificates: none")
	password, rest, _ := strings.Cut(out, "\n")
	if len(password) != 32 || rest != "" || strings.Contains(errs, password) {
		t.Errorf("got %q and %q, want one line with a password on standard output only", out, errs)
	}
	if !d.isGood("web1", password) {
		t.Error("the password is not good")
	}

	before := d.stored("web1")
	out, errs = d.run(0, args...)
	mentions(t, errs, "nothing to change")
	d.run(0, "add", "web1")
	if out != "" || d.stored("web1").Revision() != before.Revision() {
		t.Errorf("the same again printed %q, or changed the record", out)
	}

	out, errs = d.run(0, "add", "web1", "--class", "service", "--sender", "any", "--certificate", "web1.example.com")
	mentions(t, errs, "client web1: updated", "class: service, was host", "senders: any, was @example.com, .example.org", "certificates: web1.example.com, was none")
	c := d.stored("web1")
	if out != "" || c.Class != "service" || len(c.Senders) != 0 || len(c.Networks) != 1 || !d.isGood("web1", password) {
		t.Errorf("got %q, %+v, want the changes and nothing else", out, c)
	}
	if r := d.json("add", "web1", "--network", "any"); r.Action != "updated" || r.Password != "" || len(r.Changes) != 1 {
		t.Errorf("got %+v", r)
	}

	r := d.json("add", "web2")
	if r.Action != "created" || r.Client != "web2" || !d.isGood("web2", r.Password) || d.stored("web2").Passwords[0].ID != r.PasswordID {
		t.Errorf("got %+v, want a password that is good", r)
	}
	r = d.json("add", "web3", "--no-password")
	if r.Password != "" || len(d.stored("web3").Passwords) != 0 || len(r.Notes) != 1 {
		t.Errorf("got %+v, want no password, and a note", r)
	}
}

// TestClientAddHost is what provisioning does, again and again.
func TestClientAddHost(t *testing.T) {
	d := newDesk(t)
	r := d.json("add", "--host", "Foobar.archlinux.org")
	want := []string{"class: host", "networks: any", "senders: any", "certificates: foobar.archlinux.org"}
	if diff := cmp.Diff(want, r.Changes); diff != "" || r.Client != "foobar" || !d.isGood("foobar", r.Password) {
		t.Errorf("got %+v (-want +got):\n%s", r, diff)
	}
	if r := d.json("add", "--host", "foobar.archlinux.org"); r.Action != "unchanged" || r.Password != "" {
		t.Errorf("again: got %+v, want nothing", r)
	}
	r = d.json("add", "--host", "short")
	if r.Client != "short" || r.Changes[3] != "certificates: none" {
		t.Errorf("got %+v", r)
	}
}

func TestClientPasswd(t *testing.T) {
	d := newDesk(t)
	first := d.json("add", "web1").Password

	out, errs := d.run(0, "passwd", "web1", "--dry-run")
	mentions(t, errs, "client web1: would be updated", "stays good until")
	if out != "" || !d.isGood("web1", first) {
		t.Errorf("a dry run printed %q, or changed something", out)
	}

	out, errs = d.run(0, "passwd", "web1")
	second, rest, _ := strings.Cut(out, "\n")
	mentions(t, errs, "client web1: updated", "the new password is good within a second", "stays good until")
	if rest != "" || !d.isGood("web1", first) || !d.isGood("web1", second) {
		t.Errorf("got %q, want one line, and both passwords good", out)
	}
	if end := d.stored("web1").Passwords[1].NotAfter; time.Until(end) < 23*time.Hour || time.Until(end) > 24*time.Hour {
		t.Errorf("the old one ends at %v, want a day", end)
	}

	r := d.json("passwd", "web1", "--grace", "1h")
	third := r.Password
	if len(r.Dropped) != 1 || r.OldPasswordID == "" || r.OldGoodUntil == "" || d.isGood("web1", first) || !d.isGood("web1", second) || !d.isGood("web1", third) {
		t.Errorf("got %+v, want the first one dropped, and the other two good", r)
	}

	_, errs = d.run(0, "passwd", "web1", "--grace", "0")
	mentions(t, errs, "ends now: there is no grace")
	if d.isGood("web1", second) || d.isGood("web1", third) {
		t.Error("an old password outlived the change without grace")
	}
}

func TestClientPasswdOfPeople(t *testing.T) {
	d := newDesk(t)
	d.json("add", "jane@example.com", "--class", "user")
	d.input("Grüße aus Köln\r\nnot this line\n")
	out, errs := d.run(0, "passwd", "jane@example.com", "--stdin")
	mentions(t, errs, "PLAIN and LOGIN", "stays good")
	if c := d.stored("jane@example.com"); out != "" || !d.isGood(c.Name, "Grüße aus Köln") || c.Passwords[0].Argon2id == nil || c.Passwords[0].SCRAM != nil {
		t.Errorf("got %q, %+v, want argon2id and nothing printed", out, c)
	}
	d.input("another long word")
	r := d.json("passwd", "jane@example.com", "--stdin", "--scram", "--grace=0")
	if c := d.stored("jane@example.com"); r.Password != "" || !d.isGood(c.Name, "another long word") || c.Passwords[0].SCRAM.Iterations <= account.GeneratedIterations {
		t.Errorf("got %+v, %+v, want SCRAM with many iterations and nothing printed", r, c)
	}
	d.json("passwd", "jane@example.com", "--grace=0")
	d.input("a third long word\n")
	if r = d.json("passwd", "jane@example.com", "--stdin", "--scram"); len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "few iterations") {
		t.Errorf("got %+v, want a note on the iterations", r)
	}
	for _, text := range []string{"", "\n", "short\n", "seven77\n", strings.Repeat("x", 5000), "bell\a and more\n", "\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		d.input(text)
		_, errs := d.run(2, "passwd", "jane@example.com", "--stdin")
		mentions(t, errs, "this password cannot be used")
	}
}

func TestClientDisableAndRemove(t *testing.T) {
	d := newDesk(t)
	password := d.json("add", "web1").Password
	d.run(0, "disable", "web1", "--dry-run")
	if !d.isGood("web1", password) {
		t.Error("a dry run disabled")
	}
	_, errs := d.run(0, "disable", "web1")
	mentions(t, errs, "client web1: disabled")
	if d.isGood("web1", password) {
		t.Error("a disabled client got in")
	}
	_, errs = d.run(0, "add", "web1")
	mentions(t, errs, "nothing to change", "it is disabled")
	if r := d.json("disable", "web1"); r.Action != "unchanged" {
		t.Errorf("got %+v", r)
	}
	if r := d.json("enable", "web1"); r.Action != "enabled" || !d.isGood("web1", password) {
		t.Errorf("got %+v", r)
	}

	_, errs = d.run(0, "remove", "web1", "--dry-run")
	mentions(t, errs, "would be removed")
	d.stored("web1")
	d.run(0, "remove", "web1")
	_, errs = d.run(0, "remove", "web1")
	mentions(t, errs, "nothing to change", "there is no client web1")
	out, errs := d.run(0, "list")
	mentions(t, errs, "there are no clients")
	if out != "" {
		t.Errorf("got %q", out)
	}
}

func TestClientList(t *testing.T) {
	d := newDesk(t)
	_, errs := d.run(0, "list")
	mentions(t, errs, "there are no clients")
	d.json("add", "web1", "--class", "host", "--network", "10.0.0.0/8", "--sender", "@example.com")
	d.json("passwd", "web1", "--grace", "90m")
	d.json("add", "db", "--no-password", "--certificate", "db.example.com")
	d.json("disable", "db")
	out, _ := d.run(0, "list")
	mentions(t, out, "NAME", "s old, the one before for 1h", "10.0.0.0/8", "@example.com", "disabled", "db.example.com", "none")
	if strings.Index(out, "db ") > strings.Index(out, "web1 ") {
		t.Errorf("not in order:\n%s", out)
	}

	out, _ = d.run(0, "list", "--json")
	if strings.Contains(out, "SCRAM-SHA-256$") {
		t.Errorf("the list shows verifiers:\n%s", out)
	}
	var l listedClient
	_, line, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &l); err != nil {
		t.Fatal(err)
	}
	if l.Name != "web1" || l.Class != "host" || len(l.Passwords) != 2 || !l.Passwords[0].Good || l.Passwords[0].NotAfter != nil || l.Passwords[1].NotAfter == nil || l.Networks[0] != "10.0.0.0/8" {
		t.Errorf("got %+v", l)
	}

	bad := writeFile(t, filepath.Join(d.secrets, "clients", "bad.json"), "{")
	out, errs = d.run(1, "list")
	mentions(t, out, "web1")
	mentions(t, errs, bad, "is not JSON")
	_, errs = d.run(1, "passwd", "bad")
	mentions(t, errs, bad, "is not JSON")
	d.run(0, "remove", "bad")
}

func TestClientErrors(t *testing.T) {
	d := newDesk(t)
	missing := writeFile(t, filepath.Join(filepath.Dir(d.file), "missing.yaml"), "secrets: {dir: "+d.secrets+"/none}\n")
	d.json("add", "webserver1")
	d.json("add", "db")
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"add", 2, "expected"},
		{"add ../x", 2, `"../x" is no name of a client`},
		{"add x --class Web", 2, `--class: "Web" is no class`},
		{"add x --network ten", 2, `--network "ten" is no network`},
		{"add x --network 10.0.0.1/8", 2, "write 10.0.0.0/8"},
		{"add x --sender example.com", 2, `--sender "example.com" is no sender`},
		{"add x --sender any --sender @a.example", 2, "--sender any stands alone"},
		{"add x --certificate sha256:12", 2, "--certificate"},
		{"passwd websevrer1", 1, "there is no client websevrer1; did you mean webserver1?"},
		{"passwd webserver1.example.com", 1, "did you mean webserver1?"},
		{"disable nothing", 1, "there is no client nothing (postroad client list shows"},
		{"enable ..", 2, "is no name"},
		{"remove a/b", 2, "is no name"},
		{"passwd db --grace -1h", 2, "grace"},
		{"passwd db --grace=-1h", 2, "--grace must not be negative"},
		{"passwd db --scram", 2, "--scram goes with --stdin"},
		{"list -c " + missing, 1, "secrets.dir " + d.secrets + "/none is not there"},
		{"add x -c " + missing, 1, "is not there: mount it"},
	} {
		out, errs := d.run(tt.status, strings.Fields(tt.args)...)
		mentions(t, errs, tt.want)
		if out != "" {
			t.Errorf("%s: got %q on standard output of a command that failed", tt.args, out)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"web1", "web2", "database", "jane@example.com"}
	for name, want := range map[string]string{
		"wbe2": "web2", "datbase": "database", "databas": "database", "jane": "jane@example.com", "databaseserver": "database",
		"x": "", "mail": "", "": "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
