package config

import (
	"strconv"
	"strings"

	"postroad/delivery/bounceclass"
	"postroad/queue/address"
)

// BounceClass is a rule that says why a host refused.
type BounceClass struct {
	// Class is the word for it: one of those of docs/delivery.md, or another of a-z and _.
	Class string `yaml:"class"`

	// Code is the reply code: 550, 5xx, several with commas, or local for what this relay says itself. Empty is any.
	Code string `yaml:"code"`

	// Enhanced is the enhanced status code: 5.1.1, *.1.*, several with commas. Empty is any.
	Enhanced string `yaml:"enhanced"`

	// Text is a regular expression (RE2) on the text in lower case, without status codes and line breaks. Empty is any.
	Text string `yaml:"text"`
}

// BounceMailbox is a mailbox of bounce_domain.
type BounceMailbox struct {
	// Name is its local part.
	Name string `yaml:"name"`

	// To is the address that its mail goes on to.
	To string `yaml:"to"`
}

// DoubleBounceDiscard leaves nobody to be told.
const DoubleBounceDiscard = "discard"

// DoubleBounceAddress is who gets what has no sender to be told; the null Path: nobody.
func (d *Delivery) DoubleBounceAddress() address.Path {
	if d.DoubleBounce == DoubleBounceDiscard {
		return address.Path{}
	}
	p, _ := address.Parse(d.DoubleBounce) // checked before
	return p
}

// BounceRules are bounce_classes for package bounceclass.
func (d *Delivery) BounceRules() []bounceclass.Rule {
	rules := make([]bounceclass.Rule, len(d.BounceClasses))
	for i, r := range d.BounceClasses {
		rules[i] = bounceclass.Rule{Class: r.Class, Code: r.Code, Enhanced: r.Enhanced, Text: r.Text}
	}
	return rules
}

// WantsVERP tells whether mail of clients of a class has a reverse-path of our own.
func (in *Ingress) WantsVERP(class string) bool {
	for _, name := range []string{class, ClassDefault} {
		for _, c := range in.Classes {
			if c.Name == name {
				return c.VERP
			}
		}
	}
	return false
}

// BounceAddresses are the mailboxes of bounce_domain: local parts in lower case, and where their mail goes.
func (d *Delivery) BounceAddresses() map[string]address.Path {
	m := make(map[string]address.Path)
	for _, b := range d.BounceMailboxes {
		m[strings.ToLower(b.Name)], _ = address.Parse(b.To) // checked before
	}
	return m
}

// checkBounceDomain finds what needs it, and what is wrong with it.
func (c *Config) checkBounceDomain(f *faults) {
	d := &c.Delivery
	need := func(setting string, isUsed bool) {
		if isUsed && d.BounceDomain == "" {
			f.add(setting, "needs delivery.bounce_domain, a domain for addresses that bounces come back to")
		}
	}
	for i, l := range c.Ingress.Listeners {
		setting := "ingress.listeners[" + strconv.Itoa(i) + "].bounces"
		need(setting, l.Bounces == BouncesAccept)
		if l.Bounces == BouncesAccept && l.Auth == AuthRequired {
			f.add(setting, "anybody may send bounces, and auth: required lets nobody in without a login: take another listener")
		}
	}
	for i, class := range c.Ingress.Classes {
		need("ingress.classes["+strconv.Itoa(i)+"].verp", class.VERP)
	}
	for i, r := range d.Routes {
		need("delivery.routes["+strconv.Itoa(i)+"].verp", r.VERP)
	}
	need("delivery.bounce_mailboxes", len(d.BounceMailboxes) > 0)
	need("delivery.bounce_feedback", len(d.BounceFeedback) > 0)
	if d.BounceDomain == "" {
		return
	}
	name, err := address.Normalize(d.BounceDomain)
	own, _ := address.Normalize(c.Domain)
	host, _ := address.Normalize(c.Hostname)
	switch {
	case err != nil || address.IsLiteral(name):
		f.add("delivery.bounce_domain", "%q is no domain name", d.BounceDomain)
	case name == own || name == host:
		f.add("delivery.bounce_domain", "%s is domain or hostname: nobody else could have an address there; take one of its own, such as bounces.%s", name, name)
	}
	for i, b := range d.BounceMailboxes {
		setting := "delivery.bounce_mailboxes[" + strconv.Itoa(i) + "]"
		if !isLocalPart(b.Name) {
			f.add(setting+".name", "%q is no local part such as postmaster", b.Name)
		}
		if p, err := address.Parse(b.To); err != nil || p.IsNull() || p.Domain == name {
			f.add(setting+".to", "%q is no address outside of delivery.bounce_domain", b.To)
		}
	}
	for i, local := range d.BounceFeedback {
		if !isLocalPart(local) {
			f.add("delivery.bounce_feedback["+strconv.Itoa(i)+"]", "%q is no local part such as fbl", local)
		}
	}
}

func isLocalPart(s string) bool {
	p, err := address.Parse(s + "@example.com")
	return err == nil && p.Local == s && s != ""
}

func (c *Config) checkBounces(f *faults) {
	c.checkBounceDomain(f)
	d := &c.Delivery
	if d.DoubleBounce != DoubleBounceDiscard {
		if p, err := address.Parse(d.DoubleBounce); err != nil || p.IsNull() {
			f.add("delivery.double_bounce", "%q is neither discard nor an address such as postmaster@example.com", d.DoubleBounce)
		}
	}
	isEachGood := true
	for i, r := range d.BounceRules() {
		if err := r.Check(); err != nil {
			f.add("delivery.bounce_classes["+strconv.Itoa(i)+"]", "%v", err)
			isEachGood = false
		}
	}
	if _, err := bounceclass.New(d.BounceRules()); err != nil && isEachGood {
		f.add("delivery.bounce_classes", "%v", err)
	}
}
