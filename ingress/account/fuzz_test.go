package account

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

// FuzzExchange says anything to any mechanism: no panic, an end after a few
// steps, and nobody gets in without the password. Lines are responses.
func FuzzExchange(f *testing.F) {
	for i, text := range []string{
		"\x00web1\x00" + goodPassword, "web1\n" + wrongPassword, "n,,n=web1,r=abc\nc=biws,r=abc,p=AAAA", "p=tls-exporter,,n=web1,r=x",
		"y,a=web1,n=we=2Cb1,r=x", "", "\x00\x00\x00", "n,,m=,n=web1,r=x",
	} {
		for mechanism := range 4 {
			f.Add(byte(mechanism), text+strings.Repeat("\n", i))
		}
	}
	b := newBook(f)
	mechanisms := []string{Plain, Login, SCRAM256, External}
	peer := from("192.0.2.1")
	peer.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: []byte("x"), DNSNames: []string{"web1"}}}}
	f.Fuzz(func(t *testing.T, mechanism byte, text string) {
		a := newAuth(t, b, func(o *Options) { o.Delay, o.LongestDelay = 1, 1 })
		x, err := a.Begin(mechanisms[int(mechanism)%len(mechanisms)], peer)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for line := range strings.SplitSeq(text, "\n") {
			_, done, err := x.Next(t.Context(), []byte(line))
			if done && !strings.Contains(text, goodPassword) {
				t.Errorf("%q got in", text)
			}
			if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCredentials) {
				t.Errorf("%q: got %v", text, err)
			}
			if done || err != nil {
				break
			}
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%q took %v", text, took)
		}
	})
}
