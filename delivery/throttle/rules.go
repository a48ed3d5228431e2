package throttle

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/queue"
)

// Defaults for what no rule says.
const (
	DefaultConnections = 20
	DefaultMessages    = 100
)

// Rule limits what goes to some sites. All that it names must match; it names one of Domain, Site and MX at most.
type Rule struct {
	Domain string `json:"domain,omitempty"` // of recipients: example.com, or .example.com for every domain below it
	Site   string `json:"site,omitempty"`   // name of a site, as `site list` and events show it
	MX     string `json:"mx,omitempty"`     // a host of the site has this name or lies below it
	Source string `json:"source,omitempty"` // egress source

	Connections    int        `json:"connections,omitempty"`    // at a time
	Rate           queue.Rate `json:"rate,omitzero"`            // of messages
	ConnectionRate queue.Rate `json:"connection_rate,omitzero"` // of new connections
	Messages       int        `json:"messages,omitempty"`       // over one connection
	PerSite        bool       `json:"per_site,omitempty"`       // counts over all sources together
	Live           bool       `json:"-"`                        // set by an operator's command: before others like it
	Origin         string     `json:"-"`                        // where it stands, for people
}

// Query is what a job is to be sent by.
type Query struct {
	Domain string
	Site   string
	Hosts  []string // of the site
	Source string   // egress source; empty: there are none by name
}

// Limits are what holds for a job.
type Limits struct {
	// Path is what is counted together: source and site, and the domain where a rule of its own matched.
	Path           string
	Connections    int
	Rate           queue.Rate
	ConnectionRate queue.Rate
	Messages       int // over one connection
}

// Origins are the rules that gave limits; nil: none did.
type Origins struct {
	Connections, Rate, ConnectionRate, Messages *Rule

	IsByRate bool // more connections are allowed than the rate can use
}

// Rules are rules in their order: the first one that says something about a limit counts. That of a domain comes before that of the domains
// around it, then that of the site, of an MX name, the longest first, of a source alone, and of everything. Of two that match by the same,
// the one that names a source too comes first, then the one that an operator set while the program runs.
type Rules struct{ list []Rule }

// Check finds what is wrong with a rule.
func (r *Rule) Check() error {
	n := 0
	for _, name := range []string{r.Domain, r.Site, r.MX} {
		if name != "" {
			n++
		}
	}
	switch {
	case n > 1:
		return errors.New("a rule matches by one of domain, site and mx")
	case r.Connections < 0 || r.Messages < 0 || r.Rate.Count < 0 || r.ConnectionRate.Count < 0 || r.Rate.Burst < 0:
		return errors.New("a limit is less than 0")
	case r.Connections == 0 && r.Messages == 0 && r.Rate.IsZero() && r.ConnectionRate.IsZero():
		return errors.New("the rule limits nothing")
	case r.Rate.IsZero() && r.Rate.Burst > 0:
		return errors.New("burst belongs to a rate")
	}
	return nil
}

// NewRules checks rules and brings them into their order.
func NewRules(rules ...Rule) (*Rules, error) {
	list := make([]Rule, len(rules))
	for i, r := range rules {
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("rule %d (%s): %w", i+1, r.Match(), err)
		}
		r.Domain, r.MX, r.Site = strings.ToLower(r.Domain), strings.ToLower(strings.TrimPrefix(r.MX, ".")), strings.ToLower(r.Site)
		list[i] = r
	}
	slices.SortStableFunc(list, func(a, b Rule) int { return cmp.Compare(b.rank(), a.rank()) })
	return &Rules{list}, nil
}

// rank is higher for what is more specific.
func (r *Rule) rank() int {
	rank := 0
	switch {
	case r.Domain != "" && r.Domain[0] != '.':
		rank = 5000
	case r.Domain != "":
		rank = 4000 + len(r.Domain)
	case r.Site != "":
		rank = 3000
	case r.MX != "":
		rank = 2000 + len(r.MX)
	case r.Source != "":
		rank = 1000
	}
	rank *= 4
	if r.Source != "" {
		rank += 2
	}
	if r.Live {
		rank++
	}
	return rank
}

// Match says what a rule is for, in one word without spaces: what `limit set` and `limit list` call it.
func (r *Rule) Match() string {
	var parts []string
	for _, p := range []struct{ key, value string }{{"domain", r.Domain}, {"site", r.Site}, {"mx", r.MX}, {"source", r.Source}} {
		if p.value != "" {
			parts = append(parts, p.key+"="+p.value)
		}
	}
	if len(parts) == 0 {
		return "*"
	}
	return strings.Join(parts, ",")
}

func (r *Rule) matches(q *Query) bool {
	if r.Source != "" && r.Source != q.Source {
		return false
	}
	switch {
	case r.Domain != "" && r.Domain[0] == '.':
		return strings.HasSuffix(q.Domain, r.Domain)
	case r.Domain != "":
		return q.Domain == r.Domain
	case r.Site != "":
		return q.Site == r.Site
	case r.MX != "":
		return slices.ContainsFunc(q.Hosts, func(host string) bool { return isBelow(host, r.MX) })
	}
	return true
}

func isBelow(host, name string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == name || strings.HasSuffix(host, "."+name)
}

// For finds the limits of a job.
func (rs *Rules) For(q Query) Limits {
	l, _ := rs.Explain(q)
	return l
}

// Explain finds the limits of a job as For does, and where each comes from.
func (rs *Rules) Explain(q Query) (Limits, Origins) {
	var l Limits
	var from Origins
	isPerSite, domain := false, ""
	for i := range rs.list {
		r := &rs.list[i]
		if !r.matches(&q) {
			continue
		}
		used := give(&l.Connections, r.Connections, &from.Connections, r)
		used = give(&l.Rate, r.Rate, &from.Rate, r) || used
		used = give(&l.ConnectionRate, r.ConnectionRate, &from.ConnectionRate, r) || used
		used = give(&l.Messages, r.Messages, &from.Messages, r) || used
		isPerSite = isPerSite || used && r.PerSite
		if used && domain == "" {
			domain = r.Domain
		}
	}
	give(&l.Connections, DefaultConnections, &from.Connections, nil)
	give(&l.Messages, DefaultMessages, &from.Messages, nil)
	if !l.Rate.IsZero() {
		// More would only stand in line for their turn.
		most := max(1, int(inLine/l.Rate.Every()))
		from.IsByRate = most < l.Connections
		l.Connections = min(l.Connections, most)
	}
	source := q.Source
	if isPerSite {
		source = ""
	}
	l.Path = pathName(q.Site, domain, source)
	return l, from
}

// inLine is how long a connection may stand in line for its turn.
const inLine = 5 * time.Second

// give sets a limit that no rule has given yet, and notes which one did.
func give[T comparable](field *T, value T, from **Rule, r *Rule) bool {
	var zero T
	if *field != zero || value == zero {
		return false
	}
	*field, *from = value, r
	return true
}

// maxPath bounds the octets of a path: it is a key.
const maxPath = 180

// pathName names what is counted together.
func pathName(site, domain, source string) string {
	name := site
	if domain != "" {
		name += "#" + domain
	}
	if source != "" {
		name += "@" + source
	}
	if len(name) <= maxPath {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:maxPath-10] + "~" + hex.EncodeToString(sum[:4])
}

// ParseRate reads a rate such as 100/s, 6000/h or 30/5m: a number, and the time for it.
func ParseRate(s string) (queue.Rate, error) {
	wrong := fmt.Errorf("%.50q is no rate: write a number and a time, such as 100/s, 6000/h or 30/5m", s)
	count, window, ok := strings.Cut(s, "/")
	if !ok {
		return queue.Rate{}, wrong
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 {
		return queue.Rate{}, wrong
	}
	units := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	d, isUnit := units[window]
	if !isUnit {
		if d, err = time.ParseDuration(window); err != nil {
			return queue.Rate{}, wrong
		}
	}
	if d < time.Second || d > 30*24*time.Hour || n > 1_000_000 {
		return queue.Rate{}, fmt.Errorf("%.50q is out of range: at most a million, in one second to 30 days", s)
	}
	return queue.Rate{Count: n, Window: d}, nil
}

// RateText is a rate as ParseRate reads it.
func RateText(r queue.Rate) string {
	if r.IsZero() {
		return ""
	}
	for _, u := range []struct {
		d    time.Duration
		text string
	}{{time.Second, "s"}, {time.Minute, "m"}, {time.Hour, "h"}, {24 * time.Hour, "d"}} {
		if r.Window == u.d {
			return strconv.Itoa(r.Count) + "/" + u.text
		}
	}
	return strconv.Itoa(r.Count) + "/" + r.Window.String()
}
