package rewrite

import (
	"errors"
	"math"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync/atomic"

	"postroad/queue/address"
)

// Where a rule can apply; a rule's scopes are bits of these.
const (
	envelopeSenders = iota
	headerSenders
	envelopeRecipients
	headerRecipients
	scopes
)

// rule is one canonical rule: a literal (an address, or a domain with all its
// addresses) or an expression.
type rule struct {
	line   int
	scopes uint8
	match  string // as written
	to     string // as written

	domain  string // of a literal @domain
	exact   address.Path
	pattern *regexp.Regexp // nil for a literal
	needed  string         // stands in all that the pattern matches

	target   address.Path // of a literal
	toDomain string       // of a literal that keeps local parts: its new domain

	failed atomic.Bool // said so in the log
}

// isDomain tells a literal @domain from a literal address.
func (r *rule) isDomain() bool { return r.domain != "" }

var errNoResult = errors.New("the result is no address")

// result is what the rule makes of an address that it matches; groups are those
// of the pattern.
func (r *rule) result(p address.Path, subject string, groups []int) (address.Path, error) {
	switch {
	case r.pattern != nil:
		text := string(r.pattern.ExpandString(nil, r.to, subject, groups))
		result, err := address.Parse(text)
		if err == nil && result.Domain == "" {
			err = errNoResult
		}
		return result, err
	case r.toDomain != "":
		return address.New(p.Local, r.toDomain)
	}
	return r.target, nil
}

// table finds the first rule of one scope that matches. Literals cost one look,
// however many there are.
type table struct {
	exact    map[address.Path]int // place among all rules
	domains  map[string]int
	patterns []numbered
}

type numbered struct {
	place int
	rule  *rule
}

func (t *table) add(place int, r *rule) {
	switch {
	case r.pattern != nil:
		t.patterns = append(t.patterns, numbered{place, r})
	case r.isDomain():
		if t.domains == nil {
			t.domains = make(map[string]int)
		}
		addFirst(t.domains, r.domain, place)
	default:
		if t.exact == nil {
			t.exact = make(map[address.Path]int)
		}
		addFirst(t.exact, r.exact, place)
	}
}

func addFirst[K comparable](m map[K]int, key K, place int) {
	if _, ok := m[key]; !ok {
		m[key] = place
	}
}

func (t *table) isEmpty() bool {
	return len(t.exact) == 0 && len(t.domains) == 0 && len(t.patterns) == 0
}

// rewrite applies the first rule that matches, once. A result is not looked up
// again: what a rule does can then be read from the rule alone, and no two of
// them can chase each other.
func (r *Rules) rewrite(scope int, p address.Path, t *Trace) address.Path {
	tab := &r.tables[scope]
	if tab.isEmpty() || p.Domain == "" {
		return p
	}
	first := math.MaxInt
	if place, ok := tab.exact[p]; ok {
		first = place
	}
	if place, ok := tab.domains[p.Domain]; ok {
		first = min(first, place)
	}
	var subject string
	var groups []int
	for _, n := range tab.patterns {
		if n.place > first {
			break
		}
		if subject == "" {
			subject = p.String()
		}
		if !strings.Contains(subject, n.rule.needed) {
			continue
		}
		if groups = n.rule.pattern.FindStringSubmatchIndex(subject); groups != nil {
			first = n.place
			break
		}
	}
	if first == math.MaxInt {
		return p
	}
	rule := r.canonical[first]
	result, err := rule.result(p, subject, groups)
	if err != nil {
		r.ruleFailed(rule, p, err)
		result = p
	}
	if t != nil {
		s := Step{Stage: StageCanonical, File: r.files.Rules, Line: rule.line, Rule: rule.match + " → " + rule.to,
			Before: p.String(), After: []string{result.String()}}
		if err != nil {
			s.Error = err.Error()
		}
		t.add(s)
	}
	return result
}

// ruleFailed counts a result that is no address; the log says it once for each
// rule, since clients can bring it about as often as they like.
func (r *Rules) ruleFailed(rule *rule, p address.Path, err error) {
	r.metrics.ruleErrors.Inc()
	if rule.failed.CompareAndSwap(false, true) {
		r.log.Warn("a rule makes something that is no address; the address stays as it was", "file", r.files.Rules, "line", rule.line,
			"path", p.String(), "err", err)
	}
}

// neededText finds the longest text that stands in everything that an
// expression matches, so that most addresses never see the expression.
func neededText(expression string) string {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return ""
	}
	return needed(tree.Simplify())
}

func needed(tree *syntax.Regexp) string {
	switch tree.Op {
	case syntax.OpLiteral:
		if tree.Flags&syntax.FoldCase == 0 {
			return string(tree.Rune)
		}
	case syntax.OpCapture, syntax.OpPlus:
		return needed(tree.Sub[0])
	case syntax.OpRepeat:
		if tree.Min > 0 {
			return needed(tree.Sub[0])
		}
	case syntax.OpConcat:
		longest := ""
		for _, part := range tree.Sub {
			if text := needed(part); len(text) > len(longest) {
				longest = text
			}
		}
		return longest
	}
	return ""
}
