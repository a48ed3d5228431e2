package routes

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/cmd/internal/config"
	"postroad/delivery/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// live follows a new file with this content, without a clock: tests call look.
func live(t *testing.T, text string) (l *Live, file string, log *bytes.Buffer) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "routes.yaml")
	write(t, file, text)
	c, err := config.Parse("c.yaml", []byte("delivery: {routes_file: "+file+", routes: [{domains: [fixed.test], via: 'smtp:[fixed.test]'}]}"))
	if err != nil {
		t.Fatal(err)
	}
	log = &bytes.Buffer{}
	l, err = New(Options{Delivery: &c.Delivery, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l, file, log
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func hopOf(l *Live, domain string) string {
	return l.Lookup(route.Query{Domain: domain}).NextHop.String()
}

const one = "routes:\n- domains: [a.test]\n  via: smtp:[one.test]:25\n"

// TestS2_25_Reload: a change is in force after two looks, a bad one never, and says so once.
func TestS2_25_Reload(t *testing.T) {
	l, file, log := live(t, one)
	if got := hopOf(l, "a.test"); got != "smtp:[one.test]:25" {
		t.Fatalf("got %s", got)
	}
	if got := hopOf(l, "fixed.test"); got != "smtp:[fixed.test]:25" {
		t.Fatalf("of the configuration: got %s", got)
	}
	fact := l.Fact()

	write(t, file, strings.ReplaceAll(one, "one.test", "two.test"))
	l.look()
	if got := hopOf(l, "a.test"); got != "smtp:[one.test]:25" {
		t.Errorf("after one look: got %s: perhaps it is still being written", got)
	}
	l.look()
	if got := hopOf(l, "a.test"); got != "smtp:[two.test]:25" {
		t.Errorf("after two looks: got %s", got)
	}
	if l.Fact() == fact {
		t.Errorf("got fact %q before and after", fact)
	}

	for _, bad := range []string{
		"routes:\n- domains: [a.test]\n  via: smtp:one.test\n",
		"routes: [",
		one + "- domains: [a.test]\n",
		one + "- domains: [fixed.test]\n",
		one + "- {domains: [b.test], source: nowhere}\n",
	} {
		log.Reset()
		write(t, file, bad)
		for range 4 {
			l.look()
		}
		if got := hopOf(l, "a.test"); got != "smtp:[two.test]:25" {
			t.Errorf("%q: got %s, want the routes before", bad, got)
		}
		if n := strings.Count(log.String(), "changed routes are not taken"); n != 1 {
			t.Errorf("%q: got %d lines, want 1:\n%s", bad, n, log)
		}
		conditions := l.Conditions()
		if len(conditions) != 1 || !strings.Contains(conditions[0].Text, file+":") {
			t.Errorf("%q: got conditions %+v, want one with the place of the fault", bad, conditions)
		}
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	l.look()
	l.look()
	if got := hopOf(l, "a.test"); got != "smtp:[two.test]:25" || len(l.Conditions()) != 1 {
		t.Errorf("without the file: got %s, conditions %v", got, l.Conditions())
	}
	write(t, file, strings.ReplaceAll(one, "one.test", "two.test"))
	l.look()
	if got := l.Conditions(); len(got) != 0 {
		t.Errorf("the old content is back: got conditions %v", got)
	}
}

// TestAuthoritiesAreReadAgain: a new authority is in force without a restart; a broken file leaves the old one.
func TestAuthoritiesAreReadAgain(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, authority(t))
	l, file, _ := live(t, one+"- {domains: [b.test], via: 'smtp:[b.test]', tls: verify, ca: "+ca+"}\n")
	sum := func() string { return l.Lookup(route.Query{Domain: "b.test"}).CA.Sum }
	first := sum()
	l.look()
	write(t, ca, authority(t))
	l.look()
	l.look()
	second := sum()
	if second == first {
		t.Error("the new authority is not in force")
	}
	write(t, ca, "nothing")
	l.look()
	l.look()
	if got := l.Conditions(); sum() != second || len(got) != 1 || !strings.Contains(got[0].Text, ca+" holds no PEM certificate") {
		t.Errorf("broken: got conditions %v", got)
	}
	write(t, ca, authority(t))
	l.look()
	l.look()
	if sum() == second || len(l.Conditions()) != 0 {
		t.Errorf("put right: got conditions %v", l.Conditions())
	}
	// One that a change of the routes brings is looked at from then on.
	other := filepath.Join(t.TempDir(), "other.pem")
	write(t, other, authority(t))
	write(t, file, "routes: [{domains: [b.test], via: 'smtp:[b.test]', tls: verify, ca: "+other+"}]")
	l.look()
	l.look()
	third := sum()
	write(t, other, authority(t))
	l.look()
	l.look()
	if sum() == third {
		t.Error("the other authority is not looked at")
	}
}

// authority is the certificate of a new one.
func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestChangeOfTheSameSize: the clock of files may be coarse, so a young file is read again whatever its time says.
func TestChangeOfTheSameSize(t *testing.T) {
	l, file, _ := live(t, one)
	at := time.Now().Add(time.Hour) // young for as long as the test takes
	for i := range 3 {
		write(t, file, strings.ReplaceAll(one, "one.test", fmt.Sprintf("is%d.test", i)))
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		l.look()
		l.look()
		if got, want := hopOf(l, "a.test"), fmt.Sprintf("smtp:[is%d.test]:25", i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestStartFollows(t *testing.T) {
	l, file, _ := live(t, one)
	l.interval = time.Millisecond
	l.Start()
	write(t, file, strings.ReplaceAll(one, "one.test", "two.test"))
	for end := time.Now().Add(time.Minute); hopOf(l, "a.test") != "smtp:[two.test]:25"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the change is not in force after a minute")
		}
	}
}

func TestNewRefusesFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes.yaml")
	c := config.Default()
	c.Delivery.RoutesFile = file
	if _, err := New(Options{Delivery: &c.Delivery}); err == nil {
		t.Error("got no error without the file")
	}
	write(t, file, "routes: [{domains: ['/(/']}]")
	if _, err := New(Options{Delivery: &c.Delivery}); err == nil || !strings.Contains(err.Error(), file+":1: routes[0].domains[0]") {
		t.Errorf("got %v", err)
	}
}
