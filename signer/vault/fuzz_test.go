package vault

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// FuzzSecret: what somebody wrote by hand is understood, or is a bad key that is
// told about in one short line.
func FuzzSecret(f *testing.F) {
	good := pemOf(f, keyringtest.NewKey(f, "example.com", "s1", keyring.Ed25519))
	f.Add(good, "", "", "", "")
	f.Add(good, "active", "ed25519-sha256", `[{"state":"active","at":"2026-01-02T03:04:05Z"}]`, "v=DKIM1")
	f.Add("-----BEGIN PRIVATE KEY-----\n\n-----END PRIVATE KEY-----", "on", "x", "[", "\n")
	f.Add("", "revoked", "rsa-sha256", "null", "")
	k := &Keys{transit: &transit{}}
	f.Fuzz(func(t *testing.T, key, state, algorithm, history, record string) {
		data := map[string]any{"private_key": key, "state": state, "algorithm": algorithm, "history": history, "record": record, "bits": json.Number(state)}
		e, signer, err := k.open(t.Context(), "example.com", "s1", Secret{Data: data, Version: 1})
		switch {
		case err != nil && !errors.Is(err, keyring.ErrBadKey):
			t.Errorf("got %v, want %v", err, keyring.ErrBadKey)
		case err != nil && (strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 2*maxText+200):
			t.Errorf("got an error that is no short line: %q", err)
		case err == nil && (signer == nil) != e.State.Gone():
			t.Errorf("got a key %t for one that is %s", signer != nil, e.State)
		}
	})
}

// TestMirrorIsFaithful: what the custom metadata repeats is the entry, within
// the bounds that Vault has for it.
func TestMirrorIsFaithful(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := keyring.Entry{
			Domain: "example.com", Selector: "s1", Algorithm: keyring.RSA, Bits: 4096,
			Record: rapid.StringN(0, 800, 800).Draw(t, "record"), By: rapid.String().Draw(t, "by"), Revision: "7",
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			step(&e, keyring.Active, rapid.String().Draw(t, "why"), time.Unix(rapid.Int64Range(0, 1e10).Draw(t, "at"), 0).UTC())
		}
		m := Metadata{Version: 7, Custom: mirror(e, 7)}
		for name, v := range m.Custom {
			if v == "" || len(v) > maxCustomOctets || len(m.Custom) > 64 {
				t.Fatalf("%s: got %d octets", name, len(v))
			}
		}
		got, ok := reflected(m, "example.com", "s1")
		if _, cut := m.Custom["entry00"]; ok != cut {
			t.Fatalf("got %t, want %t", ok, cut)
		}
		if ok && !cmp.Equal(e, got) {
			t.Fatalf("(-want +got):\n%s", cmp.Diff(e, got))
		}
		m.Version = 8
		if _, ok := reflected(m, "example.com", "s1"); ok {
			t.Fatal("taken for the entry of another version")
		}
	})
}
