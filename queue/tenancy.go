package queue

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

const (
	slotsMagic = "PRH1" // of the stored form; then JSON
	// slotTurn is how long a member may keep its only slot where there are fewer slots than members that want one.
	slotTurn = 5 * time.Second
)

// tenancy is who has the slots of one key: the stored form.
type tenancy struct {
	Limit   int      `json:"limit"` // of the last writer, for people
	Tenants []tenant `json:"tenants"`
}

// tenant is one member's part.
type tenant struct {
	Member string `json:"m"`
	Node   string `json:"node"` // for people
	Have   int    `json:"have"`
	Want   int    `json:"want"`  // in all
	Since  int64  `json:"since"` // milliseconds of Unix: it has had any, or has waited for the first, since then
}

// Claim says what a member needs of the slots of a key.
type Claim struct {
	Use   int  // are not given back now; of what it has
	Want  int  // in all
	Limit int  // how many there are for the cluster
	Look  bool // others may have claimed meanwhile: ask first
	Tell  bool // where it gets less than it wants, say so to those who have some
}

// Claimed is what a member has after a claim.
type Claimed struct {
	Have int
	// Fair is how many it should have, because others wait: who has more gives back as soon as it can. Where nobody waits it is the Limit.
	Fair int
	Free int // that nobody has
}

// drop takes tenants away that are no more, and reports whether there were any.
func (t *tenancy) drop(isDead func(member string) bool) bool {
	n := len(t.Tenants)
	t.Tenants = slices.DeleteFunc(t.Tenants, func(x tenant) bool { return isDead(x.Member) })
	return len(t.Tenants) < n
}

// claim gives a member what it needs as far as there is any and no more than its fair part. now is in milliseconds.
func (t *tenancy) claim(member, node string, c Claim, now int64) Claimed {
	i := slices.IndexFunc(t.Tenants, func(x tenant) bool { return x.Member == member })
	if i < 0 {
		i = len(t.Tenants)
		t.Tenants = append(t.Tenants, tenant{Member: member, Node: node, Since: now})
	}
	t.Limit = c.Limit
	for j := range t.Tenants { // a time that is far ahead is from before the clock was set
		if x := &t.Tenants[j]; x.Since > now+slotTurn.Milliseconds() {
			x.Since = now
		}
	}
	me := &t.Tenants[i]
	use := min(c.Use, me.Have)
	me.Want = c.Want
	free := c.Limit
	for j := range t.Tenants {
		if j != i {
			free -= t.Tenants[j].Have
		}
	}
	fair := t.fair(i, free, now)
	had := me.Have
	me.Have = max(use, min(me.Want, free, fair))
	if (had == 0) != (me.Have == 0) {
		me.Since = now
	}
	got := Claimed{Have: me.Have, Fair: fair, Free: max(0, free-me.Have)}
	if me.Have == 0 && me.Want == 0 {
		t.Tenants = slices.Delete(t.Tenants, i, i+1)
	}
	return got
}

// fair is the part of a tenant when all want their part: nobody gets more than it wants, and what others do not want is shared. free
// is what the others do not have.
func (t *tenancy) fair(i, free int, now int64) int {
	isWaited := false
	for j, x := range t.Tenants {
		isWaited = isWaited || j != i && x.Want > x.Have
	}
	switch {
	case !isWaited:
		return t.Limit
	case t.Limit < t.wanting():
		return t.turn(i, free, now)
	}
	order := slices.Clone(t.Tenants)
	slices.SortFunc(order, func(a, b tenant) int {
		return cmp.Or(a.Want-b.Want, cmp.Compare(a.Member, b.Member))
	})
	left := t.Limit
	for j, x := range order {
		part := min(x.Want, left/(len(order)-j))
		if x.Member == t.Tenants[i].Member {
			return part
		}
		left -= part
	}
	return 0
}

// wanting is how many members want any.
func (t *tenancy) wanting() int {
	n := 0
	for _, x := range t.Tenants {
		if x.Want > 0 {
			n++
		}
	}
	return n
}

// turn is fair where not everybody can have one: each has one for a while, and who has waited longest is next.
func (t *tenancy) turn(i, free int, now int64) int {
	me := t.Tenants[i]
	if me.Have > 0 {
		if me.Want > 0 && now-me.Since < slotTurn.Milliseconds() {
			return 1
		}
		return 0
	}
	before := 0
	for j, x := range t.Tenants {
		if j != i && x.Have == 0 && x.Want > 0 && (x.Since < me.Since || x.Since == me.Since && x.Member < me.Member) {
			before++
		}
	}
	if before < free {
		return 1
	}
	return 0
}

// isHeldBy reports whether a member has, or wants, any.
func (t *tenancy) isHeldBy(member string) bool {
	return slices.ContainsFunc(t.Tenants, func(x tenant) bool { return x.Member == member })
}

// of is a member's part, nothing if it has none.
func (t *tenancy) of(member string) tenant {
	for _, x := range t.Tenants {
		if x.Member == member {
			return x
		}
	}
	return tenant{}
}

// isWaited reports whether somebody wants more than it has.
func (t *tenancy) isWaited() bool {
	return slices.ContainsFunc(t.Tenants, func(x tenant) bool { return x.Want > x.Have })
}

// others reports whether somebody else has any, or waits.
func (t *tenancy) others(member string) bool {
	return slices.ContainsFunc(t.Tenants, func(x tenant) bool { return x.Member != member })
}

func encodeTenancy(t *tenancy) ([]byte, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode slots: %w", err)
	}
	return append([]byte(slotsMagic), b...), nil
}

// decodeTenancy reads a stored form. Nothing is what nobody has any of.
func decodeTenancy(b []byte) (tenancy, error) {
	var t tenancy
	if len(b) == 0 {
		return t, nil
	}
	rest, err := afterMagic(b, slotsMagic)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(rest, &t); err != nil {
		return t, fmt.Errorf("slots: %w: %w", err, ErrCorrupt)
	}
	return t, nil
}
