package ingress

import (
	"net/netip"
	"time"
)

// maxVisitors bounds the addresses that are remembered. When more come, those
// that were quiet for longest are forgotten first, banned ones last.
const maxVisitors = 50_000

// visitors remembers client addresses for a while: how fast they come, and how
// often they were thrown out. Server.mu guards it.
type visitors struct {
	rate    int // new connections a minute; 0: any number
	strikes int // sessions thrown out in a row, before a ban
	ban     time.Duration
	known   map[netip.Prefix]*visitor
	swept   time.Time
}

type visitor struct {
	seen    time.Time
	tokens  float64 // of a bucket that holds a minute's worth
	strikes int
	until   time.Time // of the ban
}

func newVisitors(o *Options) visitors {
	return visitors{rate: o.MaxConnectionRate, strikes: o.MaxStrikes, ban: o.BanTime, known: make(map[netip.Prefix]*visitor)}
}

// isBanned reports an address that was thrown out too often.
func (v *visitors) isBanned(key netip.Prefix) bool {
	who, isKnown := v.known[key]
	return isKnown && time.Now().Before(who.until)
}

// mayCome takes one connection from the address's rate.
func (v *visitors) mayCome(key netip.Prefix) bool {
	now := time.Now()
	who, isKnown := v.known[key]
	if !isKnown {
		v.sweep(now)
		who = &visitor{seen: now, tokens: float64(v.rate)}
		v.known[key] = who
	}
	who.tokens = min(float64(v.rate), who.tokens+now.Sub(who.seen).Minutes()*float64(v.rate))
	who.seen = now
	if v.rate == 0 {
		return true
	}
	if who.tokens < 1 {
		return false
	}
	who.tokens--
	return true
}

// gone notes how a session ended. One that brought mail or logged in clears
// the address: behind it may be many hosts, and one of them misbehaves.
func (v *visitors) gone(key netip.Prefix, wasUseful, wasThrownOut bool) {
	who, isKnown := v.known[key]
	switch {
	case !isKnown:
	case wasUseful:
		who.strikes = 0
	case wasThrownOut:
		if who.strikes++; who.strikes >= v.strikes {
			who.strikes = 0
			who.until = time.Now().Add(v.ban)
		}
	}
}

// sweep forgets who has been quiet, so that there is room.
func (v *visitors) sweep(now time.Time) {
	if len(v.known) < maxVisitors && now.Sub(v.swept) < time.Minute {
		return
	}
	v.swept = now
	quiet := 10 * time.Minute
	for {
		for key, who := range v.known {
			if now.Sub(who.seen) >= quiet && now.After(who.until) {
				delete(v.known, key)
			}
		}
		if len(v.known) < maxVisitors {
			return
		}
		if quiet == 0 {
			clear(v.known) // everybody is banned: somebody has more addresses than we have room
			return
		}
		quiet = quiet / 10
		if quiet < time.Second {
			quiet = 0
		}
	}
}
