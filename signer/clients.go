package signer

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// What ingress puts into the envelope: an account has its name as the client; a
// client that is trusted for its address has that network, written net:10.0.0.0/8,
// and the class network.
const (
	networkPrefix = "net:"
	networkClass  = "network"
	defaultClass  = "default" // of accounts without a class
	classPrefix   = "class:"
	nameRunes     = "abcdefghijklmnopqrstuvwxyz0123456789.-_+@"
	classRunes    = "abcdefghijklmnopqrstuvwxyz0123456789-_"
)

// clients is a set of clients. The zero value holds nobody.
type clients struct {
	anybody  bool
	names    map[string]bool
	classes  map[string]bool
	networks []netip.Prefix
}

// CheckClient tells whether a word names clients: an account (web1), all
// accounts of a class (class:host; class:default are those without one; class:network
// is every trusted network), or one trusted network with what lies in it
// (10.0.0.0/8, or net:10.0.0.0/8 as the log has it).
func CheckClient(word string) error {
	_, err := parseClients([]string{word})
	return err
}

// Network is the network that a word of Clients names, or not valid.
func Network(word string) netip.Prefix {
	c, err := parseClients([]string{word})
	if err != nil || len(c.networks) == 0 {
		return netip.Prefix{}
	}
	return c.networks[0]
}

func parseClients(words []string) (clients, error) {
	c := clients{anybody: len(words) == 0, names: make(map[string]bool), classes: make(map[string]bool)}
	var wrong []error
	for _, word := range words {
		if err := c.add(word); err != nil {
			wrong = append(wrong, err)
		}
	}
	return c, errors.Join(wrong...)
}

func (c *clients) add(word string) error {
	lower := strings.ToLower(word)
	network, isNetwork := strings.CutPrefix(lower, networkPrefix)
	prefix, err := netip.ParsePrefix(network)
	if addr, addrErr := netip.ParseAddr(network); addrErr == nil && addr.Zone() == "" {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err == nil && prefix != prefix.Masked():
		return fmt.Errorf("client %.300q has bits behind its mask: want %s", word, prefix.Masked())
	case err == nil:
		c.networks = append(c.networks, plainNetwork(prefix))
		return nil
	case isNetwork, strings.Contains(lower, "/"):
		return fmt.Errorf("client %.300q is no network: want an address with a mask, such as 10.0.0.0/8", word)
	}
	if class, is := strings.CutPrefix(lower, classPrefix); is {
		if class == "" || strings.Trim(class, classRunes) != "" {
			return fmt.Errorf("client %.300q is no class: want class: and a word of letters, digits, - and _", word)
		}
		c.classes[class] = true
		return nil
	}
	switch {
	case lower == networkClass:
		return fmt.Errorf("client %q: want class:network for all trusted networks", word)
	case lower == "" || strings.Trim(lower, nameRunes) != "":
		return fmt.Errorf("client %.300q is none of an account, class:NAME and a network", word)
	}
	c.names[lower] = true
	return nil
}

// have tells whether a client of a class is in the set. A mail without a client
// came past ingress: it is nobody's.
func (c *clients) have(client, class string) bool {
	if c.anybody {
		return true
	}
	if client == "" {
		return false
	}
	if class == "" {
		class = defaultClass
	}
	if c.classes[class] {
		return true
	}
	network, isNetwork := strings.CutPrefix(client, networkPrefix)
	if !isNetwork {
		return c.names[strings.ToLower(client)]
	}
	from, err := netip.ParsePrefix(network)
	if err != nil || class != networkClass {
		return false
	}
	from = plainNetwork(from)
	for _, n := range c.networks {
		if n.Bits() <= from.Bits() && n.Contains(from.Addr()) {
			return true
		}
	}
	return false
}

// plainNetwork is a network as ingress names it: one of IPv4 addresses mapped into IPv6
// is plain IPv4.
func plainNetwork(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// calling names a client for people.
func calling(client string) string {
	if client == "" {
		return "a client without a name"
	}
	return client
}
