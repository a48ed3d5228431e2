package secrets

import (
	"crypto/ecdsa"
	"errors"
	"testing"
	"time"
)

// TestAccountKey: made once, and found again by whoever comes later or at the same time.
func TestAccountKey(t *testing.T) {
	both(t, func(t *testing.T, s *Secrets) {
		if _, err := s.AccountKey(t.Context(), "ca.example"); !errors.Is(err, ErrNotThere) {
			t.Fatalf("got %v before there is one", err)
		}
		made, err := s.MakeAccountKey(t.Context(), "ca.example")
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.MakeAccountKey(t.Context(), "ca.example")
		if err != nil || !made.(*ecdsa.PrivateKey).Equal(again) {
			t.Errorf("got another key, %v: the account of the first one is lost", err)
		}
		if _, err := s.MakeAccountKey(t.Context(), "../tls/x"); err == nil {
			t.Error("a name that leads elsewhere is taken")
		}
		list, err := s.Entries(t.Context(), KindACME, time.Now())
		if err != nil || len(list) != 1 || list[0].State != "account" || list[0].Problem != "" {
			t.Errorf("got %+v, %v", list, err)
		}
	})
}
