package bounceclass

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// plain appends text in lower case, its words one blank apart, without the status codes that hosts repeat on each line of a reply.
func plain(dst []byte, text string) []byte {
	text = text[:min(len(text), maxText)]
	for word := range strings.FieldsSeq(text) {
		if isStatus(word) {
			continue
		}
		if len(dst) > 0 {
			dst = append(dst, ' ')
		}
		for i := range len(word) {
			c := word[i]
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			dst = append(dst, c)
		}
	}
	return dst
}

// isStatus reports 5.1.1, and 550-5.1.1 as it is in reports.
func isStatus(word string) bool {
	if len(word) > 4 && word[3] == '-' && word[0] >= '2' && word[0] <= '5' {
		word = word[4:]
	}
	if len(word) < 5 || word[1] != '.' || word[0] != '2' && word[0] != '4' && word[0] != '5' {
		return false
	}
	dots := 0
	for i := range len(word) {
		switch c := word[i]; {
		case c == '.':
			dots++
		case c < '0' || c > '9':
			return false
		}
	}
	return dots == 2
}

// Most of the rules fit most texts not at all, and a regular expression takes microseconds to find that out. What each of them needs is
// known beforehand: so a text is first reduced to the groups of three octets in it, and only rules whose words may be there are tried.

// trigrams are the groups of three octets in a text: a set that may say yes too often, never no.
type trigrams [32]uint64

func gram(a, b, c byte) uint16 {
	return uint16((uint32(a)<<16 | uint32(b)<<8 | uint32(c)) * 2654435761 >> 21) // 11 bits
}

func (t *trigrams) addAll(text []byte) {
	for i := range max(0, len(text)-2) {
		g := gram(text[i], text[i+1], text[i+2])
		t[g>>6] |= 1 << (g & 63)
	}
}

// literal is text that a regular expression needs, as three of its groups.
type literal [3]uint16

func literalOf(s string) literal {
	at := func(i int) uint16 { return gram(s[i], s[i+1], s[i+2]) }
	last := len(s) - 3
	return literal{at(last), at(last / 2), at(0)}
}

func (t *trigrams) mayHave(l *literal) bool {
	for _, g := range l {
		if t[g>>6&31]&(1<<(g&63)) == 0 {
			return false
		}
	}
	return true
}

func (t *trigrams) mayHaveAny(set []literal) bool {
	for i := range set {
		if t.mayHave(&set[i]) {
			return true
		}
	}
	return false
}

// setsFlags finds flags that hold for all that follows.
var setsFlags = regexp.MustCompile(`\(\?[a-zA-Z-]+\)`)

// phrase is one alternative of a rule's text.
type phrase struct {
	word  []byte         // it is nothing but this
	re    *regexp.Regexp // else
	needs [][]literal    // of each, one is in every text that fits
}

func compilePhrases(text string) ([]phrase, error) {
	if _, err := regexp.Compile(text); err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	var list []phrase
	patterns := alternatives(text)
	if slices.ContainsFunc(patterns, func(p string) bool { _, err := syntax.Parse(p, syntax.Perl); return err != nil }) || setsFlags.MatchString(text) {
		patterns = []string{text} // not what it looked like
	}
	for _, pattern := range patterns {
		p := phrase{}
		tree, err := syntax.Parse(pattern, syntax.Perl)
		if err != nil {
			return nil, fmt.Errorf("text: %w", err)
		}
		if p.re, err = regexp.Compile(pattern); err != nil {
			return nil, fmt.Errorf("text: %w", err)
		}
		if word, isAll := p.re.LiteralPrefix(); isAll && word != "" {
			p.word = []byte(word)
		}
		for _, set := range needed(tree) {
			var literals []literal
			for _, word := range set {
				literals = append(literals, literalOf(word))
			}
			p.needs = append(p.needs, literals)
		}
		list = append(list, p)
	}
	return list, nil
}

func (p *phrase) fits(text []byte, grams *trigrams) bool {
	for _, set := range p.needs {
		if !grams.mayHaveAny(set) {
			return false
		}
	}
	if p.word != nil {
		return bytes.Contains(text, p.word)
	}
	return p.re.Match(text)
}

// alternatives splits a regular expression at each | that is in no group, so that each of them can be tried by itself.
func alternatives(pattern string) []string {
	var list []string
	depth, start, isClass := 0, 0, false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case isClass:
			isClass = c != ']' || pattern[i-1] == '['
		case c == '[':
			isClass = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == '|' && depth == 0:
			list = append(list, pattern[start:i])
			start = i + 1
		}
	}
	return append(list, pattern[start:])
}

// needed finds sets of words: of each of them, one is in every text that fits.
func needed(re *syntax.Regexp) [][]string {
	switch re.Op {
	case syntax.OpLiteral:
		if s := string(re.Rune); len(s) >= 3 && re.Flags&syntax.FoldCase == 0 {
			return [][]string{{s}}
		}
	case syntax.OpCapture, syntax.OpPlus:
		return needed(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return needed(re.Sub[0])
		}
	case syntax.OpConcat:
		var all [][]string
		for _, sub := range re.Sub {
			all = append(all, needed(sub)...)
		}
		return all
	case syntax.OpAlternate:
		var words []string
		for _, sub := range re.Sub {
			sets := needed(sub)
			if len(sets) == 0 {
				return nil
			}
			words = append(words, slices.MinFunc(sets, rarer)...)
		}
		return [][]string{words}
	}
	return nil
}

// rarer prefers fewer and longer words.
func rarer(a, b []string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(len(strings.Join(b, "")), len(strings.Join(a, ""))))
}
