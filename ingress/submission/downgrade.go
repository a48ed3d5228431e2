package submission

import (
	"postroad/queue/address"
)

// downgrade writes a field that holds octets outside of ASCII so that it holds
// none. The error is a cause alone.
func (f *folder) downgrade(fl field, s syntax) error {
	value := fl.value()
	f.begin(fl.raw[:fl.colon+1], value)
	var err error
	switch s {
	case unstructured:
		f.unstructured(value)
	case structured:
		err = f.tokens(value, lex(nil, value))
	case addresses:
		err = f.addresses(value)
	case phrases:
		err = f.phrases(value)
	case parameters:
		err = f.parameters(value)
	default:
		err = Err8Bit
	}
	f.finish()
	return err
}

// unstructured writes any text (RFC 2047 §5, rule 1).
func (f *folder) unstructured(value []byte) {
	var list []word
	i := 0
	for {
		gap := i
		for i < len(value) && isSpace(value[i]) {
			i++
		}
		start := i
		for i < len(value) && !isSpace(value[i]) {
			i++
		}
		if start == i {
			f.words(list)
			f.end(value[gap:])
			return
		}
		list = append(list, newWord(value[gap:start], value[start:i]))
	}
}

// end writes blanks at the end of a value, where nothing may be broken.
func (f *folder) end(b []byte) {
	f.settle()
	f.text(b)
}

// addresses writes an address list.
func (f *folder) addresses(value []byte) error {
	p := parser{src: value, tokens: lex(nil, value)}
	if !p.list() {
		return Err8Bit
	}
	for i, last, ok := nextMailbox(p.tokens, 0); ok; i, last, ok = nextMailbox(p.tokens, last+1) {
		local, domain := p.tokens[i], p.tokens[last]
		if !isASCII(local.of(value)) {
			return ErrNeedsUTF8
		}
		if isASCII(domain.of(value)) {
			continue
		}
		if _, err := address.New(string(local.says(value)), string(domain.of(value))); err != nil {
			return ErrNeedsUTF8
		}
	}
	return f.tokens(value, p.tokens)
}

// phrases writes a list of phrases (RFC 5322 §3.6.5).
func (f *folder) phrases(value []byte) error {
	tokens := lex(nil, value)
	for i := range tokens {
		if k := tokens[i].kind; k == atom || k == quoted {
			tokens[i].role = rolePhrase
		}
	}
	return f.tokens(value, tokens)
}

// tokens writes a structured value by the roles that its tokens have.
func (f *folder) tokens(src []byte, tokens []token) error {
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		raw := t.of(src)
		switch {
		case t.role == rolePhrase:
			end := phraseEnd(tokens, i)
			f.phrase(src, tokens[i:end], end < len(tokens) && tokens[end].kind != blank)
			i = end - 1
		case t.kind == blank && i == len(tokens)-1:
			f.end(raw)
		case t.kind == blank:
			f.blank(raw)
		case t.kind == comment:
			f.breakable()
			f.comment(raw)
			f.breakable()
		case t.role == roleDomain && !isASCII(raw):
			domain, err := address.Normalize(string(raw))
			if err != nil {
				return ErrNeedsUTF8
			}
			f.text([]byte(domain))
		case !isASCII(raw):
			return Err8Bit
		case t.kind == special && raw[0] == '<':
			f.breakable()
			f.text(raw)
		case t.kind == special && (raw[0] == ',' || raw[0] == ';'):
			f.text(raw)
			if i < len(tokens)-1 {
				f.breakable()
			}
		default:
			f.text(raw)
		}
	}
	return nil
}

// phraseEnd finds the end of a phrase that no comment divides.
func phraseEnd(tokens []token, i int) int {
	end := i + 1
	for i = end; i < len(tokens); i++ {
		switch {
		case tokens[i].role == rolePhrase:
			end = i + 1
		case tokens[i].kind != blank:
			return end
		}
	}
	return end
}

// phrase writes a phrase (RFC 2047 §5, rule 3). Encoded words need a blank to
// what follows.
func (f *folder) phrase(src []byte, tokens []token, isFollowed bool) {
	isText := true
	for _, t := range tokens {
		isText = isText && isASCII(t.of(src))
	}
	if isText {
		for _, t := range tokens {
			if raw := t.of(src); t.kind == blank {
				f.blank(raw)
			} else {
				f.text(raw)
			}
		}
		return
	}
	var list []word
	var gap []byte
	for _, t := range tokens {
		raw := t.of(src)
		var w word
		switch t.kind {
		case blank:
			gap = raw
			continue
		case quoted:
			w = word{gap: gap, raw: raw, text: t.says(src)}
			if !isASCII(raw) {
				w.form = toWord
			}
		case literal:
			w = word{gap: gap, raw: raw, text: unfold(raw), form: toWord}
		default:
			w = newWord(gap, raw)
		}
		list = append(list, w)
		gap = nil
	}
	f.words(list)
	if isFollowed && list[len(list)-1].form == toWord {
		f.blank([]byte(" "))
	}
}

// comment writes a comment (RFC 2047 §5, rule 2).
func (f *folder) comment(raw []byte) {
	if isASCII(raw) {
		f.text(raw)
		return
	}
	var list []word
	for i := 0; i < len(raw); {
		gap := i
		for i < len(raw) && isSpace(raw[i]) {
			i++
		}
		start := i
		for i < len(raw) && !isSpace(raw[i]) && raw[i] != '(' && raw[i] != ')' {
			if raw[i] == '\\' && raw[i+1] != '\r' && raw[i+1] != '\n' {
				i++ // there is always more: the comment is closed
			}
			i++
		}
		if i > start {
			w := newWord(raw[gap:start], raw[start:i])
			w.text = unquote(w.raw)
			list = append(list, w)
			continue
		}
		f.words(list)
		list = list[:0]
		f.blank(raw[gap:start])
		if i < len(raw) {
			f.text(raw[i : i+1])
			i++
		}
	}
	f.words(list)
}
