package account

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what a guard remembers.
const (
	maxAddresses = 50_000
	maxAccounts  = 50_000
	maxPairs     = 100_000

	// pairFor is how long an address is known for an account that logged in from
	// there.
	pairFor = 24 * time.Hour
	// maxDelayed is how many refusals one address may wait for at once.
	maxDelayed = 8
)

// guard counts failures: by address, by account, and by the two together for
// those who have logged in before. Each counter forgives with time.
//
// An attacker must not be able to lock anybody out. So an address from which an
// account has logged in is judged for this account by their own failures only,
// whatever else comes from there, and however much the account is attacked from
// elsewhere.
type guard struct {
	free         int // failures before the delay grows
	addressMost  int
	accountMost  int
	forgive      time.Duration
	delay        time.Duration
	longestDelay time.Duration
	log          *slog.Logger

	mu        sync.Mutex
	addresses *table[netip.Prefix, counter]
	accounts  *table[string, counter]
	pairs     *table[pair, counter]
	delayed   map[netip.Prefix]int // who wait for their refusal now
	trying    map[netip.Prefix]int // whose password is looked at now
}

type pair struct {
	address netip.Prefix
	account string
}

// counter is a number of failures that sinks by one in each forgive.
type counter struct {
	failures float64
	at       time.Time
	said     bool // that it is above its bound
}

func (c counter) value(now time.Time, forgive time.Duration) float64 {
	return max(0, c.failures-float64(now.Sub(c.at))/float64(forgive))
}

// hasRoom tells whether one more failure is within a bound: it takes until one
// is forgiven as a whole.
func (c counter) hasRoom(most int, now time.Time, forgive time.Duration) bool {
	return c.value(now, forgive) <= float64(most-1)
}

func newGuard(o *Options) *guard {
	idle := func(most int) time.Duration { return time.Duration(2*most) * o.Forgive }
	return &guard{
		free:         o.FreeFailures,
		addressMost:  o.AddressFailures,
		accountMost:  o.AccountFailures,
		forgive:      o.Forgive,
		delay:        o.Delay,
		longestDelay: o.LongestDelay,
		log:          o.Logger,
		addresses:    newTable[netip.Prefix, counter](maxAddresses, idle(o.AddressFailures)),
		accounts:     newTable[string, counter](maxAccounts, idle(o.AccountFailures)),
		pairs:        newTable[pair, counter](maxPairs, pairFor),
		delayed:      make(map[netip.Prefix]int),
		trying:       make(map[netip.Prefix]int),
	}
}

// knows tells whether the account has logged in from there.
func (g *guard) knows(p pair) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.pairs.get(p, time.Now())
	return ok
}

// try tells whether a password of this account is looked at when it comes from
// there; the function that it returns ends that. A proven one that needs no
// hash asks admitsProven instead.
//
// From an address with failures enough to be suspected, those that are looked at
// now count as failures until it is known: all its connections would take the
// one that was forgiven at the same moment.
func (g *guard) try(p pair) (end func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if !g.admits(p, now) {
		return nil, false
	}
	g.trying[p.address]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		less(g.trying, p.address)
	}, true
}

// hears is the same for what is known at once.
func (g *guard) hears(p pair) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.admits(p, time.Now())
}

func (g *guard) admits(p pair, now time.Time) bool {
	if own, ok := g.pairs.get(p, now); ok {
		return g.withTrying(own, p.address, now).hasRoom(g.addressMost, now, g.forgive)
	}
	if g.delayed[p.address] >= maxDelayed {
		return false
	}
	account, _ := g.accounts.get(p.account, now)
	address, _ := g.addresses.get(p.address, now)
	return g.withTrying(address, p.address, now).hasRoom(g.addressMost, now, g.forgive) && account.hasRoom(g.accountMost, now, g.forgive)
}

func (g *guard) withTrying(c counter, address netip.Prefix, now time.Time) counter {
	if c.value(now, g.forgive) > float64(g.addressMost)/2 {
		c.failures += float64(g.trying[address])
	}
	return c
}

// less takes one away from a count.
func less(counts map[netip.Prefix]int, address netip.Prefix) {
	if counts[address]--; counts[address] == 0 {
		delete(counts, address)
	}
}

// admitsProven is for credentials that were proven before: from where the
// account is known they always pass; from elsewhere they do unless that address
// is guessing.
func (g *guard) admitsProven(p pair) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if _, ok := g.pairs.get(p, now); ok {
		return true
	}
	return g.admitsAddress(p.address, now)
}

func (g *guard) admitsAddress(address netip.Prefix, now time.Time) bool {
	c, _ := g.addresses.get(address, now)
	return c.hasRoom(g.addressMost, now, g.forgive)
}

// succeeded makes the address known for the account.
func (g *guard) succeeded(p pair) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pairs.put(p, counter{}, time.Now())
}

// failed counts a failure; not against the account if it comes from where the
// account may not log in anyway.
func (g *guard) failed(p pair, countsForAccount bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if own, ok := g.pairs.get(p, now); ok {
		g.pairs.put(p, g.raise(own, g.addressMost, now), now)
	}
	c, _ := g.addresses.get(p.address, now)
	raised := g.raise(c, g.addressMost, now)
	if raised.said && !c.said {
		g.log.Warn("too many failed logins from an address, it is refused unheard", "remote", p.address.String(), "client", p.account)
	}
	g.addresses.put(p.address, raised, now)
	if !countsForAccount {
		return
	}
	c, _ = g.accounts.get(p.account, now)
	raised = g.raise(c, g.accountMost, now)
	if raised.said && !c.said {
		g.log.Warn("too many failed logins to an account, addresses that it has not logged in from are refused unheard", "remote", p.address.String(), "client", p.account)
	}
	g.accounts.put(p.account, raised, now)
}

// raise adds a failure. What was said is said again after a rest only.
func (g *guard) raise(c counter, most int, now time.Time) counter {
	value := min(c.value(now, g.forgive)+1, float64(most))
	said := value > float64(most-1) || c.said && value > float64(most)/2
	return counter{failures: value, at: now, said: said}
}

// wait is how long a refusal takes in all, as a function of the failures so far
// and of what it took already. Its steps are longer than the hashes that we
// make, so that they tell nothing of what had to be hashed.
func (g *guard) wait(p pair, took time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var failures float64
	if own, ok := g.pairs.get(p, now); ok {
		failures = own.value(now, g.forgive)
	} else {
		address, _ := g.addresses.get(p.address, now)
		account, _ := g.accounts.get(p.account, now)
		failures = max(address.value(now, g.forgive), account.value(now, g.forgive)*float64(g.addressMost)/float64(g.accountMost))
	}
	step := g.delay
	for n := float64(g.free); n < failures && step < g.longestDelay; n += float64(g.free) {
		step *= 2
	}
	step = min(step, g.longestDelay)
	return max(1, (took+step-1)/step) * step
}

// hold counts a refusal that is being waited for; the function that it returns
// ends that.
func (g *guard) hold(p pair) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.delayed[p.address]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		less(g.delayed, p.address)
	}
}

// addressKey is what one customer of a provider has: an IPv4 address, or a /64.
func addressKey(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: all such are one
	}
	return p
}
