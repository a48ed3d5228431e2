package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/signer/keyring"
)

// TestKeeper takes a new domain into force and through its first rotation, and does nothing else.
func TestKeeper(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := benchPolicy()
		p.RotateEvery = 90 * day
		h := newHouse(t, p, func(o *KeeperOptions, _ *Options) { o.CheckEvery = time.Hour })
		if _, err := h.r.New(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		if got := h.gauges(); len(got) != 0 {
			t.Errorf("got metrics %v of one that does not lead", got)
		}
		h.start()
		time.Sleep(2 * time.Hour)
		h.are("rsa-200001 active", "ed25519-200001 active")
		if want := []string{domain, domain}; !slices.Equal(h.begun(), want) {
			t.Errorf("in force: got %q, want %q: at once and when all signers know", h.begun(), want)
		}
		h.wants()
		time.Sleep(10 * day)
		got := h.gauges()
		for name, want := range map[string]float64{
			"relay_dkim_keys{active}":                                        2,
			"relay_dkim_keys{removed}":                                       0,
			"relay_dkim_records_wrong{}":                                     0,
			"relay_dkim_records_unknown{}":                                   0,
			"relay_dkim_record_ok{example.com rsa-200001}":                   1,
			"relay_dkim_key_bits{ed25519-sha256 example.com ed25519-200001}": 256,
			"relay_dkim_key_age_seconds{example.com rsa-200001 active}":      (10*day + 2*time.Hour).Seconds(),
			"relay_dkim_oldest_key_age_seconds{}":                            (10*day + 2*time.Hour).Seconds(),
			"relay_dkim_keys_without_age{}":                                  0,
		} {
			if v, is := got[name]; !is || v != want {
				t.Errorf("%s: got %v, %v, want %v", name, v, is, want)
			}
		}
		if left := got["relay_dkim_key_due_seconds{example.com rsa-200001}"]; left < (79*day).Seconds() || left > (81*day).Seconds() {
			t.Errorf("due in %v s, want 80 days", left)
		}
		h.store.count("entries")
		time.Sleep(5 * day)
		if n := h.store.count("entries"); n > 6*24*2 {
			t.Errorf("the keys of a domain at rest were read %d times in five days of hourly checks", n)
		}
		time.Sleep(80 * day)
		h.are("rsa-200001 retiring", "ed25519-200001 retiring", "rsa-200003 active", "ed25519-200003 active")
		time.Sleep(20 * day)
		h.are("rsa-200001 revoked", "ed25519-200001 revoked", "rsa-200003 active", "ed25519-200003 active")
		time.Sleep(30 * day)
		h.are("rsa-200001 removed", "ed25519-200001 removed", "rsa-200003 active", "ed25519-200003 active")
		if n := len(h.begun()); n != 2 {
			t.Errorf("in force: got %d, want nothing for a domain that signed all the time", n)
		}
		h.wants()
		h.stop()
		if got := h.gauges(); len(got) != 0 {
			t.Errorf("got metrics %v when it led no more", got)
		}
	})
}

// TestTwoLeaders lets two processes believe that they lead, over a slow store, all the time.
func TestTwoLeaders(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := benchPolicy()
		p.RotateEvery, p.KeepSpare = 60*day, true
		h := newHouse(t, p, nil)
		h.store.slow = true
		domains := []string{"a.example", "b.example", "c.example"}
		h.bring(domains...)
		second, err := New(h.r.o)
		if err != nil {
			t.Fatal(err)
		}
		other, err := NewKeeper(KeeperOptions{Store: h.store, Publication: h.world, Policy: p, Rotator: second})
		if err != nil {
			t.Fatal(err)
		}
		h.start()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { other.Run(ctx) })
		for range 4 * 90 {
			time.Sleep(6 * time.Hour)
			if rand.N(4) == 0 {
				h.k.Notice(domains[0])
				other.Notice(domains[0])
			}
			h.signsAlways(domains...)
		}
		cancel()
		wg.Wait()
		h.stop()
		for _, name := range domains {
			entries, err := h.bench.store.Entries(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			// By hand, at once; after 60 days; and the spare.
			if n := len(entries); n != 1+3*2 {
				t.Errorf("%s: got %d keys, want 7: %v", name, n, states(entries))
			}
		}
	})
}

// TestLeaseLost ends the lease in the midst of whatever is being done, again and again.
func TestLeaseLost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := benchPolicy()
		p.RotateEvery = 60 * day
		h := newHouse(t, p, nil)
		h.store.slow = true
		domains := []string{"a.example", "b.example"}
		h.bring(domains...)
		for range 500 {
			h.start()
			time.Sleep(rand.N(10 * time.Second))
			h.stop()
			h.signsAlways(domains...)
			time.Sleep(rand.N(time.Minute))
		}
		h.start()
		time.Sleep(day)
		h.signsAlways(domains...)
		for _, name := range domains {
			entries, err := h.bench.store.Entries(t.Context(), name)
			want := []string{"ed25519-200001 active", "hand retiring", "rsa-200001 active"}
			if err != nil || !slices.Equal(states(entries), want) {
				t.Errorf("%s: got %v, %v, want %v", name, states(entries), err, want)
			}
		}
	})
}

// TestBrokenDomain: what is wrong with one domain is that one's.
func TestBrokenDomain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), nil)
		for _, name := range []string{"bad.example", "good.example"} {
			if _, err := h.r.New(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		h.store.mood(func(_, domain string) error {
			if domain == "bad.example" {
				return fmt.Errorf("state file of %s is damaged: %w", domain, keyring.ErrBadKey)
			}
			return nil
		})
		h.start()
		synctest.Wait()
		h.k.Notice("bad.example")
		time.Sleep(day)
		entries, err := h.bench.store.Entries(t.Context(), "good.example")
		if want := []string{"ed25519-200001 active", "rsa-200001 active"}; err != nil || !slices.Equal(states(entries), want) {
			t.Errorf("got %v, %v, want %v", states(entries), err, want)
		}
		h.wants("not all keys can be read: state file of bad.example is damaged", "keys of bad.example cannot be looked after: state file")
		if n := h.log.has("level=ERROR"); n != 2 {
			t.Errorf("got %d lines of it, want 2", n)
		}
		h.store.mood(nil)
		time.Sleep(2 * time.Hour)
		h.wants()
		entries, err = h.bench.store.Entries(t.Context(), "bad.example")
		if want := []string{"ed25519-200001 published", "rsa-200001 published"}; err != nil || len(entries) != 2 || entries[0].State == keyring.Generated {
			t.Errorf("got %v, %v, want %v or better", states(entries), err, want)
		}
	})
}

// TestStoreAway: a store that answers nobody is asked now and then, and everything goes on when it is back.
func TestStoreAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), func(o *KeeperOptions, _ *Options) {
			o.Advise = func(err error) string { return "unseal it" }
		})
		var domains []string
		for n := range 200 {
			domains = append(domains, fmt.Sprintf("d%d.example", n))
			if _, err := h.r.New(t.Context(), domains[n]); err != nil {
				t.Fatal(err)
			}
		}
		h.start()
		time.Sleep(20 * time.Second) // they wait for their records
		h.store.mood(func(string, string) error { return errors.New("vault is out of reach (sealed)") })
		h.store.count("entries")
		time.Sleep(6 * time.Hour)
		if n := h.store.count("entries"); n > 6*3600/10+300 {
			t.Errorf("the store was asked %d times in six hours", n)
		}
		got := h.k.Conditions()
		if len(got) == 0 || len(got) > 2 || got[0].Do != "unseal it" || !strings.Contains(got[0].Text, "keys cannot be looked after: vault is out of reach") {
			t.Errorf("got conditions %v, want one of the store, and perhaps of the listing", got)
		}
		if n := h.log.has("level=ERROR"); n > storeFailures+2 {
			t.Errorf("got %d lines of it", n)
		}
		h.store.mood(nil)
		time.Sleep(2 * time.Hour)
		h.signsAlways(domains...)
		h.wants()
	})
}

// TestMayNotWrite: a signer that has no right to change keys says so, and does not insist.
func TestMayNotWrite(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		denied := errors.New("vault does not allow it (403)")
		h := newHouse(t, benchPolicy(), func(o *KeeperOptions, _ *Options) {
			o.Advise = func(err error) string {
				if errors.Is(err, denied) {
					return "give signers the policy"
				}
				return ""
			}
		})
		if _, err := h.r.New(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		h.store.mood(func(call, _ string) error {
			if call == "change" || call == "create" {
				return fmt.Errorf("patch: %w", denied)
			}
			return nil
		})
		h.start()
		time.Sleep(day)
		if n := h.store.count("change"); n < 10 || n > 100 {
			t.Errorf("got %d tries in a day", n)
		}
		got := h.k.Conditions()
		if len(got) != 1 || got[0].Do != "give signers the policy" {
			t.Errorf("got conditions %v", got)
		}
		h.store.mood(nil)
		time.Sleep(2 * time.Hour)
		h.are("rsa-200001 active", "ed25519-200001 active")
		h.wants()
	})
}

// TestByHand: without anybody who publishes, people are asked to, and it goes on when they have.
func TestByHand(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), func(_ *KeeperOptions, o *Options) { o.Publisher = nil })
		made, err := h.r.New(t.Context(), domain)
		if err != nil {
			t.Fatal(err)
		}
		h.start()
		time.Sleep(7 * day)
		h.wants("the record of key ed25519-200001 of example.com is not published (and 1 more of its keys)")
		if n := h.log.has("publish this record"); n != 2 {
			t.Errorf("asked for records in %d lines, want 2", n)
		}
		if n := h.store.count("entries"); n > 7*24*10 {
			t.Errorf("got %d looks in a week", n)
		}
		for _, a := range made.Done {
			h.set(Name(domain, a.Selector), a.Entry.Record)
		}
		time.Sleep(2*h.negative + time.Hour)
		h.are("rsa-200001 active", "ed25519-200001 active")
		h.wants()
	})
}

// TestRecordCheck: what is wrong with the record of a key that signs is told, and changes nothing.
func TestRecordCheck(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), func(o *KeeperOptions, _ *Options) { o.CheckEvery = time.Hour })
		h.k.o.Rotator = nil // not automatic
		h.ttl = time.Minute
		h.hand("s1", keyring.RSA)
		h.start()
		ok := func(want float64, text string) {
			t.Helper()
			v, is := h.gauges()["relay_dkim_record_ok{example.com s1}"]
			if is != (want >= 0) || is && v != want {
				t.Errorf("%s: got record_ok %v, %v, want %v", text, v, is, want)
			}
		}
		// After that a look comes at each notice, and no other.
		looks := func(n int) {
			for range n {
				time.Sleep(20 * time.Minute) // caches forget
				h.k.Notice(domain)
				synctest.Wait()
			}
		}
		time.Sleep(70 * time.Minute)
		looks(1)
		ok(1, "good")
		if h.gauges()["relay_dkim_keys_without_age{}"] != 1 {
			t.Error("a key by hand has an age")
		}
		h.set(Name(domain, "s1"))
		looks(1)
		ok(0, "missing")
		h.wants("record s1._domainkey.example.com: verifiers may refuse its mail: ns1 has no record")
		h.silent("ns1", "ns2", "r1", "r2")
		looks(3)
		ok(0, "missing, and silent now")
		h.silent()
		h.set(Name(domain, "s1"), "v=DKIM1; p=AAAA")
		looks(1)
		ok(0, "another key's")
		e, _ := h.bench.store.Entries(t.Context(), domain)
		h.set(Name(domain, "s1"), e[0].Record)
		looks(1)
		ok(1, "good again")
		h.wants()
		h.silent("ns2")
		looks(1)
		ok(-1, "one is silent")
		h.wants()
		looks(1)
		h.wants("not all who should know it answer: ns2 gave no answer (timeout)")
		h.silent()
		looks(1)
		ok(1, "all answer")
		h.wants()
		h.are("s1 active")
		if n := h.log.has("level=ERROR"); n != 2 {
			t.Errorf("got %d lines of errors, want 2: missing, another key's", n)
		}
		if n := h.store.count("change"); n != 0 {
			t.Errorf("%d changes", n)
		}
	})
}

// TestManyDomains: those at rest cost a listing, what is noticed comes first, and metrics stay few.
func TestManyDomains(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), nil)
		const many = 4000
		for n := range many {
			k := keyring.Key{Domain: fmt.Sprintf("d%d.example", n), Selector: "s", Algorithm: keyring.RSA, Signer: h.pool[0]}
			h.bench.store.put(k)
		}
		h.start()
		time.Sleep(5 * time.Hour)
		if lists, looks := h.store.count("list"), h.store.count("entries"); lists < 5 || lists > 7 || looks != 0 {
			t.Errorf("got %d listings and %d looks in 5 hours, want 5 or 6 and none", lists, looks)
		}
		if got := h.gauges(); len(got) > 20 || got["relay_dkim_keys{active}"] != many {
			t.Errorf("got %d metrics: %v", len(got), got)
		}
		began := time.Now()
		h.k.Notice("d77.example")
		synctest.Wait()
		if n := h.store.count("entries"); n != 2 || time.Since(began) != 0 {
			t.Errorf("got %d looks after a notice", n)
		}
		h.k.Notice("../x")
		h.k.Notice("none.example")
		time.Sleep(time.Minute)
		h.k.mu.Lock()
		defer h.k.mu.Unlock()
		if n := len(h.k.domains); n != many {
			t.Errorf("got %d domains, want %d", n, many)
		}
	})
}

// TestNoticeFirst: a domain that somebody waits for does not stand behind thousands.
func TestNoticeFirst(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), nil)
		h.store.slow = true
		for n := range 2000 {
			k := keyring.Key{Domain: fmt.Sprintf("d%d.example", n), Selector: "s", Algorithm: keyring.RSA, Signer: h.pool[0]}
			if _, err := h.bench.store.Create(t.Context(), k, ""); err != nil {
				t.Fatal(err)
			}
		}
		h.start()
		time.Sleep(30 * time.Second)
		if _, err := h.r.New(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		h.k.Notice(domain)
		time.Sleep(2 * time.Minute)
		if _, asked := h.hooked(Name(domain, "rsa-200001")); !asked {
			t.Error("its record was not published within two minutes")
		}
	})
}

// TestKeeperOptions tells what is wrong with them.
func TestKeeperOptions(t *testing.T) {
	w, m := newWorld(nil), newMemory()
	for name, o := range map[string]KeeperOptions{
		"nothing":  {},
		"policy":   {Store: m, Publication: w},
		"negative": {Store: m, Publication: w, Policy: benchPolicy(), CheckEvery: -1},
	} {
		if _, err := NewKeeper(o); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	reg := prometheus.NewRegistry()
	for _, want := range []bool{true, false} {
		_, err := NewKeeper(KeeperOptions{Store: m, Publication: w, Policy: benchPolicy(), Registerer: reg})
		if (err == nil) != want {
			t.Errorf("got %v", err)
		}
	}
}

// TestOneDomainFailsForGood: one domain with which the store fails for ever holds up none, with the automation or without.
func TestOneDomainFailsForGood(t *testing.T) {
	for _, automatic := range []bool{true, false} {
		inBubble(t, func(t *testing.T) {
			h := newHouse(t, benchPolicy(), func(o *KeeperOptions, _ *Options) { o.CheckEvery = time.Hour })
			if !automatic {
				h.k.o.Rotator = nil
			}
			const many = 1000
			for n := range many {
				k := keyring.Key{Domain: fmt.Sprintf("d%d.example", n), Selector: "s", Algorithm: keyring.RSA, Signer: h.pool[0]}
				h.bench.store.put(k)
			}
			h.start()
			synctest.Wait()
			h.store.mood(func(_, domain string) error {
				if domain == "d7.example" {
					return errors.New("vault refuses it")
				}
				return nil
			})
			for range 20 {
				h.k.Notice("d7.example")
				time.Sleep(time.Minute)
			}
			h.store.count("entries")
			time.Sleep(3 * time.Hour)
			if n := h.store.count("entries"); n < 2*many {
				t.Errorf("automatic %v: got %d looks in three hours, want each domain's every hour", automatic, n)
			}
			for _, c := range h.k.Conditions() {
				if strings.HasPrefix(c.Text, "keys cannot be looked after") {
					t.Errorf("automatic %v: got %q", automatic, c.Text)
				}
			}
		})
	}
}

// TestChecksEndAStoreFailure: without the automation too, all goes on when the store is back.
func TestChecksEndAStoreFailure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), func(o *KeeperOptions, _ *Options) { o.CheckEvery = time.Hour })
		h.k.o.Rotator = nil
		const many = 500
		for n := range many {
			k := keyring.Key{Domain: fmt.Sprintf("d%d.example", n), Selector: "s", Algorithm: keyring.RSA, Signer: h.pool[0]}
			h.bench.store.put(k)
			h.set(Name(k.Domain, k.Selector), keyring.Record(k))
		}
		h.start()
		synctest.Wait()
		h.store.mood(func(string, string) error { return errors.New("sealed") })
		time.Sleep(2 * time.Hour)
		if got := h.k.Conditions(); len(got) == 0 || !strings.Contains(got[0].Text, "keys cannot be looked after: sealed") {
			t.Errorf("got %v", got)
		}
		h.store.mood(nil)
		time.Sleep(30 * time.Minute)
		if got := h.k.Conditions(); len(got) > 0 && strings.HasPrefix(got[0].Text, "keys cannot be looked after") {
			t.Errorf("got %v of a store that is back", got)
		}
		h.store.count("entries")
		time.Sleep(2 * time.Hour)
		if n := h.store.count("entries"); n < many {
			t.Errorf("got %d looks in two hours, want each domain's every hour", n)
		}
	})
}

// TestSlowWorkIsNoStoreFailure: work that takes too long, a hook's say, is its domain's trouble.
func TestSlowWorkIsNoStoreFailure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		h := newHouse(t, benchPolicy(), nil)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it took longer than a minute"))
		defer cancel()
		time.Sleep(2 * time.Minute)
		for n := range 2 * storeFailures {
			h.k.failed(ctx, fmt.Sprintf("d%d.example", n), ctx.Err())
		}
		got := h.k.Conditions()
		if len(got) != 2*storeFailures || !strings.Contains(got[0].Text, "it took longer than a minute") {
			t.Errorf("got conditions %v, want one of each domain", got)
		}
	})
}

// TestTransitStays: the automation makes no local keys for a domain whose keys are in transit, and says what it waits for.
func TestTransitStays(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := benchPolicy()
		p.RotateEvery, p.KeepSpare = 30*day, true
		h := newHouse(t, p, nil)
		h.hand("s1", keyring.RSA)
		h.bench.store.keys[place(domain, "s1")].entry.InTransit = true
		h.start()
		time.Sleep(100 * day)
		h.are("s1 active")
		got := h.k.Conditions()
		if len(got) != 1 || !strings.Contains(got[0].Text, "the next key of example.com") || !strings.Contains(got[0].Text, "transit") || !strings.Contains(got[0].Do, "--local") {
			t.Errorf("got conditions %v", got)
		}
		if _, err := h.r.New(t.Context(), domain); !errors.Is(err, ErrTransit) {
			t.Errorf("new: got %v, want %v", err, ErrTransit)
		}
		p.Local = true
		local, err := New(Options{Store: h.store, Publication: h.world, Sent: h.world, Publisher: h.world, Policy: p, Make: h.makeKey})
		if err != nil {
			t.Fatal(err)
		}
		if pass, err := local.New(t.Context(), domain); err != nil || len(pass.Done) != 2 {
			t.Errorf("local: got %+v, %v, want two keys", pass, err)
		}
	})
}
