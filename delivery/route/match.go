package route

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"postroad/queue/address"
)

// entry is a route made ready for matching.
type entry struct {
	route      Route
	conditions int // senders, clients, classes
	pattern    *regexp.Regexp
}

const (
	maxPattern = 500 // octets
	maxWord    = 255
)

func newEntry(r Route) (*entry, error) {
	e := &entry{}
	var err error
	if r.Match, e.pattern, err = parseMatch(r.Match); err != nil {
		return nil, err
	}
	senders := make([]string, len(r.Senders))
	for i, s := range r.Senders {
		if senders[i], err = parseSender(s); err != nil {
			return nil, err
		}
	}
	r.Senders = senders
	for _, words := range [][]string{r.Clients, r.Classes} {
		for _, w := range words {
			if w == "" || len(w) > maxWord || strings.ContainsAny(w, " \t\r\n") {
				return nil, fmt.Errorf("%.300q: %w", w, ErrWord)
			}
		}
	}
	for _, list := range [][]string{r.Senders, r.Clients, r.Classes} {
		if len(list) > 0 {
			e.conditions++
		}
	}
	e.route = r
	return e, nil
}

// parseMatch reads a domain, .suffix, /regexp/ or *. A pattern must match the whole of a domain, in any case.
func parseMatch(match string) (string, *regexp.Regexp, error) {
	if match == "*" {
		return match, nil, nil
	}
	if len(match) > 2 && match[0] == '/' && match[len(match)-1] == '/' {
		if len(match) > maxPattern {
			return "", nil, fmt.Errorf("%w: longer than %d octets", ErrPattern, maxPattern)
		}
		text := match[1 : len(match)-1]
		if _, err := regexp.Compile(text); err != nil { // alone: it must not close what is put around it
			return "", nil, fmt.Errorf("%w: %w", ErrPattern, err)
		}
		pattern, err := regexp.Compile(`^(?i:` + text + `)$`)
		if err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrPattern, err)
		}
		return match, pattern, nil
	}
	name, isSuffix := strings.CutPrefix(match, ".")
	if name == "" || strings.HasPrefix(name, "/") || isSuffix && address.IsLiteral(name) {
		return "", nil, ErrMatch
	}
	name, err := address.Normalize(name)
	if err != nil {
		return "", nil, err
	}
	if isSuffix {
		return "." + name, nil, nil
	}
	return name, nil, nil
}

// CheckMatch says what is wrong with a match.
func CheckMatch(match string) error {
	_, _, err := parseMatch(match)
	return err
}

// CheckSender says what is wrong with a sender.
func CheckSender(sender string) error {
	_, err := parseSender(sender)
	return err
}

const nullSender = "<>"

// parseSender reads user@domain, @domain, .domain or <> and prints it as senderKeys does.
func parseSender(s string) (string, error) {
	if s == nullSender {
		return s, nil
	}
	if domain, is := strings.CutPrefix(s, "@"); is {
		if name, err := address.Normalize(domain); err == nil {
			return "@" + name, nil
		}
	} else if domain, is := strings.CutPrefix(s, "."); is {
		if name, err := address.Normalize(domain); err == nil && !address.IsLiteral(name) {
			return "." + name, nil
		}
	} else if p, err := address.Parse(s); err == nil && p.Local != "" && p.Domain != "" {
		return senderKey(p), nil
	}
	return "", fmt.Errorf("%.300q: %w", s, ErrSender)
}

// senderKey prints an address. The case of local parts is ignored: nobody gives two of them that differ in nothing
// else to different people (RFC 5321 §2.4).
func senderKey(p address.Path) string {
	if p.IsNull() {
		return nullSender
	}
	p.Local = strings.ToLower(p.Local)
	return p.String()
}

// eachSenderKey visits what a route may call a sender, the most specific first, and at last "", which is any; until
// visit returns false.
func eachSenderKey(p address.Path, visit func(key string) bool) {
	if !visit(senderKey(p)) {
		return
	}
	if !p.IsNull() && p.Domain != "" {
		if !visit("@" + p.Domain) {
			return
		}
		if !address.IsLiteral(p.Domain) {
			for rest := p.Domain; ; {
				dot := strings.IndexByte(rest, '.')
				if dot < 0 {
					break
				}
				if !visit(rest[dot:]) {
					return
				}
				rest = rest[dot+1:]
			}
		}
	}
	visit("")
}

// bucket is all routes with the same match.
type bucket struct {
	match    string
	pattern  *regexp.Regexp
	entries  []*entry            // as written
	bySender map[string][]*entry // under each of its senders, "" without any; more conditions first, then as written
}

func (b *bucket) add(e *entry) error {
	keys := e.route.Senders
	if len(keys) == 0 {
		keys = []string{""}
	}
	for _, key := range keys {
		for _, other := range b.bySender[key] {
			if other != e && sameShape(e.route, other.route) && overlap(e.route.Clients, other.route.Clients) && overlap(e.route.Classes, other.route.Classes) {
				return fmt.Errorf("%w: %.300q comes before it", ErrDuplicate, other.route.String())
			}
		}
	}
	b.entries = append(b.entries, e)
	for _, key := range keys {
		list := b.bySender[key]
		if slices.Contains(list, e) {
			continue // a sender that is named twice
		}
		at := len(list)
		for at > 0 && list[at-1].conditions < e.conditions {
			at--
		}
		b.bySender[key] = slices.Insert(list, at, e)
	}
	return nil
}

// sameShape reports that two routes have conditions of the same kinds.
func sameShape(x, y Route) bool {
	return (len(x.Senders) > 0) == (len(y.Senders) > 0) && (len(x.Clients) > 0) == (len(y.Clients) > 0) && (len(x.Classes) > 0) == (len(y.Classes) > 0)
}

// overlap reports that two conditions of the same kind can hold at once.
func overlap(x, y []string) bool {
	return len(x) == 0 && len(y) == 0 || slices.ContainsFunc(x, func(s string) bool { return slices.Contains(y, s) })
}

// best finds the route that wins within the bucket: most conditions, then most specific sender, then first written.
func (b *bucket) best(q Query) *entry {
	if list := b.bySender[""]; len(b.entries) == 1 && len(list) == 1 && list[0].conditions == 0 {
		return list[0] // by far the most buckets
	}
	var best *entry
	eachSenderKey(q.Sender, func(key string) bool {
		for _, e := range b.bySender[key] {
			if best != nil && e.conditions <= best.conditions {
				break // of fewer conditions, or of as many with a less specific sender
			}
			if e.clientFits(q) {
				best = e
				break
			}
		}
		return true
	})
	return best
}

func (e *entry) clientFits(q Query) bool {
	return fits(e.route.Clients, q.Client) && fits(e.route.Classes, q.Class)
}

func fits(list []string, word string) bool { return len(list) == 0 || slices.Contains(list, word) }

// senderRank says how specific the sender is by which the route matches, 0 most; negative: it does not.
func (e *entry) senderRank(p address.Path) int {
	rank, found := 0, false
	eachSenderKey(p, func(key string) bool {
		if found = key != "" && slices.Contains(e.route.Senders, key) || key == "" && len(e.route.Senders) == 0; !found {
			rank++
		}
		return !found
	})
	if !found {
		return -1
	}
	return rank
}

// whyNot says for people why a route whose domain matches did not win.
func (e *entry) whyNot(q Query, won *entry) string {
	r := e.route
	switch {
	case e.senderRank(q.Sender) < 0:
		return "is for other senders"
	case !fits(r.Clients, q.Client) && q.Client == "":
		return "is for some clients only, and no client is given"
	case !fits(r.Clients, q.Client):
		return "is for other clients"
	case !fits(r.Classes, q.Class) && q.Class == "":
		return "is for some classes of clients only, and no class is known"
	case !fits(r.Classes, q.Class):
		return "is for other classes of clients"
	case won.route.Match != r.Match && (won.pattern == nil || e.pattern == nil):
		return "its domain is less specific: " + r.Match
	case won.route.Match != r.Match:
		return "its pattern comes later"
	case won.conditions > e.conditions:
		return "it has fewer conditions"
	case won.senderRank(q.Sender) < e.senderRank(q.Sender):
		return "its sender is less specific"
	}
	return "it has as many conditions and comes later"
}
