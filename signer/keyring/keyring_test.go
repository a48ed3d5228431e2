package keyring_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postroad/signer/keyring"
)

func TestGenerate(t *testing.T) {
	for _, algorithm := range []keyring.Algorithm{keyring.RSA, keyring.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) {
			secrets := filepath.Join(t.TempDir(), "secrets")
			made, err := keyring.Generate(secrets, "Example.COM", "s1.mail", algorithm)
			if err != nil {
				t.Fatal(err)
			}
			if made.Domain != "example.com" || made.Selector != "s1.mail" || made.Algorithm != algorithm {
				t.Errorf("got %s of %s (%s)", made.Selector, made.Domain, made.Algorithm)
			}
			keys, err := newDir(t, keyring.DirOptions{Path: secrets}).Keys(t.Context(), "example.com")
			if err != nil || len(keys) != 1 {
				t.Fatalf("read back: got %v, %v, want one key", keys, err)
			}
			if keyring.Record(keys[0]) != keyring.Record(made) {
				t.Errorf("read back another key")
			}
			info, err := os.Stat(keyPath(secrets, "example.com", "s1.mail"))
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
			}
			if _, err := keyring.Generate(secrets, "example.com", "s1.mail", algorithm); !errors.Is(err, keyring.ErrExists) {
				t.Errorf("second key for the selector: got %v, want %v", err, keyring.ErrExists)
			}
			list, err := os.ReadDir(filepath.Join(secrets, "dkim", "example.com"))
			if err != nil || len(list) != 1 {
				t.Errorf("got %v, %v, want the key file alone", list, err)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	for _, c := range [][3]string{
		{"", "s1", "rsa-sha256"}, {"../x", "s1", "rsa-sha256"}, {"example.com", "", "rsa-sha256"},
		{"example.com", "../s1", "rsa-sha256"}, {"example.com", "S1", "rsa-sha256"}, {"example.com", "s1", "rsa-sha1"},
	} {
		if _, err := keyring.Generate(t.TempDir(), c[0], c[1], keyring.Algorithm(c[2])); err == nil {
			t.Errorf("%v: got no error", c)
		}
	}
}

func TestRecord(t *testing.T) {
	// The key pair of RFC 8463 appendix A.2.
	seed, err := base64.StdEncoding.DecodeString("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
	if err != nil {
		t.Fatal(err)
	}
	k := keyring.Key{Signer: ed25519.NewKeyFromSeed(seed)}
	want := "v=DKIM1; h=sha256; s=*; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	if diff := cmp.Diff(want, keyring.Record(k)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	secrets := t.TempDir()
	data, err := os.ReadFile(filepath.Join("testdata", "rsa-pkcs8.pem"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, secrets, "example.com", "s1", data)
	keys, err := newDir(t, keyring.DirOptions{Path: secrets}).Keys(t.Context(), "example.com")
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join("testdata", "public.pem"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(public)), "\n")
	want = "v=DKIM1; h=sha256; s=*; k=rsa; p=" + strings.Join(lines[1:len(lines)-1], "")
	if diff := cmp.Diff(want, keyring.Record(keys[0])); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

func TestCleanDomain(t *testing.T) {
	for _, c := range []struct {
		in, want string
		ok       bool
	}{
		{"example.com", "example.com", true},
		{"EXAMPLE.com.", "example.com", true},
		{"xn--mnchen-3ya.example", "xn--mnchen-3ya.example", true},
		{"_x.example", "_x.example", true},
		{"localhost", "localhost", true},
		{"example.com..", "", false},
		{"", "", false},
		{".", "", false},
		{"a..b", "", false},
		{"a/b", "", false},
		{"[192.0.2.1]", "", false},
		{"-a.example", "", false},
		{"a-.example", "", false},
		{strings.Repeat("a", 64) + ".example", "", false},
		{strings.Repeat("a.", 127) + "a", "", false},
	} {
		got, ok := keyring.CleanDomain(c.in)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%q: got %q, %t, want %q, %t", c.in, got, ok, c.want, c.ok)
		}
	}
}

// A key whose record was written by an older version is the same key.
func TestSameKey(t *testing.T) {
	const now, then, other = "v=DKIM1; h=sha256; s=*; k=rsa; p=AAAA", "v=DKIM1; h=sha256; s=email; k=rsa; p=AAAA", "v=DKIM1; h=sha256; s=email; k=rsa; p=AAAB"
	if !keyring.SameKey(now, then) || keyring.SameKey(now, other) || keyring.SameKey(now, "") || keyring.SameKey("", "") {
		t.Error("got it wrong")
	}
}
