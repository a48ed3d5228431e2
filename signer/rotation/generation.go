package rotation

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// tail is what the keys of a generation have in common in their selectors.
type tail struct {
	month string // yyyymm
	n     int    // from 1
}

// generation is the keys that move together: those whose selectors differ in
// {algo} only. A key with a selector of another form is one of its own.
type generation struct {
	tail
	templated bool
	name      string // for a stable order
	all       []*keyring.Entry
	keys      map[keyring.Algorithm]*keyring.Entry
}

// generations sorts keys into theirs, by name.
func (p *Policy) generations(entries []keyring.Entry) []*generation {
	pattern := strings.NewReplacer(`\{algo\}`, `(?P<algo>rsa|ed25519)`, `\{yyyymm\}`, `(?P<month>\d{6})`).Replace(regexp.QuoteMeta(p.Selector))
	form, err := regexp.Compile("^" + pattern + `(?:-(?P<n>[1-9]\d{0,8}))?$`)
	byName := make(map[string]*generation)
	for i := range entries {
		e := &entries[i]
		g := &generation{name: "=" + e.Selector}
		if err == nil {
			if t, ok := tailOf(form, e); ok {
				g = &generation{tail: t, templated: true, name: t.month + "-" + strconv.Itoa(1_000_000_000+t.n)}
			}
		}
		if known := byName[g.name]; known != nil {
			g = known
		} else {
			g.keys = make(map[keyring.Algorithm]*keyring.Entry)
			byName[g.name] = g
		}
		g.all = append(g.all, e)
		g.keys[e.Algorithm] = e
	}
	var list []*generation
	for _, g := range byName {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *generation) int { return strings.Compare(a.name, b.name) })
	return list
}

func tailOf(form *regexp.Regexp, e *keyring.Entry) (tail, bool) {
	found := form.FindStringSubmatch(e.Selector)
	if found == nil {
		return tail{}, false
	}
	t := tail{n: 1}
	for i, name := range form.SubexpNames() {
		switch {
		case name == "month":
			t.month = found[i]
		case name == "algo" && found[i] != algorithmName(e.Algorithm):
			return tail{}, false
		case name == "n" && found[i] != "":
			n, err := strconv.Atoi(found[i])
			if err != nil || n < 2 {
				return tail{}, false
			}
			t.n = n
		}
	}
	return t, true
}

// full reports that the generation has a key of each algorithm, all in one of
// the states.
func (p *Policy) full(g *generation, states ...keyring.State) bool {
	for _, a := range p.Algorithms {
		if e := g.keys[a]; e == nil || !slices.Contains(states, e.State) {
			return false
		}
	}
	return true
}

// has reports that some key of the generation is in one of the states.
func (g *generation) has(states ...keyring.State) bool {
	return slices.ContainsFunc(g.all, func(e *keyring.Entry) bool { return slices.Contains(states, e.State) })
}

// active is when the first and the last key of the generation came into force;
// first is zero when nobody knows that of one of them.
func (g *generation) active() (first, last time.Time) {
	n := 0
	for _, e := range g.all {
		if e.State != keyring.Active {
			continue
		}
		at := e.Since()
		if n == 0 || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		n++
	}
	return first, last
}

// scene is the keys of a domain as a plan sees them.
type scene struct {
	p       *Policy
	domain  string
	entries []keyring.Entry
	all     []*generation
}

func sceneOf(p *Policy, domain string, entries []keyring.Entry) *scene {
	return &scene{p, domain, entries, p.generations(entries)}
}

// current is the generation that signs: the one that came into force last. Nil
// when there is none, as with keys made by hand.
func (s *scene) current() *generation {
	return s.latest(func(g *generation) bool { return s.p.full(g, keyring.Active) })
}

// handover is a generation of which some keys sign already and the others are
// about to.
func (s *scene) handover() *generation {
	return s.latest(func(g *generation) bool {
		return g.has(keyring.Active) && g.has(keyring.Generated, keyring.Published) &&
			s.p.full(g, keyring.Generated, keyring.Published, keyring.Active)
	})
}

func (s *scene) latest(is func(*generation) bool) *generation {
	var found *generation
	for _, g := range s.all {
		if !is(g) {
			continue
		}
		if found != nil {
			_, before := found.active()
			if _, last := g.active(); last.Before(before) {
				continue
			}
		}
		found = g
	}
	return found
}

// spare is the generation to sign next; the most advanced, then the newest.
func (s *scene) spare() *generation {
	var found *generation
	for _, g := range s.all {
		if s.p.full(g, keyring.Generated, keyring.Published) && (found == nil || published(g) >= published(found)) {
			found = g
		}
	}
	return found
}

func published(g *generation) int {
	n := 0
	for _, e := range g.all {
		if e.State == keyring.Published {
			n++
		}
	}
	return n
}

// abandoned reports that a generation can never sign: one of its keys is gone
// before the others came into force.
func (s *scene) abandoned(g *generation) bool {
	if !g.templated || g.has(keyring.Active) {
		return false
	}
	for _, a := range s.p.Algorithms {
		if e := g.keys[a]; e != nil && e.State != keyring.Generated && e.State != keyring.Published {
			return true
		}
	}
	return false
}

// missing are the selectors of the keys that make a spare generation: those that
// an interrupted creation still owes, or all of a new one.
func (s *scene) missing(now time.Time) []keyring.Entry {
	fresh := tail{month: now.UTC().Format("200601"), n: s.free(now)}
	for _, g := range s.all {
		if g.templated && !g.has(keyring.Active) && !s.abandoned(g) && !s.p.full(g, keyring.Generated, keyring.Published) {
			fresh = g.tail
		}
	}
	var keys []keyring.Entry
	for _, a := range s.p.Algorithms {
		selector := s.p.selectorOf(a, fresh)
		if _, taken := find(s.entries, selector); !taken {
			keys = append(keys, keyring.Entry{Domain: s.domain, Selector: selector, Algorithm: a})
		}
	}
	slices.SortStableFunc(keys, func(a, b keyring.Entry) int { return cmp.Compare(rank(&a), rank(&b)) })
	return keys
}

// free is the first number of the month under which no selector was ever used.
func (s *scene) free(now time.Time) int {
	n := 1
	for ; n <= len(s.entries); n++ { // one of so many is free
		taken := slices.ContainsFunc(s.p.Algorithms, func(a keyring.Algorithm) bool {
			_, is := find(s.entries, s.p.selector(a, now, n))
			return is
		})
		if !taken {
			break
		}
	}
	return n
}

// rank orders the keys of a generation: RSA comes into force first, because
// Ed25519 must not sign alone.
func rank(e *keyring.Entry) int {
	if e.Algorithm == keyring.RSA {
		return 0
	}
	return 1
}

// signing are the keys that are Active.
func (s *scene) signing() []*keyring.Entry {
	var active []*keyring.Entry
	for i := range s.entries {
		if s.entries[i].State == keyring.Active {
			active = append(active, &s.entries[i])
		}
	}
	return active
}
