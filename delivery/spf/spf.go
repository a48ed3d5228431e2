// Package spf asks what the SPF record of a domain says of an address (RFC 7208): may it send mail for that domain?
//
// It is for our own domains: an operator wants to know before receivers do. It is no filter for mail that comes in.
//
//	result, err := spf.Check(ctx, resolver, addr, "example.com")
//	if result != spf.Pass { receivers will not like it }
package spf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"postroad/delivery/mx"
	"postroad/queue/address"
)

// Result is what the record says (RFC 7208 §2.6).
type Result string

// The results. TempError and PermError come with an error that says why.
const (
	None      Result = "none" // there is no record
	Neutral   Result = "neutral"
	Pass      Result = "pass"
	Fail      Result = "fail"
	SoftFail  Result = "softfail"
	TempError Result = "temperror" // the name service failed
	PermError Result = "permerror" // the record is wrong
)

// Resolver looks names up; *mx.DNS is one.
type Resolver interface {
	mx.Resolver
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupAddr(ctx context.Context, addr netip.Addr) ([]string, error)
}

var _ Resolver = (*mx.DNS)(nil)

const (
	maxLookups = 10 // mechanisms that ask the name service (RFC 7208 §4.6.4)
	maxVoid    = 2  // of their look-ups that may find nothing
	maxNames   = 10 // of one mx or ptr
)

// Causes of PermError; match them with errors.Is.
var (
	ErrLookups = errors.New("more than 10 mechanisms ask the name service, or more than 2 find nothing: receivers stop there")
	ErrSyntax  = errors.New("not understood")
	ErrRecords = errors.New("there are several records")
	ErrInclude = errors.New("it includes a domain without a record")
)

// Check evaluates the record of a domain for mail from postmaster there. The error says more about TempError and PermError.
func Check(ctx context.Context, r Resolver, addr netip.Addr, domain string) (Result, error) {
	c := &check{r: r, addr: addr.Unmap(), sender: "postmaster@" + domain}
	result, err := c.domain(ctx, domain)
	switch {
	case err == nil:
		return result, nil
	case errors.Is(err, ErrLookups), errors.Is(err, ErrSyntax), errors.Is(err, ErrRecords), errors.Is(err, ErrInclude):
		return PermError, err
	}
	return TempError, err
}

// check is one evaluation with what it has used up.
type check struct {
	r       Resolver
	addr    netip.Addr
	sender  string
	lookups int
	void    int
}

// domain evaluates the record of one domain.
func (c *check) domain(ctx context.Context, domain string) (Result, error) {
	record, err := c.record(ctx, domain)
	if err != nil || record == "" {
		return None, err
	}
	redirect := ""
	for _, term := range strings.Fields(record)[1:] {
		if name, value, isModifier := strings.Cut(term, "="); isModifier && isName(name) {
			if strings.EqualFold(name, "redirect") {
				redirect = value
			}
			continue // exp and what is not known says nothing of the result
		}
		result, mechanism := qualifier(term)
		matches, err := c.mechanism(ctx, domain, mechanism)
		if err != nil {
			return "", fmt.Errorf("record of %s: %w", domain, err)
		}
		if matches {
			return result, nil
		}
	}
	if redirect == "" {
		return Neutral, nil
	}
	target, err := c.target(domain, redirect)
	if err == nil {
		err = c.spend()
	}
	if err != nil {
		return "", fmt.Errorf("record of %s: %w", domain, err)
	}
	result, err := c.domain(ctx, target)
	if err == nil && result == None {
		return "", fmt.Errorf("record of %s, redirect to %s: %w", domain, target, ErrInclude)
	}
	return result, err
}

// record finds the one record of a domain; empty: there is none.
func (c *check) record(ctx context.Context, domain string) (string, error) {
	texts, err := c.r.LookupTXT(ctx, domain)
	if err != nil && !errors.Is(err, mx.ErrNoName) {
		return "", err
	}
	found := ""
	for _, text := range texts {
		if version, _, _ := strings.Cut(text, " "); !strings.EqualFold(version, "v=spf1") {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("record of %s: %w", domain, ErrRecords)
		}
		found = text
	}
	return found, nil
}

// qualifier cuts what a match means off a mechanism.
func qualifier(term string) (Result, string) {
	if result, ok := map[byte]Result{'+': Pass, '-': Fail, '~': SoftFail, '?': Neutral}[term[0]]; ok {
		return result, term[1:]
	}
	return Pass, term
}

// mechanism reports whether the address matches.
func (c *check) mechanism(ctx context.Context, domain, text string) (bool, error) {
	end := strings.IndexAny(text, ":/")
	name, rest := text, ""
	if end >= 0 {
		name, rest = text[:end], text[end:]
	}
	name = strings.ToLower(name)
	switch name {
	case "all":
		return rest == "", syntax(rest == "", text)
	case "ip4", "ip6":
		return c.network(name, rest, text)
	case "include", "a", "mx", "exists", "ptr":
	default:
		return false, syntax(false, text)
	}
	if err := c.spend(); err != nil {
		return false, err
	}
	spec, bits4, bits6, err := cidr(rest, text)
	if err != nil {
		return false, err
	}
	target := domain
	if value, has := strings.CutPrefix(spec, ":"); has {
		if target, err = c.target(domain, value); err != nil {
			return false, err
		}
	} else if spec != "" || name == "include" || name == "exists" {
		return false, syntax(false, text)
	}
	switch name {
	case "include":
		return c.include(ctx, target)
	case "exists":
		return c.exists(ctx, target)
	case "ptr":
		return c.ptr(ctx, target)
	case "mx":
		return c.mx(ctx, target, bits4, bits6)
	}
	return c.host(ctx, target, bits4, bits6)
}

// spend counts a mechanism that asks the name service.
func (c *check) spend() error {
	if c.lookups++; c.lookups > maxLookups {
		return ErrLookups
	}
	return nil
}

// found counts an answer that holds nothing.
func (c *check) found(n int, err error) error {
	if err != nil && !errors.Is(err, mx.ErrNoName) {
		return err
	}
	if n == 0 {
		if c.void++; c.void > maxVoid {
			return ErrLookups
		}
	}
	return nil
}

func (c *check) network(name, rest, text string) (bool, error) {
	value := strings.TrimPrefix(rest, ":")
	p, err := netip.ParsePrefix(value)
	if err != nil {
		addr, addrErr := netip.ParseAddr(value)
		if addrErr != nil {
			return false, syntax(false, text)
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4() != (name == "ip4") || !strings.HasPrefix(rest, ":") {
		return false, syntax(false, text)
	}
	return p.Masked().Contains(c.addr), nil
}

func (c *check) include(ctx context.Context, target string) (bool, error) {
	result, err := c.domain(ctx, target)
	if err == nil && result == None {
		err = fmt.Errorf("include of %s: %w", target, ErrInclude)
	}
	return result == Pass, err
}

func (c *check) exists(ctx context.Context, target string) (bool, error) {
	answer, err := c.r.LookupHost(ctx, target)
	isThere := slices.ContainsFunc(answer.Addrs, func(a mx.Address) bool { return a.Is4() })
	return isThere, c.found(len(answer.Addrs), err)
}

func (c *check) host(ctx context.Context, target string, bits4, bits6 int) (bool, error) {
	answer, err := c.r.LookupHost(ctx, target)
	return c.matches(answer, bits4, bits6), c.found(len(answer.Addrs), err)
}

func (c *check) mx(ctx context.Context, target string, bits4, bits6 int) (bool, error) {
	answer, err := c.r.LookupMX(ctx, target)
	if err := c.found(len(answer.Records), err); err != nil {
		return false, err
	}
	if len(answer.Records) > maxNames {
		return false, ErrLookups
	}
	for _, m := range answer.Records {
		hosts, err := c.r.LookupHost(ctx, m.Host)
		if err := c.found(len(hosts.Addrs), err); err != nil {
			return false, err
		}
		if c.matches(hosts, bits4, bits6) {
			return true, nil
		}
	}
	return false, nil
}

// ptr is what nobody should use (RFC 7208 §5.5).
func (c *check) ptr(ctx context.Context, target string) (bool, error) {
	names, err := c.r.LookupAddr(ctx, c.addr)
	if err := c.found(len(names), err); err != nil {
		return false, err
	}
	for _, name := range names[:min(len(names), maxNames)] {
		if name != target && !strings.HasSuffix(name, "."+target) {
			continue
		}
		hosts, err := c.r.LookupHost(ctx, name)
		if err == nil && c.matches(hosts, 32, 128) {
			return true, nil
		}
	}
	return false, nil
}

func (c *check) matches(answer mx.HostAnswer, bits4, bits6 int) bool {
	return slices.ContainsFunc(answer.Addrs, func(a mx.Address) bool {
		bits := bits6
		if a.Is4() {
			bits = bits4
		}
		p, err := a.Prefix(bits)
		return err == nil && p.Contains(c.addr)
	})
}

// cidr cuts /24 or /24//64 off a domain-spec.
func cidr(rest, text string) (spec string, bits4, bits6 int, err error) {
	spec, bits4, bits6 = rest, 32, 128
	slash := strings.IndexByte(rest, '/')
	if slash < 0 || strings.ContainsRune(rest[slash:], '}') { // a delimiter in a macro
		return spec, bits4, bits6, nil
	}
	spec = rest[:slash]
	four, six, hasSix := strings.Cut(rest[slash:], "//")
	if four != "" {
		if bits4, err = strconv.Atoi(strings.TrimPrefix(four, "/")); err != nil || bits4 < 0 || bits4 > 32 {
			return "", 0, 0, syntax(false, text)
		}
	}
	if hasSix {
		if bits6, err = strconv.Atoi(six); err != nil || bits6 < 0 || bits6 > 128 {
			return "", 0, 0, syntax(false, text)
		}
	}
	return spec, bits4, bits6, nil
}

// target is the domain that a domain-spec means.
func (c *check) target(domain, spec string) (string, error) {
	text, err := c.expand(domain, spec)
	if err != nil {
		return "", err
	}
	text = strings.ToLower(strings.TrimSuffix(text, "."))
	if strings.HasPrefix(text, "_") || strings.Contains(text, "._") {
		return text, nil // names like these hold records and are no hosts
	}
	name, err := address.Normalize(text)
	if err != nil || address.IsLiteral(name) {
		return "", syntax(false, spec)
	}
	return name, nil
}

func syntax(isGood bool, text string) error {
	if isGood {
		return nil
	}
	return fmt.Errorf("%.100q: %w", text, ErrSyntax)
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}
