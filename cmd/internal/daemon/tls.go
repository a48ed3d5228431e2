package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"postroad/delivery"
	"postroad/delivery/mx"
	"postroad/delivery/tlspolicy"
	"postroad/delivery/tlsrpt"
	"postroad/delivery/web"
	"postroad/queue"
	"postroad/queue/address"
)

// setTLS fills in what is made of the TLS policies of recipients' domains, and opens the reports about it.
func (d *Daemon) setTLS(o *delivery.Options) error {
	c := d.c.Delivery.TLSPolicies
	policy := tlspolicy.Options{NoDANE: !c.DANE, NoSTS: !c.MTASTS, Store: policies{d.queue}}
	for _, domain := range c.Ignore {
		if name, err := address.Normalize(domain); err == nil { // checked before
			policy.Ignore = append(policy.Ignore, name)
		}
	}
	if names, is := o.Resolver.(tlspolicy.Names); is {
		policy.Names, policy.Lookup = names, lookupOf(o.Resolver)
		if d.c.Delivery.TLSReports.Enabled {
			if err := d.openReports(o, names); err != nil {
				return err
			}
		}
	}
	o.TLSPolicies = tlspolicy.New(policy)
	d.onStop(stageAnnounce, "tls policies", opsLimit, func(context.Context) error {
		o.TLSPolicies.Close()
		return nil
	})
	if dns, is := o.Resolver.(*mx.DNS); is && c.DANE && !dns.IsTrusted() {
		d.log.Info("DANE is not in use: the name servers are not on this machine, and not trusted")
	}
	return nil
}

// openReports counts sessions, and sends reports while no other process does.
func (d *Daemon) openReports(o *delivery.Options, names tlsrpt.Names) error {
	c := d.c.Delivery.TLSReports
	log := d.log.With("part", "tls reports")
	store := tallies{d.queue}
	book := tlsrpt.NewBook(tlsrpt.BookOptions{Store: store, Names: names, Logger: log})
	sender := tlsrpt.NewSender(tlsrpt.SenderOptions{
		Store: store, Names: names, Mail: d.queue.Originate, Logger: log,
		Web:    web.NewClient(web.Options{Lookup: lookupOf(o.Resolver), Dialable: mx.Dialable}),
		Domain: d.domain, Organization: cmp.Or(c.Organization, d.domain), Contact: cmp.Or(c.Contact, "postmaster@"+d.domain),
	})
	o.TLSReports = book
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	d.onStart(func() {
		wg.Go(func() { book.Run(ctx) })
		wg.Go(func() { d.queue.Lead(ctx, "tls-reports", sender.Run) })
	})
	d.onStop(stageAnnounce, "tls reports", opsLimit, func(context.Context) error {
		stop()
		wg.Wait() // bounded: see Book.Run and Lead
		return nil
	})
	return nil
}

// lookupOf finds the addresses of hosts with the resolver of delivery.
func lookupOf(r mx.Resolver) func(context.Context, string) ([]netip.Addr, error) {
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		answer, err := r.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		var addrs []netip.Addr
		for _, a := range answer.Addrs {
			addrs = append(addrs, a.Addr)
		}
		return addrs, nil
	}
}

// policies keeps MTA-STS policies in the queue.
type policies struct{ q *queue.Queue }

var _ tlspolicy.Store = policies{}

func (p policies) Get(ctx context.Context, domain string) ([]byte, error) {
	value, _, err := p.q.Recall(ctx, queue.KeptPolicies, domain)
	return value, err
}

func (p policies) Put(ctx context.Context, domain string, value []byte, ttl time.Duration) error {
	_, revision, err := p.q.Recall(ctx, queue.KeptPolicies, domain)
	if err != nil {
		return err
	}
	return p.q.Keep(ctx, queue.KeptPolicies, domain, value, revision, ttl)
}

// tallies keeps what is counted for reports.
type tallies struct{ q *queue.Queue }

var _ tlsrpt.Store = tallies{}

func (t tallies) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	return t.q.Recall(ctx, queue.KeptTallies, key)
}

func (t tallies) Put(ctx context.Context, key string, value []byte, revision uint64, ttl time.Duration) error {
	err := t.q.Keep(ctx, queue.KeptTallies, key, value, revision, ttl)
	if errors.Is(err, queue.ErrChanged) {
		return fmt.Errorf("%w: %w", tlsrpt.ErrChanged, err)
	}
	return err
}

func (t tallies) Keys(ctx context.Context) ([]string, error) { return t.q.Kept(ctx, queue.KeptTallies) }
