package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/smtp"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postroad/cmd/internal/secrets/fakevault"
	"postroad/cmd/internal/sink"
)

// sender is a client that sends mail without pause, as its configuration says: it trusts some roots and has a password.
type sender struct {
	address, user, password string
	roots                   *x509.CertPool

	sent   atomic.Int64
	failed []error
}

func poolOf(t *testing.T, pem string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		t.Fatalf("no certificate in %q", pem)
	}
	return pool
}

// run sends one message in each session until ctx ends.
func (s *sender) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.send(); err != nil {
			s.failed = append(s.failed, err)
		}
		s.sent.Add(1)
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *sender) send() error {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Minute}, Config: &tls.Config{RootCAs: s.roots, ServerName: "relay.example.com"}}
	conn, err := dialer.Dial("tcp", s.address)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	c, err := smtp.NewClient(conn, "relay.example.com")
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := c.Auth(smtp.PlainAuth("", s.user, s.password, "relay.example.com")); err != nil {
		return fmt.Errorf("log in as %s: %w", s.user, err)
	}
	if err := c.Mail("root@" + s.user + ".example.com"); err != nil {
		return fmt.Errorf("mail: %w", err)
	}
	if err := c.Rcpt("you@elsewhere.example"); err != nil {
		return fmt.Errorf("rcpt: %w", err)
	}
	w, err := c.Data()
	if err == nil {
		_, err = fmt.Fprintf(w, "From: root@%s.example.com\r\nSubject: during a rotation\r\n\r\nhello\r\n", s.user)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	return c.Quit()
}

// startRelay runs a server whose certificate and accounts are where the configuration of a desk says, and returns its address.
func startRelay(t *testing.T, d *desk, file string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	logs := &lockedBuffer{}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"serve", "-c", file}, logs, logs) }()
	t.Cleanup(func() {
		cancel()
		if status := <-ended; status != 0 {
			t.Errorf("serve ended with %d:\n%s", status, logs.String())
		}
		if t.Failed() {
			t.Log(logs.String())
		}
	})
	waitFor(t, func() bool { return strings.Contains(logs.String(), `"msg":"ready"`) })
	for line := range strings.SplitSeq(logs.String(), "\n") {
		var l struct{ Msg, Address string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "accepting mail" {
			return l.Address
		}
	}
	t.Fatalf("the log does not tell the address:\n%s", logs.String())
	return ""
}

// TestRotationUnderLoad replaces authority, certificate and passwords of a server that is in use. Clients that know only the old root and the
// old password go on, and others begin that know only the new ones: no session fails.
func TestRotationUnderLoad(t *testing.T) {
	for _, where := range []string{"directory", "vault"} {
		t.Run(where, func(t *testing.T) { rotateUnderLoad(t, where) })
	}
}

func rotateUnderLoad(t *testing.T, where string) {
	s, err := sink.New(sink.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	dir := shortDir(t)
	settings := "secrets: {}"
	if where == "vault" {
		v := fakevault.New(t)
		t.Setenv("POSTROAD_VAULT_TOKEN_FILE", v.TokenFile)
		settings = fmt.Sprintf("secrets: {vault: {address: %q, login: token, secret_file: %s}}", v.URL, v.TokenFile)
	}
	file := writeFile(t, filepath.Join(dir, "postroad.yaml"), fmt.Sprintf(`
hostname: relay.example.com
data_dir: %s/data
queue: {max_bytes: 128MiB}
ingress: {listeners: [{address: "127.0.0.1:0", tls: implicit, auth: required, certificates: [{secret: relay}]}]}
signer: {missing_key: pass}
delivery:
  routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:%d", tls: none, allow_private: true}]
log: {format: json}
%s
`, dir, s.Addr().(*net.TCPAddr).Port, settings))
	d := &desk{t: t, file: file}
	d.rotate("--ca", "--server-cert", "relay", "--names", "relay.example.com")
	passwords := map[string]string{}
	for _, name := range []string{"web1", "web2"} {
		out, _ := d.run(0, "add", name)
		passwords[name] = strings.TrimSpace(out)
	}
	oldRoots, _ := d.give(0, "secrets", "ca")
	address := startRelay(t, d, file)

	loading, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var senders []*sender
	begin := func(user, password, roots string) {
		one := &sender{address: address, user: user, password: password, roots: poolOf(t, roots)}
		senders = append(senders, one)
		wg.Go(func() { one.run(loading) })
	}
	begin("web1", passwords["web1"], oldRoots)
	begin("web1", passwords["web1"], oldRoots)
	// goOn waits until each has begun and ended a session after this.
	goOn := func() {
		t.Helper()
		for _, one := range senders {
			before := one.sent.Load()
			waitFor(t, func() bool { return one.sent.Load() >= before+2 })
		}
	}
	goOn()

	r := d.rotate("--ca", "--server-cert", "relay", "--client", "web1", "--client", "web2")
	if len(r.Rows) != 4 || r.Rows[1].InForce != "on 1 of 1 nodes" || r.Rows[1].InForceSince.IsZero() {
		t.Errorf("got %+v, want the certificate in force on the one node", *r.Rows[1])
	}
	var newest listedRoot
	out, _ := d.give(0, "secrets", "ca", "--json")
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		var one listedRoot
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		if one.Newest {
			newest = one
		}
	}
	bundle, _ := d.give(0, "secrets", "ca")
	for _, p := range r.Passwords {
		begin(p.Client, p.Password, newest.PEM)
		begin(p.Client, p.Password, bundle)
	}
	begin("web2", passwords["web2"], oldRoots)
	// Once more, before anybody has the root of the first rotation: clients that know only the very first one go on.
	goOn()
	again := d.rotate("--ca", "--server-cert", "relay")
	if !again.Complete || again.Rows[1].Old != r.Rows[1].New {
		t.Errorf("got %+v", again)
	}
	goOn()
	stop()
	wg.Wait()
	total := 0
	for i, one := range senders {
		total += int(one.sent.Load())
		if len(one.failed) > 0 || one.sent.Load() == 0 {
			t.Errorf("sender %d (%s): %d of %d sessions failed: %v", i, one.user, len(one.failed), one.sent.Load(), one.failed[:min(len(one.failed), 3)])
		}
	}
	t.Logf("%d sessions of %d clients", total, len(senders))

	// Who uses what.
	waitFor(t, func() bool { return len(d.listed("clients")["web2"].Uses) == 2 })
	now := d.listed("clients")
	if web2 := now["web2"]; web2.UseIs != "known" || web2.LastUse.Node == "" || !strings.HasPrefix(web2.LastUse.Address, "127.0.0.1") {
		t.Errorf("got %+v", web2)
	}
	out, errs := d.give(0, "secrets", "list", "--old-passwords")
	mentions(t, out, "web1", "web2", now["web2"].Passwords[1].ID, "127.0.0.1")
	mentions(t, errs, "2 of 2 clients")
	out, _ = d.run(0, "list")
	mentions(t, out, "the one before for 23h", ", used ")
	out, _ = d.give(0, "secrets", "list")
	mentions(t, out, "in force on 1 of 1 nodes", "an old password")
	if relay := d.listed("tls")["relay"]; relay.Serves != 1 || len(relay.InForce) != 1 {
		t.Errorf("got %+v", relay)
	}

	// What nobody serves is said to be missing; not when it is made for the first time.
	_, errs = d.give(0, "secrets", "rotate", "--server-cert", "spare", "--names", "spare.example.com")
	mentions(t, errs, "no node serves it yet")
	_, errs = d.give(1, "secrets", "rotate", "--server-cert", "spare", "--wait", "0s")
	mentions(t, errs, "MISSING: no ingress node says that it serves tls/spare", "stored and not in force everywhere", "nothing need be done again")
}
