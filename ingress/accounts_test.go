package ingress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sync"
	"time"

	"postroad/ingress/account"
)

// fakeSource holds accounts in memory; "away" cannot be read.
type fakeSource map[string]*account.Client

func (f fakeSource) Client(_ context.Context, name string) (*account.Client, error) {
	if name == "away" {
		return nil, account.ErrUnavailable
	}
	if c, isKnown := f[name]; isKnown {
		return c, nil
	}
	return nil, account.ErrUnknown
}

func (f fakeSource) Latest(ctx context.Context, name string) (*account.Client, error) {
	return f.Client(ctx, name)
}

// leaving are accounts of which passing is removed right after its login.
type leaving struct{ *account.Authenticator }

func (l leaving) Current(ctx context.Context, c *account.Client, addr netip.Addr) (*account.Client, error) {
	if c.Name == "passing" {
		return nil, account.ErrCredentials
	}
	return l.Authenticator.Current(ctx, c, addr)
}

// testAccounts knows web01, which may send for from.test; locked, which is
// disabled; web02, which has a certificate; and passing. The password of all is "correct horse".
var testAccounts = sync.OnceValue(func() Accounts {
	sender, err := account.ParseSender("@from.test")
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(testClientCertificate().Certificates[0].Certificate[0])
	certificate := account.Certificate("sha256:" + hex.EncodeToString(sum[:]))
	clients := fakeSource{
		"web01":   {Name: "web01", Class: "host", Senders: []account.Sender{sender}},
		"locked":  {Name: "locked", Class: "host", Disabled: true},
		"web02":   {Name: "web02", Class: "host", Certificates: []account.Certificate{certificate}},
		"passing": {Name: "passing", Class: "host"},
	}
	for _, c := range clients {
		if _, err := c.SetPassword("correct horse", account.Generated, time.Now(), 0); err != nil {
			panic(err)
		}
	}
	a, err := account.New(account.Options{Source: clients, Delay: time.Millisecond, AddressFailures: 1000, AccountFailures: 1000})
	if err != nil {
		panic(err)
	}
	return leaving{a}
})
