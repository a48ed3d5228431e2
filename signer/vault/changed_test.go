package vault

import (
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// TestChangedLooksAtOnce: after a notice the keys of a domain in use are read again without anybody asking; a domain that nobody has
// asked for costs nothing.
func TestChangedLooksAtOnce(t *testing.T) {
	f := newFake(t)
	writer := newKeys(t, f.client(t), quick())
	e, err := writer.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519), "test")
	if err != nil {
		t.Fatal(err)
	}
	if e, err = writer.Change(t.Context(), e, keyring.Active, "test"); err != nil {
		t.Fatal(err)
	}
	k := startKeys(t, f.client(t), KeysOptions{Poll: time.Hour, Soft: time.Hour, Missing: time.Hour})
	if keys, err := k.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
		t.Fatalf("got %v, %v", keys, err)
	}
	inMemory := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		if s := k.known["example.com"]; s != nil {
			return len(s.keys)
		}
		return 0
	}
	if _, err = writer.Change(t.Context(), e, keyring.Retiring, "test"); err != nil {
		t.Fatal(err)
	}
	k.Changed("example.com")
	for end := time.Now().Add(time.Minute); inMemory() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the key that signs no more is in memory still")
		}
	}
	k.Changed("nobody.example")
	k.Changed("a/b")
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.looking); n != 0 {
		t.Errorf("%d looks at domains that nobody has asked for", n)
	}
}
