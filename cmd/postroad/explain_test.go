package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/rewrite"
)

// explainConfig writes a configuration with rules, aliases and a route, and gives its name and directory.
func explainConfig(t *testing.T) (file, dir string) {
	t.Helper()
	dir = shortDir(t)
	rules := writeFile(t, filepath.Join(dir, "rules.yaml"), `canonical:
  - match: '^(.*)@(.*)\.intra.example\.org$'
    to: '$2-admin@example.org'
    who: senders
alias_domains: [lists.example.org]
`)
	aliases := writeFile(t, filepath.Join(dir, "aliases"), "postmaster: root\nroot: admin@example.com\nteam: root, carol@elsewhere.example\n")
	return writeFile(t, filepath.Join(dir, "c.yaml"), `domain: example.org
data_dir: `+dir+`/data
ingress:
  rewrite: {rules: `+rules+`, aliases: `+aliases+`}
delivery:
  routes:
    - domains: [example.com]
      via: smtp:[smart.example.net]:587
      tls: verify
`), dir
}

// TestExplain is the issue's `postroad explain`: what a rewrite does and why, and the route.
func TestExplain(t *testing.T) {
	file, dir := explainConfig(t)
	status, out, errs := command(t, "explain", "-c", file, "root@db.intra.example.org", "team")
	if status != 0 || errs != "" {
		t.Fatalf("got status %d: %s", status, errs)
	}
	want := `sender     <root@db.intra.example.org>
             → db-admin@example.org  (DIR/rules.yaml:2: ^(.*)@(.*)\.intra.example\.org$ → $2-admin@example.org)
recipient  <team>
             → team@example.org  (own domain, for clients that may leave it out)
             → root@example.org, carol@elsewhere.example  (DIR/aliases:3: team)
             → admin@example.com  (DIR/aliases:2: root)
envelope   MAIL FROM:<db-admin@example.org>
           RCPT TO:<admin@example.com> ORCPT=rfc822;team@example.org
             to smtp:[smart.example.net]:587, TLS verify (route for example.com)
               limits of the site smtp:[smart.example.net]:587
                 20 connections, no rate of messages, no rate of new connections, 100 messages a connection: built-in default
           RCPT TO:<carol@elsewhere.example> ORCPT=rfc822;team@example.org
             to the MX hosts of its domain, TLS opportunistic (no route matches)
               limits, without those of its site and hosts: --hosts finds them
                 20 connections, no rate of messages, no rate of new connections, 100 messages a connection: built-in default
not known  limits that operators set, and suspensions: there is no admin socket DIR/data/ops.sock: is ` + "`postroad serve`" + ` running, with the same configuration (-c) or data_dir?
header     To: team@example.org
           From: db-admin@example.org
             → db-admin@example.org  (DIR/rules.yaml:2: ^(.*)@(.*)\.intra.example\.org$ → $2-admin@example.org)
signed     yes, if there is a key
             d=example.org
             keys of example.org cannot be looked at: key directory DIR/data/secrets/dkim is not there: mount it, or create it with mode 0700: stat DIR/data/secrets/dkim: no such file or directory
doubt      DIR/rules.yaml:2: a dot stands for any character here; write ^(.*)@(.*)\.intra\.example\.org$ if dots are meant
`
	if diff := cmp.Diff(want, strings.ReplaceAll(out, dir, "DIR")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExplainAsJSON(t *testing.T) {
	file, _ := explainConfig(t)
	status, out, errs := command(t, "explain", "-c", file, "--json", "<>", "<nobody@lists.example.org>")
	if status != 1 || errs != "" {
		t.Errorf("got status %d, %q", status, errs)
	}
	var got explanation
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Refused == nil || got.Refused.Command != "RCPT" || !strings.HasPrefix(got.Refused.Reply, "550 5.1.1 ") || len(got.Recipients) != 0 {
		t.Errorf("got %s", out)
	}
	status, out, _ = command(t, "explain", "-c", file, "--json", "a@b.example", "root")
	got = explanation{}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		t.Fatalf("got status %d, %v: %s", status, err, out)
	}
	want := []explainedRecipient{{Address: "admin@example.com", ORCPT: "rfc822;root@example.org", Route: "example.com", NextHop: "smtp:[smart.example.net]:587", TLS: "verify",
		Retry: &explainedRetry{Schedule: "1m, 5m, 15m, 1h, 4h", MaxAge: "5d"}}}
	if diff := cmp.Diff(want, got.Recipients, cmpopts.IgnoreUnexported(explainedRecipient{}, explainedRetry{}), cmpopts.IgnoreFields(explainedRecipient{}, "Shaping")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(got.Recipient.Steps) != 2 || got.Recipient.Steps[1].Stage != rewrite.StageAlias || got.Recipient.Steps[1].Line != 2 {
		t.Errorf("got steps %+v", got.Recipient.Steps)
	}
}

// TestExplainRoutes: the winner, the losers and why, and never a password.
func TestExplainRoutes(t *testing.T) {
	dir := shortDir(t)
	pair, err := authority.SelfSigned(authority.Request{Names: []string{"a.example.net"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	ca := writeFile(t, filepath.Join(dir, "ca.pem"), string(authority.EncodeCertificate(pair.Leaf)))
	routes := writeFile(t, filepath.Join(dir, "routes.yaml"), strings.ReplaceAll(`routes:
  - {name: rest, domains: ["*"], via: "smtp:[a.example.net]:587|smtp:[b.example.net]:587*2", tls: verify, ca: CAFILE, auth: provider, client_cert: client-relay, source: system}
  - {name: web, domains: ["*"], clients: [net:10.0.0.0/8], via: mx:example.net}
  - {domains: [s.example], via: "smtps:[s.example.net]", auth: s, auth_insecure: true}
  - {domains: [void.example], via: discard}
  - {domains: [local.example], via: "error:550 5.1.1 local delivery is disabled"}
  - {domains: [later.example], via: "error:450 4.3.2 not yet"}
  - {name: alice, domains: ["*"], senders: ["alice@example.org"], via: mx, allow_private: true}
`, "CAFILE", ca))
	file := writeFile(t, filepath.Join(dir, "c.yaml"), "domain: example.org\ndata_dir: "+dir+"/data\ndelivery:\n  routes_file: "+routes+"\n  routes: [{domains: [.example.com], via: 'smtp:[c.example.net]'}]\n"+
		"  sources: [{name: one, ipv4: 192.0.2.1, ehlo: one.example.org}]\n  pools: [{name: bulk, members: [{source: one}]}]\n")
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"everything", []string{"x@example.org", "bob@else.example"}, `             to smtp:[a.example.net]:587|smtp:[b.example.net]:587*2, TLS verify by CAFILE, login smarthosts/provider, certificate tls/client-relay, from the pool system (route rest: *)
               not web: is for some clients only, and no client is given
               not alice: is for other senders
`},
		{"client", []string{"alice@example.org", "bob@else.example", "--client", "net:10.0.0.0/8"}, `             to the MX hosts of its domain, TLS opportunistic (route alice: * from alice@example.org)
               not web: its sender is less specific
               not rest: it has fewer conditions
`},
		{"other client", []string{"x@example.org", "bob@else.example", "--client", "net:10.0.0.0/8"}, `             to the MX hosts of example.net, TLS opportunistic (route web: * client net:10.0.0.0/8)
               not alice: is for other senders
               not rest: it has fewer conditions
`},
		{"TLS from the first octet", []string{"x@example.org", "bob@s.example"}, `             to smtps:[s.example.net]:465, TLS encrypt, login smarthosts/s whoever the host is (route for s.example)
`},
		{"discard", []string{"x@example.org", "bob@void.example"}, `             thrown away, nobody is told (route for void.example)
               not web: `},
		{"bounce", []string{"x@example.org", "bob@local.example"}, `             returned to its sender: error:550 5.1.1 local delivery is disabled (route for local.example)
`},
		{"wait", []string{"x@example.org", "bob@later.example"}, `             waits: error:450 4.3.2 not yet (route for later.example)
`},
		{"of the configuration", []string{"x@example.org", "bob@a.example.com"}, `             to smtp:[c.example.net]:25, TLS opportunistic (route for .example.com)
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errs := command(t, append([]string{"explain", "-c", file}, tt.args...)...)
			if status != 0 || !strings.Contains(strings.ReplaceAll(out, ca, "CAFILE"), tt.want) {
				t.Errorf("got status %d: %s\n%swant\n%s", status, errs, out, tt.want)
			}
		})
	}
	writeFile(t, routes, "routes: [{domains: ['*'], via: nowhere}]")
	if status, _, errs := command(t, "explain", "-c", file, "x@example.org", "bob@else.example"); status == 0 || !strings.Contains(errs, routes+":1: routes[0].via") {
		t.Errorf("a bad file: got status %d: %s", status, errs)
	}
}

// TestExplainAllowList: where mail may only go to some, a target of an alias that is not among them is shown, and refused.
func TestExplainAllowList(t *testing.T) {
	file, dir := explainConfig(t)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	file = writeFile(t, filepath.Join(dir, "allow.yaml"), strings.Replace(string(content), "ingress:\n", "ingress:\n  allowed_recipients: ['@example.com']\n", 1))
	if status, out, errs := command(t, "explain", "-c", file, "a@b.example", "root"); status != 0 || !strings.Contains(out, "RCPT TO:<admin@example.com>") {
		t.Errorf("allowed: got status %d\n%s%s", status, out, errs)
	}
	status, out, errs := command(t, "explain", "-c", file, "a@b.example", "team")
	if status != 1 || !strings.Contains(out, "refused    RCPT: 550 5.7.1") || !strings.Contains(errs, "ingress.allowed_recipients does not name <carol@elsewhere.example>") {
		t.Errorf("not allowed: got status %d\n%s%s", status, out, errs)
	}
}

func TestExplainEnds(t *testing.T) {
	file, dir := explainConfig(t)
	bad := writeFile(t, filepath.Join(dir, "bad"), "root: |command\n")
	good := writeFile(t, filepath.Join(dir, "good"), "root: other@example.net\n")
	for _, args := range [][]string{{"client", "add", "web", "--sender", "@example.org"}, {"client", "add", "old"}, {"client", "disable", "old"}} {
		if status, _, errs := command(t, append(args, "-c", file)...); status != 0 {
			t.Fatalf("%v: got status %d: %s", args, status, errs)
		}
	}
	tests := []struct {
		args   []string
		status int
		out    string
		err    string
	}{
		{[]string{"a@b.example", "nobody@lists.example.org"}, 1, "refused    RCPT: 550 5.1.1 no such recipient here", "refused at RCPT: nobody@lists.example.org"},
		{[]string{"a@b.example", "root", "--aliases", good}, 0, "RCPT TO:<other@example.net>", ""},
		{[]string{"a@b.example", "root", "--aliases", bad}, 2, "", bad + `:1: "|command": a relay runs no commands`},
		{[]string{"a@b.example", "root", "--aliases", bad, "--json"}, 2, `"line":1`, ""},
		{[]string{"a@b.example", "root", "--rules", bad + "none"}, 2, "", "no such file"},
		{[]string{"a@example.org", "root", "--client", "web"}, 0, "client     web", ""},
		{[]string{"a@b.example", "root", "--client", "web"}, 1, "refused    MAIL: 550 5.7.1", "web may not send as <a@b.example>"},
		{[]string{"a@b.example", "root", "--client", "old"}, 1, "refused    AUTH: 535 5.7.8", "disabled"},
		{[]string{"a@b.example", "root", "--client", "none"}, 1, "", "client none: "},
		{[]string{"a@b.example", "root", "--client", "?"}, 2, "", "no name of a client"},
		{[]string{"a b", "root"}, 2, "", "sender: "},
		{[]string{"a@b.example", "<>"}, 2, "", "recipient: a recipient is needed"},
		{[]string{"a@b.example", "a@@b"}, 2, "", "recipient: "},
		{[]string{"a@b.example"}, 2, "", "expected"},
	}
	for _, tt := range tests {
		status, out, errs := command(t, append([]string{"explain", "-c", file}, tt.args...)...)
		if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
			t.Errorf("%v: got status %d\nout: %s\nerr: %s\nwant %d, %q, %q", tt.args, status, out, errs, tt.status, tt.out, tt.err)
		}
	}
}
