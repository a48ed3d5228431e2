package rewrite

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"postroad/queue/address"
)

const (
	maxRules      = 100_000
	maxExpression = 1000 // octets
)

// aliasDomain is a domain that has nothing but aliases.
type aliasDomain struct {
	name string
	line int
}

// rules reads the rules file.
func (r *reader) rules(text []byte) ([]*rule, []aliasDomain) {
	root := r.document(text)
	if root == nil {
		return nil, nil
	}
	var canonical []*rule
	var domains []aliasDomain
	for key, value := range r.section(root, "canonical", "alias_domains") {
		list, ok := r.list(value)
		switch {
		case !ok:
		case key == "canonical":
			if len(list) > maxRules {
				r.fault(value.Line, "%d rules are too many: at most %d", len(list), maxRules)
				continue
			}
			for _, item := range list {
				if one := r.rule(item); one != nil {
					canonical = append(canonical, one)
				}
			}
		case key == "alias_domains":
			domains = r.domains(list)
		}
	}
	return canonical, domains
}

// document gives the content of the only document, nil when there is none.
func (r *reader) document(text []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if !errors.Is(err, io.EOF) {
			r.notYAML(err)
		}
		return nil
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		r.fault(second.Line, "a second document begins here: keep everything in one")
		return nil
	case !errors.Is(err, io.EOF):
		r.notYAML(err)
		return nil
	}
	if len(document.Content) == 0 || isNull(document.Content[0]) {
		return nil
	}
	return document.Content[0]
}

// notYAML takes the line out of the library's text.
func (r *reader) notYAML(err error) {
	place := regexp.MustCompile(`(?s)line (\d+)(?:,? column (\d+))?: *(.*)`)
	if m := place.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		r.fault(line, "this is not YAML: %s", m[3])
		return
	}
	r.fault(0, "this is not YAML: %v", err)
}

// section gives the entries of a mapping whose keys are known.
func (r *reader) section(n *yaml.Node, known ...string) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.fault(n.Line, "here must be a section with %s", strings.Join(known, ", "))
		return nil
	}
	entries := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case !slices.Contains(known, key.Value):
			r.fault(key.Line, "%s: there is no such setting; here can be: %s", key.Value, strings.Join(known, ", "))
		case entries[key.Value] != nil:
			r.fault(key.Line, "%s is given twice: remove one", key.Value)
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			r.fault(value.Line, "%s: anchors and aliases are not read here: write the value out", key.Value)
			if entries[key.Value] = value; value.Kind == yaml.AliasNode {
				entries[key.Value] = value.Alias // so that the rest is checked as it was meant
			}
		default:
			entries[key.Value] = value
		}
	}
	return entries
}

func (r *reader) list(n *yaml.Node) ([]*yaml.Node, bool) {
	if n.Kind != yaml.SequenceNode {
		if !isNull(n) { // the key with everything below it commented out
			r.fault(n.Line, "must be a list: one item per line after a dash")
		}
		return nil, false
	}
	return n.Content, true
}

func (r *reader) text(n *yaml.Node, key string) (string, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		r.fault(n.Line, "%s must be one text", key)
		return "", false
	}
	return n.Value, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (r *reader) domains(list []*yaml.Node) []aliasDomain {
	var domains []aliasDomain
	for _, item := range list {
		text, ok := r.text(item, "alias_domains")
		if !ok {
			continue
		}
		name, err := address.Normalize(text)
		if err != nil || address.IsLiteral(name) {
			r.fault(item.Line, "%q is no domain", text)
			continue
		}
		domains = append(domains, aliasDomain{name, item.Line})
	}
	return domains
}

// rule reads one rule; nil when something is wrong with it.
func (r *reader) rule(n *yaml.Node) *rule {
	before := len(r.faults)
	entries := r.section(n, "match", "address", "to", "where", "who")
	if entries == nil {
		return nil
	}
	one := &rule{line: n.Line}
	match, literal := entries["match"], entries["address"]
	switch {
	case (match == nil) == (literal == nil):
		r.fault(n.Line, "a rule has either match (a regular expression) or address (local@domain or @domain)")
		return nil
	case entries["to"] == nil:
		r.fault(n.Line, "to is missing: what becomes of the address")
		return nil
	}
	var ok bool
	if one.to, ok = r.text(entries["to"], "to"); !ok {
		return nil
	}
	if match != nil {
		r.pattern(one, match)
	} else {
		r.literal(one, literal, entries["to"].Line)
	}
	one.scopes = r.scopesOf(entries["where"], entries["who"])
	if len(r.faults) > before {
		return nil
	}
	return one
}

// pattern reads a rule by a regular expression.
func (r *reader) pattern(one *rule, n *yaml.Node) {
	var ok bool
	if one.match, ok = r.text(n, "match"); !ok {
		return
	}
	if len(one.match) > maxExpression {
		r.fault(n.Line, "match has %d octets: at most %d", len(one.match), maxExpression)
		return
	}
	var err error
	if one.pattern, err = regexp.Compile(one.match); err != nil {
		text := err.Error()
		if cause, isSyntax := errors.AsType[*syntax.Error](err); isSyntax {
			text = cause.Code.String() + ": " + cause.Expr
		}
		r.fault(n.Line, "match is no regular expression of Go: %s", text)
		return
	}
	one.needed = neededText(one.match)
	r.template(one, n.Line)
}

var reference = regexp.MustCompile(`\$(\$|\{[^}]*\}?|[0-9A-Za-z_]+)?`)

// template checks that all $ in the result of an expression mean something: the
// library puts nothing in the place of a group that is not there.
func (r *reader) template(one *rule, line int) {
	isUsed := false
	for _, m := range reference.FindAllStringSubmatch(one.to, -1) {
		isUsed = true
		name := strings.Trim(m[1], "{}")
		number, err := strconv.Atoi(name)
		switch {
		case m[1] == "$":
		case m[1] == "" || m[1] == "{}" || strings.HasPrefix(m[1], "{") && !strings.HasSuffix(m[1], "}"):
			r.fault(line, "to has a $ without a group behind it: write $1, ${1}, or $$ for the character itself")
		case err == nil && name != strconv.Itoa(number):
			r.fault(line, "to has $%s: write the number of a group without a zero in front", name)
		case err == nil && number > one.pattern.NumSubexp():
			r.fault(line, "to has $%s, and match has %d groups", name, one.pattern.NumSubexp())
		case err != nil && !slices.Contains(one.pattern.SubexpNames(), name):
			digits := name[:len(name)-len(strings.TrimLeft(name, "0123456789"))]
			if digits != "" {
				r.fault(line, "to has $%s, which is read as a group of that name: write ${%s}%s", name, digits, name[len(digits):])
			} else {
				r.fault(line, "to has $%s, and match has no group of that name", name)
			}
		}
	}
	if isUsed {
		return
	}
	if p, err := address.Parse(one.to); err != nil || p.Domain == "" {
		r.fault(line, "to is no address: %q; write local@domain", one.to)
	}
}

// literal reads a rule by an address or a domain.
func (r *reader) literal(one *rule, n *yaml.Node, toLine int) {
	var ok bool
	if one.match, ok = r.text(n, "address"); !ok {
		return
	}
	if name, isDomain := strings.CutPrefix(one.match, "@"); isDomain {
		domain, err := address.Normalize(name)
		if err != nil {
			r.fault(n.Line, "address: %q is no domain", name)
			return
		}
		one.domain = domain
	} else {
		p, err := address.Parse(one.match)
		if err != nil || p.Domain == "" {
			r.fault(n.Line, "address %q is neither local@domain nor @domain", one.match)
			return
		}
		one.exact = p
	}
	if name, isDomain := strings.CutPrefix(one.to, "@"); isDomain {
		domain, err := address.Normalize(name)
		if err != nil {
			r.fault(toLine, "to: %q is no domain", name)
			return
		}
		one.toDomain = domain
		return
	}
	p, err := address.Parse(one.to)
	switch {
	case strings.Contains(one.to, "$"):
		r.fault(toLine, "to has a $, but groups come from match: write match and a regular expression instead of address")
	case err != nil || p.Domain == "":
		r.fault(toLine, "to %q is neither local@domain nor @domain", one.to)
	}
	one.target = p
}

// scopesOf reads where and who; what is not given is everything.
func (r *reader) scopesOf(where, who *yaml.Node) uint8 {
	places := r.words(where, "where", "envelope", "header")
	people := r.words(who, "who", "senders", "recipients")
	var bits uint8
	for i, place := range []string{"envelope", "header"} {
		if slices.Contains(places, place) {
			if slices.Contains(people, "senders") {
				bits |= 1 << (envelopeSenders + i)
			}
			if slices.Contains(people, "recipients") {
				bits |= 1 << (envelopeRecipients + i)
			}
		}
	}
	return bits
}

func (r *reader) words(n *yaml.Node, key string, known ...string) []string {
	if n == nil {
		return known
	}
	var words []string
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for _, item := range items {
		text, ok := r.text(item, key)
		switch {
		case !ok:
		case !slices.Contains(known, text):
			r.fault(item.Line, "%s: %q is not one of %s", key, text, strings.Join(known, ", "))
		default:
			words = append(words, text)
		}
	}
	if len(items) == 0 {
		r.fault(n.Line, "%s is empty, so the rule would do nothing: name %s, or leave the line out for both", key, strings.Join(known, " or "))
	}
	return words
}
