package spf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// expand replaces macros (RFC 7208 §7): %{i}, %{d2}, %{ir}, %{l.-} and their like.
func (c *check) expand(domain, spec string) (string, error) {
	var b strings.Builder
	for rest := spec; rest != ""; {
		before, after, found := strings.Cut(rest, "%")
		b.WriteString(before)
		if !found {
			break
		}
		switch {
		case strings.HasPrefix(after, "%"):
			b.WriteByte('%')
			rest = after[1:]
		case strings.HasPrefix(after, "_"):
			b.WriteByte(' ')
			rest = after[1:]
		case strings.HasPrefix(after, "-"):
			b.WriteString("%20")
			rest = after[1:]
		default:
			macro, tail, isClosed := strings.Cut(strings.TrimPrefix(after, "{"), "}")
			if !isClosed || macro == "" || after[0] != '{' {
				return "", syntax(false, spec)
			}
			value, err := c.macro(domain, macro)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
			rest = tail
		}
		if b.Len() > 1000 {
			return "", syntax(false, spec)
		}
	}
	return b.String(), nil
}

// macro is the value of one, with its transformers.
func (c *check) macro(domain, text string) (string, error) {
	value, err := c.letter(domain, text)
	if err != nil {
		return "", err
	}
	digits := text[1:]
	digits = digits[:len(digits)-len(strings.TrimLeft(digits, "0123456789"))]
	rest := text[1+len(digits):]
	isReverse := rest != "" && (rest[0] == 'r' || rest[0] == 'R')
	if isReverse {
		rest = rest[1:]
	}
	if strings.Trim(rest, ".-+,/_=") != "" {
		return "", syntax(false, text)
	}
	if rest == "" {
		rest = "."
	}
	parts := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(rest, r) })
	if isReverse {
		slices.Reverse(parts)
	}
	if digits != "" {
		n, err := strconv.Atoi(digits)
		if err != nil || n == 0 {
			return "", syntax(false, text)
		}
		parts = parts[max(0, len(parts)-n):]
	}
	return strings.Join(parts, "."), nil
}

func (c *check) letter(domain, text string) (string, error) {
	local, own, _ := strings.Cut(c.sender, "@")
	switch text[0] | 0x20 {
	case 's':
		return c.sender, nil
	case 'l':
		return local, nil
	case 'o', 'h': // we say no other name than a domain's
		return own, nil
	case 'd':
		return domain, nil
	case 'v':
		if c.addr.Is4() {
			return "in-addr", nil
		}
		return "ip6", nil
	case 'i':
		if c.addr.Is4() {
			return c.addr.String(), nil
		}
		var nibbles []string
		for _, b := range c.addr.As16() {
			nibbles = append(nibbles, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
		}
		return strings.Join(nibbles, "."), nil
	}
	return "", syntax(false, text)
}
