package ingress

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func testVisitors(rate, strikes int) visitors {
	o := DefaultOptions()
	o.MaxConnectionRate, o.MaxStrikes, o.BanTime = rate, strikes, time.Minute
	return newVisitors(&o)
}

var (
	visitorA = netip.MustParsePrefix("192.0.2.1/32")
	visitorB = netip.MustParsePrefix("2001:db8::/64")
)

func TestConnectionRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := testVisitors(10, 3)
		come := func(key netip.Prefix, n int) (came int) {
			for range n {
				if v.mayCome(key) {
					came++
				}
			}
			return came
		}
		if got := come(visitorA, 15); got != 10 {
			t.Errorf("got %d of 15 at once, want 10", got)
		}
		if got := come(visitorB, 5); got != 5 {
			t.Errorf("another address: got %d of 5", got)
		}
		time.Sleep(30 * time.Second)
		if got := come(visitorA, 15); got != 5 {
			t.Errorf("got %d after half a minute, want 5", got)
		}
	})
}

func TestBan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := testVisitors(1000, 3)
		end := func(useful, thrownOut bool) {
			v.mayCome(visitorA)
			v.gone(visitorA, useful, thrownOut)
		}
		end(false, true)
		end(false, true)
		end(true, false) // somebody behind the same address brings mail
		end(false, true)
		end(false, false) // an ordinary end is no strike and no excuse
		end(false, true)
		if v.isBanned(visitorA) {
			t.Fatal("banned after two strikes in a row")
		}
		end(false, true)
		if !v.isBanned(visitorA) || v.isBanned(visitorB) {
			t.Fatalf("got banned %v and %v, want the first only", v.isBanned(visitorA), v.isBanned(visitorB))
		}
		time.Sleep(time.Minute + time.Second)
		if v.isBanned(visitorA) {
			t.Error("banned for longer than a minute")
		}
	})
}

func TestVisitorsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := testVisitors(1000, 1)
		v.mayCome(visitorA)
		v.gone(visitorA, false, true) // banned, so kept for longer
		time.Sleep(time.Second)
		key := func(n int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
		}
		for n := range 2 * maxVisitors {
			v.mayCome(key(n))
			if n%1000 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		if len(v.known) > maxVisitors {
			t.Errorf("got %d visitors, want at most %d", len(v.known), maxVisitors)
		}
		if !v.isBanned(visitorA) {
			t.Error("a ban was forgotten to make room")
		}
	})
}
