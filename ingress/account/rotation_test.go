package account

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keyholder knows the passwords of a client, and which of them are valid.
type keyholder struct {
	mu        sync.Mutex
	passwords []string
	oldest    int // that is valid for sure
}

// take gives out a valid password.
func (k *keyholder) take(newest bool) (number int, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	number = k.oldest
	if newest {
		number = len(k.passwords) - 1
	}
	return number, k.passwords[number]
}

// isValid tells whether a password has been valid all the time until now.
func (k *keyholder) isValid(number int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return number >= k.oldest
}

// retire leaves only the newest, before another one comes.
func (k *keyholder) retire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.oldest = len(k.passwords) - 1
}

func (k *keyholder) add(password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.passwords = append(k.passwords, password)
}

// TestRotationUnderLoad changes a password five times while clients log in
// without pause, by PLAIN and by SCRAM, with the newest one and the one before,
// from a directory that another process writes: nobody who holds a valid
// password is refused.
func TestRotationUnderLoad(t *testing.T) {
	secrets := t.TempDir()
	open := func() *Dir {
		d, err := NewDir(DirOptions{Path: secrets}) // with the usual refresh of two seconds
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	operator, server := open(), open()
	keys := &keyholder{}
	change := func(c *Client) {
		password := GeneratePassword()
		if _, err := c.SetPassword(password, Generated, time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := operator.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		keys.add(password)
	}
	change(&Client{Name: "web1"})
	a := newAuth(t, server, nil)

	var logins atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for i := range 16 {
		peer := from(fmt.Sprintf("192.0.2.%d", i%4))
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				number, password := keys.take(n%2 == 0)
				var err error
				if n%3 == 0 {
					_, err = speak(t, a, SCRAM256, peer, nil, "web1", password, "")
				} else {
					_, err = logIn(t.Context(), a, peer, "web1", password)
				}
				if err != nil && keys.isValid(number) {
					t.Errorf("login %d of client %d with password %d: got %v", n, i, number, err)
				}
				logins.Add(1)
			}
		})
	}
	// more waits for a few logins of each.
	more := func() {
		t.Helper()
		enough := logins.Load() + 50
		for end := time.Now().Add(2 * time.Minute); logins.Load() < enough; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d logins are missing after two minutes", enough-logins.Load())
			}
		}
	}
	for range 5 {
		more()
		keys.retire()
		c, err := operator.Latest(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		change(c.Clone())
	}
	more()
	cancel()
	wg.Wait()
	if _, err := logIn(t.Context(), a, from("192.0.2.99"), "web1", keys.passwords[0]); !errors.Is(err, ErrCredentials) {
		t.Errorf("the first password: got %v, want %v", err, ErrCredentials)
	}
}
