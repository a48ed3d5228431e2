package account_test

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"postroad/ingress/account"
	"postroad/ingress/account/accounttest"
)

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// TestRemoteTimesTellNothing: records are 5 ms away. A name that is there, one that somebody uses, and one that is not there take equally long, at
// the store and up to the first answer of SCRAM.
func TestRemoteTimesTellNothing(t *testing.T) {
	const (
		away  = 5 * time.Millisecond
		names = 50
	)
	for what, ask := range map[string]func(t *testing.T, r *account.Remote, name string){
		"store": func(t *testing.T, r *account.Remote, name string) {
			if _, err := r.Latest(t.Context(), name); err != nil && !errors.Is(err, account.ErrUnknown) {
				t.Fatal(err)
			}
		},
		"SCRAM": func(t *testing.T, r *account.Remote, name string) {
			a, err := account.New(account.Options{Source: r})
			if err != nil {
				t.Fatal(err)
			}
			x, err := a.Begin(account.SCRAM256, account.Peer{Addr: netip.MustParseAddr("192.0.2.1")})
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := x.Next(t.Context(), []byte("n,,n="+name+",r=nonce")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCupboard()
				r := newRemote(t, c, 0)
				for i := range names {
					if err := r.Put(t.Context(), accounttest.NewClient(t, "web"+strconv.Itoa(i), "secret")); err != nil {
						t.Fatal(err)
					}
				}
				c.set(false, away)
				took := map[string][]time.Duration{}
				for i := range names {
					for group, name := range map[string]string{"known": "web", "unknown": "guess"} {
						began := time.Now()
						ask(t, r, name+strconv.Itoa(i))
						took[group] = append(took[group], time.Since(began))
					}
					began := time.Now()
					ask(t, r, "web"+strconv.Itoa(i))
					took["in use"] = append(took["in use"], time.Since(began))
				}
				known, unknown, used := median(took["known"]), median(took["unknown"]), median(took["in use"])
				t.Logf("known %s, unknown %s, in use %s", known, unknown, used)
				if known != unknown {
					t.Errorf("a known name takes %s, an unknown one %s", known, unknown)
				}
				if what == "SCRAM" && used != unknown {
					t.Errorf("a name in use takes %s, an unknown one %s", used, unknown)
				}
			})
		})
	}
}
