package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/cmd/internal/sink"
	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/tlsrpt"
	"postroad/signer/keyring"
)

// reportNames has a TLSRPT record for each domain.
type reportNames struct{ mxtest.Records }

func (reportNames) LookupTXT(_ context.Context, name string) ([]string, error) {
	if domain, is := strings.CutPrefix(name, "_smtp._tls."); is {
		return []string{"v=TLSRPTv1; rua=mailto:reports@" + domain}, nil
	}
	return nil, mx.ErrNoName
}

func (reportNames) LookupTLSA(context.Context, string) (mx.TLSAAnswer, error) {
	return mx.TLSAAnswer{}, nil
}

func (reportNames) LookupAlias(context.Context, string) (bool, error) { return false, nil }

// Row E5-72: a report goes out through the own queue, once, under the null reverse-path, signed for the relay's domain with a key whose record
// admits it (RFC 8460 §3).
func TestE5_72_ReportIsSentAndSigned(t *testing.T) {
	type got struct{ reversePath, recipient, data string }
	arrived := make(chan got, 10)
	s, err := sink.New(sink.Options{Message: func(m *sink.Message) sink.Reply {
		arrived <- got{m.ReversePath, m.Recipients[0], string(m.Data)}
		return ""
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(t.Context())) })
	c := testConfig(shortDir(t), s.Addr().(*net.TCPAddr).Port)
	c.Domain, c.Delivery.TLSReports.Enabled, c.Delivery.TLSReports.Organization = "relay.example", true, "Example"
	key, err := keyring.Generate(c.SecretsDir(), c.Domain, "s1", keyring.RSA)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(t.Context(), Options{Config: c, Resolver: reportNames{}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test", patience: timeLimit})
	if err != nil {
		t.Fatal(err)
	}
	const day = `{"tally":{"policies":[{"policy":{"policy-type":"no-policy-found","policy-domain":"b.example"},"good":3,"bad":0}]}}`
	store := tallies{d.queue}
	if err := store.Put(t.Context(), "2020-01-01 b.example", []byte(day), 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), "2020-01-01 b.example", nil, 0, time.Hour); !errors.Is(err, tlsrpt.ErrChanged) {
		t.Errorf("another revision: got %v", err)
	}
	d.Start()
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	select {
	case m := <-arrived:
		if m.reversePath != "" || m.recipient != "reports@b.example" || !strings.Contains(m.data, "TLS-Report-Domain: b.example\r\n") || !strings.Contains(m.data, "From: TLS reports <postmaster@relay.example>\r\n") {
			t.Errorf("got from <%s> to <%s>:\n%s", m.reversePath, m.recipient, m.data)
		}
		record := keyring.Record(key)
		verified, err := dkim.VerifyWithOptions(strings.NewReader(m.data), &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) { return []string{record}, nil }})
		if err != nil || len(verified) != 1 || verified[0].Err != nil || verified[0].Domain != c.Domain || !strings.Contains(record, "s=*;") {
			t.Errorf("got signatures %+v, %v", verified, err)
		}
	case <-time.After(timeLimit):
		t.Fatal("no report")
	}
	waitFor(t, func() bool {
		keys, err := store.Keys(t.Context())
		return err == nil && len(keys) == 0
	})
	if len(arrived) > 0 {
		t.Error("the report was sent more than once")
	}
}

// What one worker has fetched is kept for all.
func TestE5_70_PoliciesAreKept(t *testing.T) {
	c := testConfig(shortDir(t), 1)
	d := start(t, c)
	p := policies{d.queue}
	for _, text := range []string{"one", "two"} {
		if err := p.Put(t.Context(), "example.net", []byte(text), time.Hour); err != nil {
			t.Fatal(err)
		}
		if got, err := p.Get(t.Context(), "example.net"); err != nil || string(got) != text {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if got, err := p.Get(t.Context(), "example.org"); err != nil || got != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
