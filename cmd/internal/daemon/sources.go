package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"postroad/delivery"
	"postroad/delivery/mx"
	"postroad/delivery/source"
)

// openSources fills in where outgoing connections come from, and what is known of our own names.
func (d *Daemon) openSources(o *delivery.Options) error {
	conf := d.c.Delivery.SourceOptions(d.hostname)
	conf.Spender, conf.Node, conf.Logger = d.queue, d.node(), o.Logger
	set, err := source.New(conf)
	if err != nil {
		return fmt.Errorf("delivery.sources: %w", err)
	}
	o.Sources = set
	d.watch(set.Conditions)
	o.OwnNames, o.OwnAddrs = d.c.Delivery.OwnNamesAndAddrs()
	o.AllowLiteral = d.c.Delivery.AllowLiterals
	return nil
}

// addrsOf reads addresses that were checked.
func addrsOf(list []string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range list {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// nullMXTimeout is how long a client's MAIL waits for the name service.
const nullMXTimeout = 2 * time.Second

// takesNoMail asks whether a domain has a null MX record. Trouble of the name service is no reason to refuse anybody.
func takesNoMail(names mx.Resolver) func(context.Context, string) bool {
	return func(ctx context.Context, domain string) bool {
		ctx, cancel := context.WithTimeout(ctx, nullMXTimeout)
		defer cancel()
		answer, err := names.LookupMX(ctx, domain)
		return err == nil && answer.IsNull()
	}
}
