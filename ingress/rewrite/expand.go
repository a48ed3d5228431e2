package rewrite

import (
	"fmt"

	"postroad/queue/address"
)

// maxDepth bounds aliases of aliases.
const maxDepth = 20

// mark is how far the check of an alias has come.
type mark int8

const (
	unseen mark = iota
	open
	done
)

// check looks for what would go wrong later: loops, too long chains, targets
// that nobody has.
func (a *aliases) check(r *reader) {
	for _, e := range a.entries {
		a.checkEntry(r, e)
	}
	a.owners(r)
}

// checkEntry visits everything below an alias, once.
func (a *aliases) checkEntry(r *reader, e *entry) {
	if e.mark == done {
		return
	}
	e.mark = open
	for _, to := range e.targets {
		next, _ := a.find(to.path)
		switch {
		case next == nil && a.isClosed(to.path.Domain):
			r.fault(to.line, "%s: there is no alias of that name, and %s is an alias domain", to.path, to.path.Domain)
			e.size++
		case next == nil || next == e:
			e.size++
		case next.mark == open:
			r.fault(to.line, "%s leads back to %s: this is a loop", to.path, next.name)
		default:
			a.checkEntry(r, next)
			e.depth = max(e.depth, next.depth)
			e.size += next.size
		}
	}
	e.size = min(e.size, 1<<30)
	if e.depth++; e.depth == maxDepth+1 {
		r.fault(e.line, "%s leads through more than %d aliases, one to the next", e.name, maxDepth)
	}
	e.mark = done
}

// expansion is one walk through aliases.
type expansion struct {
	aliases *aliases
	trace   *Trace
	visited map[visit]mark
	found   map[address.Path]int // index in leaves
	leaves  []leaf
}

// leaf is an address that an alias leads to, and the owner of the innermost list on the way there; null: there is none.
type leaf struct{ path, owner address.Path }

// visit is an alias with the tag that it was found without: with another tag it
// leads elsewhere, and with another owner by other hands.
type visit struct {
	entry *entry
	tag   string
	owner address.Path
}

// expand gives all that a path leads to, without repeats, in the order of the
// file. The error is an *Error.
func (a *aliases) expand(p address.Path, t *Trace) ([]leaf, error) {
	e, tag := a.find(p)
	if e == nil {
		if a.isClosed(p.Domain) {
			err := unknown(p.String())
			if t != nil {
				t.add(Step{Stage: StageAlias, File: a.files.Rules, Line: a.own[p.Domain], Rule: "alias_domains: " + p.Domain, Before: p.String(), Error: err.Error()})
			}
			return nil, err
		}
		return []leaf{{path: p}}, nil
	}
	x := &expansion{aliases: a, trace: t, visited: make(map[visit]mark), found: make(map[address.Path]int)}
	if err := x.walk(p, e, visit{tag: tag}, 0); err != nil {
		if t != nil {
			t.add(Step{Stage: StageAlias, File: a.files.Aliases, Line: e.line, Rule: e.name, Before: p.String(), Error: err.Error()})
		}
		return nil, err
	}
	return x.leaves, nil
}

// walk follows one alias; v says how it was come to. A target that finds the alias itself again is where
// the mail goes: bob: bob, carol keeps bob's copy.
func (x *expansion) walk(p address.Path, e *entry, v visit, depth int) error {
	v.entry = e
	if !e.owner.IsNull() {
		v.owner = e.owner
	}
	switch x.visited[v] {
	case open:
		return loop(fmt.Sprintf("%s in line %d", p, e.line))
	case done:
		return nil
	}
	if depth >= maxDepth {
		return loop(fmt.Sprintf("%s in line %d, %d aliases deep", p, e.line, depth))
	}
	x.visited[v] = open
	targets := make([]address.Path, len(e.targets))
	for i, to := range e.targets {
		targets[i] = to.path
	}
	if len(targets) == 1 {
		targets[0] = x.aliases.tagged(targets[0], v.tag)
	}
	if x.trace != nil {
		s := Step{Stage: StageAlias, File: x.aliases.files.Aliases, Line: e.line, Rule: e.name, Before: p.String()}
		for _, to := range targets {
			s.After = append(s.After, to.String())
		}
		x.trace.add(s)
	}
	for _, to := range targets {
		next, nextTag := x.aliases.find(to)
		var err error
		switch {
		case next == nil && x.aliases.isClosed(to.Domain):
			err = unknown(fmt.Sprintf("%s, which line %d leads to", to, e.line))
		case next == nil || next == e:
			err = x.emit(leaf{to, v.owner})
		default:
			err = x.walk(to, next, visit{tag: nextTag, owner: v.owner}, depth+1)
		}
		if err != nil {
			return err
		}
	}
	x.visited[v] = done
	return nil
}

func (x *expansion) emit(l leaf) error {
	if i, isKnown := x.found[l.path]; isKnown {
		if l.owner.IsNull() {
			x.leaves[i].owner = l.owner // who gets it from the sender needs no list
		}
		return nil
	}
	if len(x.leaves) == x.aliases.files.MaxRecipients {
		return tooMany(fmt.Sprintf("%s and more, above %d", l.path, x.aliases.files.MaxRecipients))
	}
	x.found[l.path] = len(x.leaves)
	x.leaves = append(x.leaves, l)
	return nil
}
