package rewrite

import (
	"bytes"
	"fmt"
	"strings"

	"postroad/queue/address"
)

// entry is one alias.
type entry struct {
	line    int
	name    string // as written
	local   string // folded; empty for a catch-all
	domain  string // empty: the own domain and all alias domains
	isAll   bool   // @domain
	targets []target
	owner   address.Path // where owner-NAME leads to; null: there is none
	isBad   bool         // has a fault

	mark  mark // while the file is checked
	depth int  // aliases below it, itself included
	size  int  // most recipients that it can lead to
}

// target is one address that an alias leads to.
type target struct {
	path address.Path
	line int
}

// aliases are all entries of an aliases file, found by name. Names are compared
// without regard to case, as everybody knows it of /etc/aliases: this relay is
// the host that may say so (RFC 5321 §2.4).
type aliases struct {
	files   Files
	entries []*entry
	exact   map[address.Path]*entry
	bare    map[string]*entry
	all     map[string]*entry
	own     map[string]int // domains that have nothing but aliases, with their lines
}

func newAliases(files Files, entries []*entry, domains []aliasDomain) *aliases {
	a := &aliases{
		files:   files,
		entries: entries,
		exact:   make(map[address.Path]*entry),
		bare:    make(map[string]*entry),
		all:     make(map[string]*entry),
		own:     make(map[string]int),
	}
	for _, d := range domains {
		addFirst(a.own, d.name, d.line)
	}
	for _, e := range entries {
		switch {
		case e.isAll:
			a.all[e.domain] = e
		case e.domain == "":
			a.bare[e.local] = e
		default:
			a.exact[address.Path{Local: e.local, Domain: e.domain}] = e
		}
	}
	return a
}

func fold(local string) string { return strings.ToLower(local) }

// ownerPrefix begins the name of the alias of who looks after a list: owner-team for team.
const ownerPrefix = "owner-"

// owners gives each list its owner.
func (a *aliases) owners(r *reader) {
	for _, e := range a.entries {
		if e.isAll || strings.HasPrefix(e.local, ownerPrefix) {
			continue
		}
		o := a.bare[ownerPrefix+e.local]
		if e.domain != "" {
			o = a.exact[address.Path{Local: ownerPrefix + e.local, Domain: e.domain}]
		}
		if o == nil {
			continue
		}
		path, isOne := a.end(o)
		if !isOne {
			r.fault(o.line, "%s leads to several addresses: it must be one, which the mail of %s comes from", o.name, e.name)
		}
		e.owner = path
	}
}

// end is the only address that an alias leads to.
func (a *aliases) end(e *entry) (p address.Path, isOne bool) {
	for range maxDepth + 1 {
		if len(e.targets) != 1 {
			return address.Path{}, len(e.targets) == 0 // none is a fault of its own
		}
		p = e.targets[0].path
		next, _ := a.find(p)
		if next == nil || next == e {
			return p, true
		}
		e = next
	}
	return p, true // a loop is a fault of its own
}

// isClosed reports a domain that has nothing but aliases.
func (a *aliases) isClosed(domain string) bool {
	_, ok := a.own[domain]
	return ok
}

// find gives the alias of a path, with the tag that it was found without; nil
// when there is none. The most specific name wins: the whole local part, the
// local part without its tag, the domain.
func (a *aliases) find(p address.Path) (e *entry, tag string) {
	if e := a.named(p.Local, p.Domain); e != nil {
		return e, ""
	}
	if a.files.Delimiter != "" {
		if cut := strings.IndexAny(p.Local, a.files.Delimiter); cut > 0 {
			if e := a.named(p.Local[:cut], p.Domain); e != nil {
				return e, p.Local[cut:]
			}
		}
	}
	return a.all[p.Domain], ""
}

func (a *aliases) named(local, domain string) *entry {
	local = fold(local)
	if e := a.exact[address.Path{Local: local, Domain: domain}]; e != nil {
		return e
	}
	if len(a.bare) > 0 && (domain == a.files.OwnDomain || a.isClosed(domain)) {
		return a.bare[local]
	}
	return nil
}

// tagged gives a target the tag that its alias was found without, unless it has
// one of its own or would become too long.
func (a *aliases) tagged(p address.Path, tag string) address.Path {
	if tag == "" || strings.ContainsAny(p.Local, a.files.Delimiter) {
		return p
	}
	if with, err := address.New(p.Local+tag, p.Domain); err == nil {
		return with
	}
	return p
}

// entries reads an aliases file.
func (r *reader) entries(text []byte, own string) []*entry {
	var entries []*entry
	seen := make(map[string]int)
	var current *entry // the line may be continued
	number := 0
	for line := range bytes.Lines(text) {
		number++
		content := strings.TrimRight(string(line), " \t\r\n")
		trimmed := strings.TrimLeft(content, " \t")
		switch {
		case trimmed == "" || trimmed[0] == '#':
			continue
		case trimmed != content && current == nil:
			r.fault(number, "a line that begins with a blank continues the one before, and there is none that can be continued")
			continue
		case trimmed == content:
			current = &entry{line: number}
			rest, ok := r.name(current, content, own)
			if !ok {
				current = &entry{line: number} // its continuation is read and forgotten
			} else {
				if first, isKnown := seen[current.key()]; isKnown {
					r.fault(number, "%s has an alias in line %d already: join the two", current.name, first)
				} else {
					seen[current.key()] = number
					entries = append(entries, current)
				}
			}
			trimmed = rest
		}
		r.targets(current, trimmed, number, own)
	}
	for _, e := range entries {
		if len(e.targets) == 0 && !e.isBad {
			r.fault(e.line, "%s leads nowhere: name at least one address behind the colon", e.name)
		}
	}
	return entries
}

// key is the same for two names that mean the same.
func (e *entry) key() string { return e.local + "@" + e.domain }

// name reads what stands before the colon and returns what stands behind it.
func (r *reader) name(e *entry, line, own string) (rest string, ok bool) {
	colon := outside(line, ":")
	if colon < 0 {
		r.fault(e.line, "an alias is written name: address, address; the colon is missing")
		return "", false
	}
	e.name = strings.TrimSpace(line[:colon])
	rest = line[colon+1:]
	if domain, isAll := strings.CutPrefix(e.name, "@"); isAll {
		name, err := address.Normalize(domain)
		if err != nil {
			r.fault(e.line, "%q is no domain", domain)
			return rest, false
		}
		e.domain, e.isAll = name, true
		return rest, true
	}
	if strings.EqualFold(e.name, ":include") || e.name == "" {
		r.fault(e.line, "the name before the colon is missing")
		return rest, false
	}
	p, isBare, err := readMailbox(e.name, "name.invalid")
	if err != nil {
		r.fault(e.line, "%q is neither a local part nor local@domain nor @domain", e.name)
		return rest, false
	}
	e.local, e.domain = fold(p.Local), p.Domain
	if isBare {
		e.domain = ""
		if own == "" {
			r.fault(e.line, "there is no own domain that %q could be a name in: write %s@domain", e.name, e.name)
			return rest, false
		}
	}
	return rest, true
}

// targets reads addresses with commas between them.
func (r *reader) targets(e *entry, text string, line int, own string) {
	before := len(r.faults)
	defer func() { e.isBad = e.isBad || len(r.faults) > before }()
	for text != "" {
		item := text
		comma := outside(text, ",")
		if comma >= 0 {
			item, text = text[:comma], text[comma+1:]
		} else {
			text = ""
		}
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if why := refusedTarget(item); why != "" {
			r.fault(line, "%s: %s", shortened(item), why)
			continue
		}
		p, isBare, err := readMailbox(item, own)
		switch {
		case err != nil && isBare && own == "":
			r.fault(line, "%s: there is no own domain to complete it: write %s@domain", shortened(item), item)
		case err != nil && strings.ContainsAny(item, " \t"):
			r.fault(line, "%s is no address; addresses are separated by commas, and comments stand on lines of their own", shortened(item))
		case err != nil:
			r.fault(line, "%s is neither a local part nor local@domain", shortened(item))
		default:
			e.targets = append(e.targets, target{p, line})
		}
	}
}

// refusedTarget says why something that /etc/aliases can hold is not taken here.
func refusedTarget(item string) string {
	plain := strings.ToLower(strings.TrimLeft(item, `"`))
	switch {
	case strings.HasPrefix(plain, "|"):
		return "a relay runs no commands: deliver to a host that does"
	case strings.HasPrefix(plain, "/"):
		return "a relay writes no mail into files: deliver to a host that does"
	case strings.HasPrefix(plain, ":include:"):
		return "lists are not included from other files: write the addresses here"
	case strings.HasPrefix(plain, ":"):
		return "is no address, and there are no special targets"
	case strings.HasPrefix(plain, `\`):
		return "there is no local delivery to force: write the address without the backslash"
	case strings.HasPrefix(plain, "@"):
		return "a target is one address; a whole domain is renamed by a rule: address: '@old', to: '@new'"
	}
	return ""
}

// readMailbox reads local@domain, or a local part that own completes.
func readMailbox(text, own string) (p address.Path, isBare bool, err error) {
	p, err = address.Parse(text)
	isBare = err == nil && p.Domain == ""
	if err != nil && outside(text, "@") < 0 {
		isBare = true
	}
	if !isBare {
		return p, false, err
	}
	if own == "" {
		return address.Path{}, true, address.ErrNoDomain
	}
	p, err = address.Parse(text + "@" + own)
	return p, true, err
}

// outside finds the first of some characters that is not within quotes.
func outside(text, chars string) int {
	inQuotes := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inQuotes && c == '\\':
			i++
		case c == '"':
			inQuotes = !inQuotes
		case !inQuotes && strings.IndexByte(chars, c) >= 0:
			return i
		}
	}
	return -1
}

// shortened quotes a part of a file for a message.
func shortened(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
