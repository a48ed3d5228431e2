package verp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	now = time.Date(2026, 11, 24, 9, 30, 0, 0, time.UTC)
	bob = address.Path{Local: "bob", Domain: "example.net"}
	eve = address.Path{Local: "eve", Domain: "example.net"}
)

func key(fill byte, made time.Time) queue.SharedKey {
	k := queue.SharedKey{Secret: make([]byte, 32), Made: made}
	for i := range k.Secret {
		k.Secret[i] = fill
	}
	return k
}

func ring(t testing.TB, keys ...queue.SharedKey) *Ring {
	t.Helper()
	r := New("bounces.example.org")
	r.SetKeys(keys)
	return r
}

func TestE6_82_Address(t *testing.T) {
	r := ring(t, key(1, now.Add(-time.Hour)))
	id := queue.NewID()
	p, ok := r.Path(id, bob, now)
	if !ok || len(p.Local) > 64 || p.Domain != "bounces.example.org" || p.NeedsSMTPUTF8() {
		t.Fatalf("got %v, %v", p, ok)
	}
	if parsed, err := address.Parse(p.String()); err != nil || parsed != p {
		t.Errorf("got %v, %v, want %v", parsed, err, p)
	}
	for _, as := range []address.Path{p, {Local: strings.ToUpper(p.Local), Domain: p.Domain}} {
		token, err := r.Read(as)
		if err != nil || token.ID != id || !token.Names(bob) || token.Names(eve) || token.Names(address.Path{}) {
			t.Errorf("%s: got %+v, %v", as, token, err)
		}
	}
	p, _ = r.Path(id, address.Path{}, now)
	if token, err := r.Read(p); err != nil || token.ID != id || token.HasRecipient() || token.Names(address.Path{}) {
		t.Errorf("several recipients: got %+v, %v", token, err)
	}
}

func TestE6_82_StrangeAddresses(t *testing.T) {
	r := ring(t, key(1, now))
	good, _ := r.Path(queue.NewID(), bob, now)
	other, _ := ring(t, key(2, now)).Path(queue.NewID(), bob, now)
	foreign := New("bounces.example.com")
	foreign.SetKeys([]queue.SharedKey{key(1, now)})
	elsewhere, _ := foreign.Path(queue.NewID(), bob, now)
	swap := func(i int) string {
		c := byte('0')
		if good.Local[i] == c {
			c = '1'
		}
		return good.Local[:i] + string(c) + good.Local[i+1:]
	}
	for name, local := range map[string]string{
		"no token": "bounces+", "prefix alone": "bounces", "empty": "", "short": good.Local[:len(good.Local)-1], "long": good.Local + "0",
		"other prefix": "bounce-" + good.Local[len(prefix):], "letters": prefix + strings.Repeat("z", 52), "zero": prefix + strings.Repeat("0", 52),
		"other key": other.Local, "of another domain": elsewhere.Local, "id changed": swap(len(prefix)), "recipient changed": swap(len(prefix) + 30), "mac changed": swap(len(prefix) + 45),
	} {
		if token, err := r.Read(address.Path{Local: local, Domain: good.Domain}); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%s: got %+v, %v", name, token, err)
		}
	}
	if _, err := r.Read(address.Path{Local: good.Local, Domain: "example.org"}); !errors.Is(err, ErrNotOurs) {
		t.Errorf("other domain: got %v", err)
	}
	if _, err := New("bounces.example.org").Read(good); !errors.Is(err, ErrNoKeys) {
		t.Errorf("no keys: got %v, want a temporary error", err)
	}
}

// A new key is used when all have read it; the tokens of the old one stay good.
func TestRotation(t *testing.T) {
	old, fresh := key(1, now.Add(-40*24*time.Hour)), key(2, now)
	before := ring(t, old)
	both := ring(t, fresh, old)
	id := queue.NewID()
	early, _ := both.Path(id, bob, now.Add(keyRest-time.Second))
	if _, err := before.Read(early); err != nil {
		t.Errorf("a process that does not know the new key: got %v", err)
	}
	late, _ := both.Path(id, bob, now.Add(keyRest))
	if _, err := before.Read(late); !errors.Is(err, ErrNotOurs) {
		t.Errorf("the new key is not used: got %v", err)
	}
	for _, p := range []address.Path{early, late} {
		if _, err := both.Read(p); err != nil {
			t.Errorf("got %v", err)
		}
	}
	first, ok := ring(t, fresh).Path(id, bob, now)
	if !ok {
		t.Error("the only key is not used")
	}
	if _, err := both.Read(first); err != nil {
		t.Errorf("got %v", err)
	}
	both.SetKeys(nil)
	if !both.Ready() || New("a.example").Ready() {
		t.Error("no keys took the place of some")
	}
	if _, ok := New("a.example").Path(id, bob, now); ok {
		t.Error("an address without keys")
	}
}

func TestEveryPathComesBack(t *testing.T) {
	r := ring(t, key(1, now))
	rapid.Check(t, func(t *rapid.T) {
		p := address.Path{Local: rapid.StringMatching(`[a-zé!#. "]{1,64}`).Draw(t, "local"), Domain: "example.net"}
		id := queue.NewID()
		path, ok := r.Path(id, p, now)
		token, err := r.Read(path)
		if !ok || err != nil || token.ID != id || !token.Names(p) {
			t.Fatalf("got %+v, %v", token, err)
		}
	})
}

func FuzzRead(f *testing.F) {
	r := ring(f, key(1, now))
	good, _ := r.Path("01m8k8m5kpryt9bnjyeh5e530f0", bob, now) // the same in every process of the fuzzer
	f.Add(good.Local)
	f.Add("bounces+")
	f.Fuzz(func(t *testing.T, local string) {
		token, err := r.Read(address.Path{Local: local, Domain: "bounces.example.org"})
		if err == nil && !strings.EqualFold(local, good.Local) {
			t.Errorf("%q was read as %+v", local, token)
		}
	})
}
