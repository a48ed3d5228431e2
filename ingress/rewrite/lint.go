package rewrite

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"postroad/queue/address"
)

// Lint looks for what is allowed and probably not meant. Its faults keep nothing
// from working.
func (r *Rules) Lint() Faults {
	if r == nil {
		return nil
	}
	rules := reader{file: r.files.Rules}
	for i, one := range r.canonical {
		if one.pattern != nil {
			lintPattern(&rules, one)
		}
		r.lintReach(&rules, i)
		r.lintChain(&rules, one)
	}
	entries := reader{file: r.files.Aliases}
	if r.aliases != nil {
		r.aliases.lint(&rules, &entries)
	}
	return append(rules.faults.sorted(), entries.faults.sorted()...)
}

// lintPattern looks at an expression by itself.
func lintPattern(out *reader, one *rule) {
	from := domainPart(one.match)
	if fixed := escapeDots(one.match, from); fixed != one.match {
		out.fault(one.line, "a dot stands for any character here; write %s if dots are meant", fixed)
	}
	begins, ends := anchors(one.match)
	if !ends {
		out.fault(one.line, "the expression does not end with $, so it also matches addresses that go on behind it")
	}
	if !begins && !strings.HasPrefix(one.match, "@") {
		out.fault(one.line, "the expression does not begin with ^, so it also matches addresses that have something before it")
	}
	if from > 0 && one.match[from:] != lowerLetters(one.match[from:]) && !strings.Contains(one.match, "(?i") {
		out.fault(one.line, "domains are compared in lower case: capital letters in the domain never match")
	}
	if strings.ContainsFunc(one.match[from:], func(c rune) bool { return c >= 0x80 }) && from > 0 {
		out.fault(one.line, "domains are compared as A-labels: write xn--… in the domain")
	}
}

// domainPart is where the domain begins in an expression: behind the first @
// that stands for itself, else at the begin.
func domainPart(expression string) int {
	inClass := false
	for i := 0; i < len(expression); i++ {
		switch c := expression[i]; {
		case c == '\\':
			i++
		case c == '[':
			inClass = true
		case c == ']':
			inClass = false
		case c == '@' && !inClass:
			return i + 1
		}
	}
	return 0
}

// escapeDots puts a backslash before each dot that stands where in a domain a
// dot would stand: with something before it and a letter, digit or group behind.
func escapeDots(expression string, from int) string {
	var b strings.Builder
	b.WriteString(expression[:from])
	inClass := false
	for i := from; i < len(expression); i++ {
		c := expression[i]
		switch {
		case c == '\\' && i+1 < len(expression):
			b.WriteByte(c)
			i++
			c = expression[i]
		case c == '[':
			inClass = true
		case c == ']':
			inClass = false
		case c == '.' && !inClass && i > from && i+1 < len(expression) &&
			(isWord(expression[i-1]) || strings.IndexByte(")]*+?}", expression[i-1]) >= 0) &&
			(isWord(expression[i+1]) || expression[i+1] == '(' || expression[i+1] == '['):
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-'
}

var escaped = regexp.MustCompile(`\\.`)

// lowerLetters puts an expression into lower case, its classes such as \S apart.
func lowerLetters(expression string) string {
	var b strings.Builder
	end := 0
	for _, m := range escaped.FindAllStringIndex(expression, -1) {
		b.WriteString(strings.ToLower(expression[end:m[0]]))
		b.WriteString(expression[m[0]:m[1]])
		end = m[1]
	}
	b.WriteString(strings.ToLower(expression[end:]))
	return b.String()
}

// anchors tells whether all that an expression matches begins and ends with the
// address. An expression that begins or ends with .* is as good.
func anchors(expression string) (begins, ends bool) {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return true, true
	}
	return anchored(tree, true), anchored(tree, false)
}

func anchored(tree *syntax.Regexp, front bool) bool {
	switch tree.Op {
	case syntax.OpBeginText:
		return front
	case syntax.OpEndText:
		return !front
	case syntax.OpStar, syntax.OpPlus:
		return tree.Sub[0].Op == syntax.OpAnyCharNotNL || tree.Sub[0].Op == syntax.OpAnyChar
	case syntax.OpCapture:
		return anchored(tree.Sub[0], front)
	case syntax.OpConcat:
		if front {
			return anchored(tree.Sub[0], front)
		}
		return anchored(tree.Sub[len(tree.Sub)-1], front)
	case syntax.OpAlternate:
		return !slices.ContainsFunc(tree.Sub, func(sub *syntax.Regexp) bool { return !anchored(sub, front) })
	}
	return false
}

// lintReach looks for an earlier rule that takes all that this one could match.
func (r *Rules) lintReach(out *reader, place int) {
	one := r.canonical[place]
	domain := one.domain
	switch {
	case one.pattern != nil:
		domain = endDomain(one.match)
	case domain == "":
		domain = one.exact.Domain
	}
	for s := range scopes {
		if one.scopes&(1<<s) == 0 {
			continue
		}
		if !r.isTaken(s, place, domain) {
			return // it has something to do in this scope
		}
	}
	out.fault(one.line, "this rule never does anything: the one in line %d takes all that it would match", r.taker(place, domain))
}

// isTaken tells whether a rule before place takes all that it matches in a scope.
func (r *Rules) isTaken(scope, place int, domain string) bool {
	_, ok := r.takerIn(scope, place, domain)
	return ok
}

func (r *Rules) taker(place int, domain string) int {
	for s := range scopes {
		if r.canonical[place].scopes&(1<<s) != 0 {
			if line, ok := r.takerIn(s, place, domain); ok {
				return line
			}
		}
	}
	return 0
}

func (r *Rules) takerIn(scope, place int, domain string) (line int, ok bool) {
	one, tab := r.canonical[place], &r.tables[scope]
	earlier := func(first int, ok bool) bool { return ok && first < place }
	if first, ok := tab.domains[domain]; domain != "" && earlier(first, ok) {
		return r.canonical[first].line, true
	}
	isExact := one.pattern == nil && !one.isDomain()
	if first, ok := tab.exact[one.exact]; isExact && earlier(first, ok) {
		return r.canonical[first].line, true
	}
	for _, n := range tab.patterns {
		if n.place >= place {
			break
		}
		if one.pattern != nil && n.rule.match == one.match || isExact && n.rule.pattern.MatchString(one.exact.String()) {
			return n.rule.line, true
		}
	}
	return 0, false
}

// endDomain is the domain that all addresses have that an expression matches,
// "" when there is none that could be told.
func endDomain(expression string) string {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil || tree.Op != syntax.OpConcat || len(tree.Sub) < 2 {
		return ""
	}
	last, text := tree.Sub[len(tree.Sub)-1], tree.Sub[len(tree.Sub)-2]
	if last.Op != syntax.OpEndText || text.Op != syntax.OpLiteral || text.Flags&syntax.FoldCase != 0 {
		return ""
	}
	_, domain, hasAt := strings.Cut(string(text.Rune), "@")
	if !hasAt || strings.Contains(domain, "@") {
		return ""
	}
	name, err := address.Normalize(domain)
	if err != nil {
		return ""
	}
	return name
}

// lintChain looks for a result that another rule would change: here it does not.
func (r *Rules) lintChain(out *reader, one *rule) {
	if one.pattern != nil {
		return
	}
	for s := range scopes {
		if one.scopes&(1<<s) == 0 {
			continue
		}
		tab := &r.tables[s]
		place, ok := tab.exact[one.target]
		if one.toDomain != "" || !ok {
			domain := one.toDomain
			if domain == "" {
				domain = one.target.Domain
			}
			place, ok = tab.domains[domain]
		}
		if ok && r.canonical[place] != one {
			out.fault(one.line, "the result is an address that line %d would change, but rules are applied once: write the final address",
				r.canonical[place].line)
			return
		}
	}
}

// lint looks at aliases.
func (a *aliases) lint(rules, entries *reader) {
	for domain, line := range a.own {
		if e, _ := a.find(address.Path{Local: "postmaster", Domain: domain}); e == nil {
			rules.fault(line, "nobody reads postmaster@%s, which RFC 5321 §4.5.1 asks for: give it an alias", domain)
		}
	}
	for _, e := range a.entries {
		if e.size > a.files.MaxRecipients {
			entries.fault(e.line, "%s", fmt.Sprintf("%s leads to up to %d recipients; above %d it is refused", e.name, e.size, a.files.MaxRecipients))
		}
	}
}

// count is the number of names.
func (a *aliases) count() int {
	if a == nil {
		return 0
	}
	return len(a.entries)
}
