package dkim_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	ours "postroad/cmd/internal/dkim"
	"postroad/cmd/internal/dkim/dnstest"
	"postroad/signer"
	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
	"postroad/signer/rotation"
)

// names are a Resolver.
type names struct {
	records map[string][]string
	err     error
}

// Resolve implements dkim.Resolver.
func (n names) Resolve(_ context.Context, name string) ([]string, error) {
	return n.records[name], n.err
}

// letter is a message with the signatures of keys.
func letter(t *testing.T, body string, keys ...keyring.Key) string {
	t.Helper()
	text := "From: a@example.com\r\nTo: b@example.net\r\nSubject: hello\r\nDate: Mon, 2 Jan 2006 15:04:05 +0000\r\n\r\n" + body
	fields, err := signer.SignWith(t.Context(), keys, strings.NewReader(text), 9*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return fields + text
}

func TestVerify(t *testing.T) {
	rsa, ed := keyringtest.NewKey(t, domain, "r1", keyring.RSA), keyringtest.NewKey(t, domain, "e1", keyring.Ed25519)
	other := keyringtest.NewKey(t, domain, "r1", keyring.RSA)
	rsaName, edName := rotation.Name(domain, "r1"), rotation.Name(domain, "e1")
	good := names{records: map[string][]string{rsaName: {keyring.Record(rsa)}, edName: {keyring.Record(ed)}}}
	with := func(name string, records ...string) names {
		n := names{records: map[string][]string{rsaName: {keyring.Record(rsa)}, edName: {keyring.Record(ed)}}}
		n.records[name] = records
		return n
	}
	mail := letter(t, "one\r\ntwo\r\n", rsa, ed)
	var expired strings.Builder
	if err := dkim.Sign(&expired, strings.NewReader(mail), &dkim.SignOptions{Domain: domain, Selector: "r1", Signer: rsa.Signer, Expiration: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		dns  names
		mail string
		want []string // result and some words of why, or a note
	}{
		{"good", good, mail, []string{"pass", "pass"}},
		{"saved with LF", good, strings.ReplaceAll(mail, "\r\n", "\n"), []string{"pass", "pass"}},
		{"in an mbox", good, "From a@example.com Mon Jan  2 15:04:05 2006\n" + strings.ReplaceAll(mail, "\r\n", "\n"), []string{"pass", "pass"}},
		{"changed body", good, mail + "three\r\n", []string{"fail the body is not the one that was signed", "fail the body is not"}},
		{"changed header", good, strings.Replace(mail, "Subject: hello", "Subject: hi", 1), []string{"fail a signed header field was changed", "fail a signed header field"}},
		{"added header", good, strings.Replace(mail, "From: ", "Cc: x@example.com\r\nFrom: ", 1), []string{"fail a signed header field", "fail"}},
		{"one has no record", with(edName), mail, []string{"pass", "permerror there is no record e1._domainkey.example.com"}},
		{"revoked", with(rsaName, "v=DKIM1; p="), mail, []string{"permerror the key is revoked", "pass"}},
		{"another key", with(rsaName, keyring.Record(other)), mail, []string{"fail another key signed", "pass"}},
		{"two records", with(rsaName, keyring.Record(rsa), "x"), mail, []string{"permerror multiple TXT records", "pass"}},
		{"testing", with(edName, keyring.Record(ed)+"; t=s:y"), mail, []string{"pass", "pass only testing (t=y)"}},
		{"no answer", names{err: errors.New("timeout")}, mail, []string{"temperror key unavailable: timeout", "temperror"}},
		{"expired", good, expired.String(), []string{"permerror the signature has expired on", "pass", "pass"}},
		{"unreadable", good, "DKIM-Signature: nonsense\r\n" + mail, []string{"permerror malformed signature tags", "pass", "pass"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ours.Verify(t.Context(), tt.dns, strings.NewReader(tt.mail))
			if err != nil || len(got) != len(tt.want) {
				t.Fatalf("got %+v, %v, want %q", got, err, tt.want)
			}
			for i, want := range tt.want {
				result, text, _ := strings.Cut(want, " ")
				said := got[i].Why + strings.Join(got[i].Notes, "")
				if string(got[i].Result) != result || !strings.Contains(said, text) || result != "pass" && said == "" {
					t.Errorf("signature %d: got %+v, want %q", i, got[i], want)
				}
			}
		})
	}
	got, err := ours.Verify(t.Context(), good, strings.NewReader(mail))
	if err != nil || got[0].Selector != "r1" || got[0].Algorithm != "rsa-sha256" || got[1].Selector != "e1" || got[1].Domain != domain || got[0].Expires.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ours.Verify(t.Context(), good, strings.NewReader("From: a@example.com\r\n\r\nDKIM-Signature: d=x\r\n")); !errors.Is(err, ours.ErrNoSignature) {
		t.Errorf("got %v, want %v", err, ours.ErrNoSignature)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ours.Verify(ctx, good, strings.NewReader(mail)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestManySignatures: what a stranger may put into a header is bounded.
func TestManySignatures(t *testing.T) {
	mail := strings.Repeat("DKIM-Signature: v=1; d=example.com; s=x\r\n", 60) + "From: a@example.com\r\n\r\nx\r\n"
	got, err := ours.Verify(t.Context(), names{}, strings.NewReader(mail))
	if err != nil || len(got) != 60 || !strings.Contains(got[59].Why, "beyond the first 50") {
		t.Errorf("got %d, %v", len(got), err)
	}
}

// TestSignsAndVerifies asks a real name server, by way of a resolver.
func TestSignsAndVerifies(t *testing.T) {
	s := dnstest.Start(t, domain)
	c := settings(s)
	dns, err := ours.NewDNS(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	rsa := keyringtest.NewKey(t, domain, "r1", keyring.RSA)
	test := func() ours.Signature {
		t.Helper()
		got, err := ours.TestSign(t.Context(), c, dns, []keyring.Key{rsa})
		if err != nil || len(got) != 1 {
			t.Fatalf("got %+v, %v", got, err)
		}
		return got[0]
	}
	if got := test(); got.Result != ours.PermError || !strings.Contains(got.Why, "there is no record") {
		t.Errorf("without a record: got %+v", got)
	}
	s.Set(rotation.Name(domain, "r1"), keyring.Record(rsa))
	if got := test(); got.Result != ours.Pass || got.Selector != "r1" {
		t.Errorf("got %+v", got)
	}
	if _, err := ours.TestSign(t.Context(), c, dns, nil); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, want %v", err, keyring.ErrNoKey)
	}
}
