package secrets

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/secrets/authority"
	"postroad/cmd/internal/secrets/fakevault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inDirectory opens secrets in a directory of the test.
func inDirectory(t *testing.T) (s *Secrets, root string) {
	t.Helper()
	c := config.Default()
	c.DataDir = t.TempDir()
	return open(t, &c, ""), c.SecretsDir()
}

func inVault(t *testing.T) (*Secrets, *fakevault.Server) {
	t.Helper()
	v := fakevault.New(t)
	c := config.Default()
	c.DataDir = t.TempDir()
	c.Secrets.Vault.Address = v.URL
	return open(t, &c, v.TokenFile), v
}

func open(t *testing.T, c *config.Config, tokenFile string) *Secrets {
	t.Helper()
	s, err := Open(Options{Config: c, TokenFile: tokenFile})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// both runs a test over a directory and over Vault.
func both(t *testing.T, test func(t *testing.T, s *Secrets)) {
	t.Run("directory", func(t *testing.T) { s, _ := inDirectory(t); test(t, s) })
	t.Run("vault", func(t *testing.T) { s, _ := inVault(t); test(t, s) })
}

func selfSigned(t *testing.T, name string) *authority.Pair {
	t.Helper()
	p, err := authority.SelfSigned(authority.Request{Names: []string{name}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPairs(t *testing.T) {
	both(t, func(t *testing.T, s *Secrets) {
		ctx := t.Context()
		if _, _, err := s.ServerPair(ctx, "relay"); !errors.Is(err, ErrNotThere) {
			t.Errorf("got %v, want %v", err, ErrNotThere)
		}
		first, second := selfSigned(t, "a.example"), selfSigned(t, "b.example")
		at, err := s.StorePair(ctx, "relay", first, Version{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.StorePair(ctx, "relay", second, Version{}); !errors.Is(err, ErrChanged) {
			t.Errorf("over one that is there: got %v, want %v", err, ErrChanged)
		}
		chain, found, err := s.ServerPair(ctx, "relay")
		if err != nil || !chain[0].Equal(first.Leaf) || found.revision != at.revision {
			t.Fatalf("got %v, %v", chain, err)
		}
		if at, err = s.StorePair(ctx, "relay", second, found); err != nil {
			t.Fatal(err)
		}
		if _, err := s.StorePair(ctx, "relay", first, found); !errors.Is(err, ErrChanged) {
			t.Errorf("over another version: got %v, want %v", err, ErrChanged)
		}
		leaf, again, err := s.CheckPair(ctx, "relay")
		if err != nil || !leaf.Equal(second.Leaf) || again.revision != at.revision {
			t.Errorf("got %v, %v", leaf, err)
		}
		// What a listener reads.
		if pair := s.Certificate("relay"); pair.Source != nil {
			text, key, err := pair.Source.Pair(ctx)
			if err != nil || !strings.Contains(string(text), "BEGIN CERTIFICATE") || !strings.Contains(string(key), "PRIVATE KEY") {
				t.Errorf("a listener gets %v", err)
			}
		} else if info, err := os.Stat(pair.Key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("a listener gets %v, %v, want mode 0600", info, err)
		}
		for _, name := range []string{"", "a/b", "..", ".a", "a b"} {
			if _, _, err := s.ServerPair(ctx, name); err == nil || errors.Is(err, ErrNotThere) {
				t.Errorf("%q: got %v, want that it is no name", name, err)
			}
		}
	})
}

func TestAuthorities(t *testing.T) {
	both(t, func(t *testing.T, s *Secrets) {
		ctx := t.Context()
		first, err := authority.New(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.StoreAuthority(ctx, "postroad", first, Version{}); err != nil {
			t.Fatal(err)
		}
		got, at, err := s.Authority(ctx, "postroad", true)
		if err != nil {
			t.Fatal(err)
		}
		next, err := got.Successor(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.StoreAuthority(ctx, "postroad", next, at); err != nil {
			t.Fatal(err)
		}
		if err := s.ForgetRoots(ctx, "postroad"); err != nil {
			t.Fatal(err)
		}
		if got, _, err = s.Authority(ctx, "postroad", false); err != nil || !got.Root.Equal(next.Root) || len(got.Previous) != 1 || len(got.Cross) != 1 {
			t.Fatalf("got %+v, %v", got, err)
		}
		if _, err := got.Successor(time.Now()); err == nil {
			t.Error("an authority that was read without its key issues")
		}
	})
}

// TestVaultSaysNothingOfBefore: what was said of a version and cannot be said of the next is gone; what others have said stays.
func TestVaultSaysNothingOfBefore(t *testing.T) {
	s, _ := inVault(t)
	at, err := s.StorePair(t.Context(), "relay", selfSigned(t, "a.example"), Version{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.vault.SetCustom(t.Context(), "tls/relay", map[string]string{"owner": "them"}); err != nil {
		t.Fatal(err)
	}
	var names []string // more than there is room for
	for i := range 20 {
		names = append(names, strings.Repeat("a", 40)+strconv.Itoa(i)+".example")
	}
	p, err := authority.SelfSigned(authority.Request{Names: names, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StorePair(t.Context(), "relay", p, at); err != nil {
		t.Fatal(err)
	}
	i, err := s.tree().look(t.Context(), KindTLS, "relay")
	if _, is := i.about[aboutNames]; err != nil || is || i.about[aboutFingerprint] != authority.Fingerprint(p.Leaf) || i.about["owner"] != "them" {
		t.Errorf("got %v, %v, want no names", i.about, err)
	}
}

// TestDirectoryKeysOfOthers: a key that others may read is not used, and one that takes its place is not readable for them.
func TestDirectoryKeysOfOthers(t *testing.T) {
	s, root := inDirectory(t)
	a, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	at, err := s.StoreAuthority(t.Context(), "postroad", a, Version{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.StorePair(t.Context(), "relay", selfSigned(t, "a.example"), Version{}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(root, KindAuthority, "postroad", "key.pem"), filepath.Join(root, KindTLS, "relay", "key.pem")} {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, _, wide := s.Authority(t.Context(), "postroad", true)
	_, _, widePair := s.CheckPair(t.Context(), "relay")
	for _, err := range []error{wide, widePair} {
		if err == nil || !strings.Contains(err.Error(), "key.pem has mode 0644, so others can read it: chmod 0600 it") {
			t.Errorf("got %v, want that others can read it", err)
		}
	}
	if _, _, err := s.Authority(t.Context(), "postroad", false); err != nil {
		t.Errorf("without the key: %v", err)
	}
	if _, err := s.StoreAuthority(t.Context(), "postroad", a, at); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(root, KindAuthority, "postroad", "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", info.Mode(), err)
	}
}

// TestVaultKeepsNoOldRoot: of former versions no private key is left; a deleted secret can be made again.
func TestVaultKeepsNoOldRoot(t *testing.T) {
	s, v := inVault(t)
	a, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	at := Version{}
	for range 3 {
		if at, err = s.StoreAuthority(t.Context(), "postroad", a, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ForgetRoots(t.Context(), "postroad"); err != nil {
		t.Fatal(err)
	}
	versions := v.Data("postroad/ca/postroad")
	if len(versions) != 3 || versions[0] != nil || versions[1] != nil || versions[2] == nil {
		t.Errorf("got %d versions, want the newest alone to be left", len(versions))
	}
	v.Delete("postroad/ca/postroad")
	if _, _, err := s.Authority(t.Context(), "postroad", true); !errors.Is(err, ErrNotThere) {
		t.Errorf("got %v, want %v", err, ErrNotThere)
	}
	if _, err := s.StoreAuthority(t.Context(), "postroad", a, Version{}); err != nil {
		t.Errorf("make it again: %v", err)
	}
	v.LoseAnswers(func(method, path string) bool { return method == "PUT" && strings.HasPrefix(path, "secret/data/") })
	if _, err := s.StoreAuthority(t.Context(), "postroad", a, Version{}); !errors.Is(err, ErrMaybe) {
		t.Errorf("got %v, want %v", err, ErrMaybe)
	}
}

// TestDirectoryNeverMixes: whatever the step at which a change ends, what a listener finds belongs together, and the next change tidies up.
func TestDirectoryNeverMixes(t *testing.T) {
	first, second := selfSigned(t, "a.example"), selfSigned(t, "b.example")
	put := func(t *testing.T, dir string, p *authority.Pair) {
		t.Helper()
		chain, key, err := p.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "cert.pem"), chain, 0o600), os.WriteFile(filepath.Join(dir, "key.pem"), key, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		now, fresh, aside *authority.Pair // what is there when the change begins
		want              *authority.Pair // that the change finds
	}{
		"new one was in the making":      {now: first, fresh: second, want: first},
		"exchanged, old one not removed": {now: second, fresh: first, want: second},
		"old one stepped aside":          {fresh: second, aside: first, want: first},
		"stepped aside, new one there":   {now: second, aside: first, want: second},
		"first one was in the making":    {fresh: second},
	} {
		t.Run(name, func(t *testing.T) {
			s, root := inDirectory(t)
			above := filepath.Join(root, KindTLS)
			for dir, p := range map[string]*authority.Pair{"relay": tt.now, ".relay.new": tt.fresh, ".relay.old": tt.aside} {
				if p != nil {
					put(t, filepath.Join(above, dir), p)
				}
			}
			if err := (place{above, "relay"}).tidy(); err != nil {
				t.Fatal(err)
			}
			leaf, at, err := s.CheckPair(t.Context(), "relay")
			if tt.want == nil {
				if !errors.Is(err, ErrNotThere) {
					t.Fatalf("got %v, want %v", err, ErrNotThere)
				}
			} else if err != nil || !leaf.Equal(tt.want.Leaf) {
				t.Fatalf("got %v, %v", leaf, err)
			}
			third := selfSigned(t, "c.example")
			if _, err := s.StorePair(t.Context(), "relay", third, at); err != nil {
				t.Fatal(err)
			}
			names := entriesIn(t, above)
			if leaf, _, err := s.CheckPair(t.Context(), "relay"); err != nil || !leaf.Equal(third.Leaf) || !slices.Equal(names, []string{"relay"}) {
				t.Errorf("got %v, %v, beside %v", leaf, err, names)
			}
		})
	}
}

func entriesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDirectoryKeepsWhatIsThere: other files, modes; and what somebody else keeps is not touched.
func TestDirectoryKeepsWhatIsThere(t *testing.T) {
	s, root := inDirectory(t)
	at, err := s.StorePair(t.Context(), "relay", selfSigned(t, "a.example"), Version{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, KindTLS, "relay")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "README"), []byte("by hand"), 0o644), os.Chmod(filepath.Join(dir, "cert.pem"), 0o644), os.Chmod(dir, 0o750)); err != nil {
		t.Fatal(err)
	}
	if at, err = s.StorePair(t.Context(), "relay", selfSigned(t, "b.example"), at); err != nil {
		t.Fatal(err)
	}
	if names := entriesIn(t, dir); !slices.Equal(names, []string{"README", "cert.pem", "key.pem"}) {
		t.Errorf("got %v", names)
	}
	for name, want := range map[string]os.FileMode{"": 0o750, "cert.pem": 0o644, "key.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: got %v, %v, want mode %o", name, info.Mode(), err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(root, KindTLS)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v", info, err)
	}
	elsewhere := filepath.Join(t.TempDir(), "cert.pem")
	if err := errors.Join(os.Rename(filepath.Join(dir, "cert.pem"), elsewhere), os.Symlink(elsewhere, filepath.Join(dir, "cert.pem"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StorePair(t.Context(), "relay", selfSigned(t, "c.example"), at); err == nil || !strings.Contains(err.Error(), "somebody else keeps") {
		t.Errorf("a link was replaced: %v", err)
	}
	if err := errors.Join(os.Rename(dir, dir+"-real"), os.Symlink(dir+"-real", dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StorePair(t.Context(), "relay", selfSigned(t, "c.example"), at); err == nil || !strings.Contains(err.Error(), "somebody else keeps") {
		t.Errorf("a link was replaced: %v", err)
	}
	if names, err := s.tree().list(t.Context(), KindTLS); err != nil || !slices.Contains(names, "relay") {
		t.Errorf("got %v, %v: a link to a directory is a secret too", names, err)
	}
}
