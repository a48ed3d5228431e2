package submission

// parser reads an address list (RFC 5322 §3.4, with the obsolete forms of
// §4.4, and groups also in From, as RFC 6854 allows). It gives tokens their
// roles.
type parser struct {
	src       []byte
	tokens    []token
	i         int
	mailboxes int
	isOdd     bool // a form that others are known to read differently
}

// list reads everything. False says that this is no address list.
func (p *parser) list() bool {
	for i := range p.tokens {
		if p.tokens[i].kind == junk {
			return false
		}
		p.isOdd = p.isOdd || p.tokens[i].isOdd
	}
	inGroup := false
	for {
		p.skip()
		switch p.special() {
		case 0:
			if p.i == len(p.tokens) {
				return !inGroup
			}
		case ',':
			p.i++
			continue
		case ';':
			if !inGroup {
				return false
			}
			inGroup = false
			p.i++
			if !p.isAtEnd(false) {
				return false
			}
			continue
		}
		isGroup, ok := p.element()
		if !ok || isGroup && inGroup {
			return false
		}
		inGroup = inGroup || isGroup
		if !isGroup && !p.isAtEnd(inGroup) {
			return false
		}
	}
}

// element reads a mailbox, or the name of a group with its colon.
func (p *parser) element() (isGroup, ok bool) {
	start := p.i
	words, last := 0, 0
	for ; p.i < len(p.tokens) && p.tokens[p.i].kind != special; p.i++ {
		switch p.tokens[p.i].kind {
		case literal:
			p.isOdd = true // no word, but names as [this] one are often seen
			words, last = words+1, p.i
		case atom, quoted:
			words, last = words+1, p.i
		}
	}
	switch p.special() {
	case ':':
		p.name(start)
		p.i++
		return true, words > 0
	case '<':
		p.name(start)
		return false, p.angle()
	}
	// A bare address, or a word alone that some later step may complete.
	if words != 1 || p.tokens[last].kind == literal {
		return false, false
	}
	p.local(last)
	if p.special() != '@' {
		return false, true
	}
	p.isOdd = p.isOdd || p.i != last+1
	return false, p.domain()
}

// name marks the words from start to here as a display name.
func (p *parser) name(start int) {
	for i := start; i < p.i; i++ {
		if k := p.tokens[i].kind; k == atom || k == quoted || k == literal {
			p.tokens[i].role = rolePhrase
		}
	}
}

// angle reads an address in angle brackets.
func (p *parser) angle() bool {
	p.i++
	p.inner()
	if p.special() == '@' && !p.route() {
		return false
	}
	if p.i == len(p.tokens) {
		return false
	}
	local := p.i
	if k := p.tokens[local].kind; k != atom && k != quoted {
		return false
	}
	p.local(local)
	p.i++
	p.inner()
	if p.special() == '@' {
		p.isOdd = p.isOdd || p.i != local+1
		if !p.domain() {
			return false
		}
		p.inner()
	}
	if p.special() != '>' {
		return false
	}
	p.i++
	return true
}

// route steps over a source route (RFC 5322 §4.4).
func (p *parser) route() bool {
	p.isOdd = true
	for ; p.i < len(p.tokens); p.i++ {
		switch p.special() {
		case ':':
			p.i++
			p.inner()
			return true
		case 0, ',', '@':
		default:
			return false
		}
	}
	return false
}

// local marks a word as the begin of another address.
func (p *parser) local(i int) {
	p.tokens[i].role = roleLocal
	p.mailboxes++
}

// domain reads what follows an @.
func (p *parser) domain() bool {
	p.i++
	at := p.i
	p.skip()
	p.isOdd = p.isOdd || p.i != at
	if p.i == len(p.tokens) {
		return false
	}
	if k := p.tokens[p.i].kind; k != atom && k != literal {
		return false
	}
	p.tokens[p.i].role = roleDomain
	p.i++
	return true
}

// isAtEnd reports the end of an element.
func (p *parser) isAtEnd(inGroup bool) bool {
	p.skip()
	return p.i == len(p.tokens) || p.special() == ',' || inGroup && p.special() == ';'
}

// inner steps over blanks between angle brackets. Comments there are odd.
func (p *parser) inner() {
	start := p.i
	p.skip()
	for _, t := range p.tokens[start:p.i] {
		p.isOdd = p.isOdd || t.kind == comment
	}
}

// skip steps over blanks and comments.
func (p *parser) skip() {
	for p.i < len(p.tokens) && (p.tokens[p.i].kind == blank || p.tokens[p.i].kind == comment) {
		p.i++
	}
}

// special is the character that comes next, or 0 when that is none of <>@,;:
func (p *parser) special() byte {
	if p.i == len(p.tokens) || p.tokens[p.i].kind != special {
		return 0
	}
	return p.src[p.tokens[p.i].start]
}

// nextMailbox finds the next address in parsed tokens, from i on: its first and
// its last token, which are the same when it has no domain. ok is false behind
// the last address.
func nextMailbox(tokens []token, i int) (local, last int, ok bool) {
	for i < len(tokens) && tokens[i].role != roleLocal {
		i++
	}
	if i == len(tokens) {
		return 0, 0, false
	}
	local = i
	for i++; i < len(tokens); i++ {
		switch tokens[i].role {
		case roleDomain:
			return local, i, true
		case roleLocal, rolePhrase:
			return local, local, true
		}
	}
	return local, local, true
}

// hasAddress reports that an address is somewhere in tokens that are no list.
func hasAddress(src []byte, tokens []token) bool {
	for i := 1; i+1 < len(tokens); i++ {
		if src[tokens[i].start] != '@' || tokens[i].kind != special {
			continue
		}
		before, after := tokens[i-1].kind, tokens[i+1].kind
		if (before == atom || before == quoted) && (after == atom || after == literal) {
			return true
		}
	}
	return false
}
