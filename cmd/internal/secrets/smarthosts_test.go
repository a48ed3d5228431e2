package secrets

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"postroad/delivery/smarthost"
)

// TestE3_52_SmartHosts: logins and client certificates of next hops, from a directory and from Vault alike.
func TestE3_52_SmartHosts(t *testing.T) {
	run := func(t *testing.T, s *Secrets, put func(name string, fields map[string]any), faults func(smarthost.Source)) {
		ctx := t.Context()
		source := s.SmartHosts()
		for _, name := range []string{"provider", "../tls/relay", ""} {
			if _, _, err := source.Login(ctx, name); !errors.Is(err, smarthost.ErrMissing) {
				t.Errorf("login %q: got %v, want that it is missing", name, err)
			}
			if _, _, err := source.Certificate(ctx, name); !errors.Is(err, smarthost.ErrMissing) {
				t.Errorf("certificate %q: got %v, want that it is missing", name, err)
			}
		}
		put("provider", map[string]any{"username": "relay", "password": "one", "mechanisms": []any{"PLAIN"}})
		fields, first, err := source.Login(ctx, "provider")
		if err != nil || fields["username"] != "relay" || fields["password"] != "one" {
			t.Fatalf("got %v, %v", fields, err)
		}
		if _, again, err := source.Login(ctx, "provider"); err != nil || again != first {
			t.Errorf("unchanged: got revision %q, %v, before %q", again, err, first)
		}
		put("provider", map[string]any{"username": "relay", "password": "two"})
		fields, second, err := source.Login(ctx, "provider")
		if err != nil || fields["password"] != "two" || second == first {
			t.Errorf("changed: got %v, revision %q, %v", fields, second, err)
		}
		pair := selfSigned(t, "relay.example.com")
		if _, err := s.StorePair(ctx, "client-relay", pair, Version{}); err != nil {
			t.Fatal(err)
		}
		keeper, err := smarthost.New(smarthost.Options{Source: source})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := keeper.Stop(ctx); err != nil {
				t.Error(err)
			}
		}()
		if c, err := keeper.Certificate(ctx, "client-relay"); err != nil || c.TLS.Leaf.Subject.String() != pair.Leaf.Subject.String() {
			t.Errorf("got %+v, %v", c, err)
		}
		faults(source)
	}
	t.Run("directory", func(t *testing.T) {
		s, root := inDirectory(t)
		file := filepath.Join(root, "smarthosts", "provider.json")
		write := func(text []byte, mode os.FileMode) {
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, text, mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
		}
		run(t, s, func(_ string, fields map[string]any) {
			text, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			write(text, 0o600)
		}, func(source smarthost.Source) {
			write([]byte(`{"username": "relay", "password": "two"}`), 0o644)
			if _, _, err := source.Login(t.Context(), "provider"); !errors.Is(err, smarthost.ErrBad) {
				t.Errorf("others can read it: got %v", err)
			}
			write([]byte(`{"username`), 0o600)
			if _, _, err := source.Login(t.Context(), "provider"); !errors.Is(err, smarthost.ErrBad) {
				t.Errorf("no JSON: got %v", err)
			}
		})
	})
	t.Run("vault", func(t *testing.T) {
		s, v := inVault(t)
		run(t, s, func(name string, fields map[string]any) { v.Put("postroad/smarthosts/"+name, fields) }, func(source smarthost.Source) {
			v.Seal(true)
			if _, _, err := source.Login(t.Context(), "provider"); !errors.Is(err, smarthost.ErrAway) {
				t.Errorf("sealed: got %v", err)
			}
			v.Seal(false)
			v.Delete("postroad/smarthosts/provider")
			if _, _, err := source.Login(t.Context(), "provider"); !errors.Is(err, smarthost.ErrMissing) {
				t.Errorf("removed: got %v", err)
			}
		})
	})
}
