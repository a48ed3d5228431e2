package dkim

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/cmd/internal/config"
	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
	"postroad/signer/vault"
)

// Lease is the name of the lease of the one signer that looks after the keys, for queue.Lead.
const Lease = "rotation"

// Topic is that of the notices that keys of a domain have changed; their name is the domain.
const Topic = "dkim"

// Queue is what a Keeper needs of the queue; *queue.Queue is one.
type Queue interface {
	// List yields the jobs that match.
	List(ctx context.Context, sel queue.Selection, limit int) iter.Seq2[queue.Entry, error]
	// Retry makes jobs ready that wait, and returns how many.
	Retry(ctx context.Context, sel queue.Selection) (int, error)
	// Notify tells all processes that something changed.
	Notify(ctx context.Context, topic, name string) error
}

// KeeperOptions say what a Keeper works on.
type KeeperOptions struct {
	Config     *config.Config // checked; required
	Store      keyring.Store  // required
	Queue      Queue          // required
	OwnDomain  string         // the domain that this relay speaks for
	By         string         // name of this process, for the history of keys
	Logger     *slog.Logger   // default: discards
	Registerer prometheus.Registerer
	// Publication is what the DNS says. Default: the resolvers of the configuration.
	Publication rotation.Publication
}

// NewKeeper makes a Keeper by the configuration: with signer.rotation.automatic it moves keys, without it looks at their records. It
// returns nil when there is nothing to do at all.
func NewKeeper(o KeeperOptions) (*rotation.Keeper, error) {
	r := &o.Config.Signer.Rotation
	if !r.Automatic && r.CheckEvery == 0 {
		return nil, nil
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Publication == nil {
		dns, err := NewDNS(o.Config, nil)
		if err != nil {
			return nil, err
		}
		o.Publication = dns
	}
	waiting := newRetries(&o)
	counts := newCounted(func(ctx context.Context) iter.Seq2[queue.Entry, error] {
		return o.Queue.List(ctx, queue.Selection{SignedBy: AnyKey}, 0)
	})
	ko := rotation.KeeperOptions{
		Store:       o.Store,
		Publication: o.Publication,
		Policy:      PolicyOf(o.Config),
		CheckEvery:  r.CheckEvery,
		InForce:     func(_ context.Context, domain string) { waiting.add(domain) },
		Beside: func(ctx context.Context) {
			var wg sync.WaitGroup
			wg.Go(func() { counts.run(ctx) })
			wg.Go(func() { waiting.run(ctx) })
			wg.Wait()
		},
		Advise:     advise,
		Logger:     o.Logger,
		Registerer: o.Registerer,
	}
	if r.Automatic {
		var err error
		ko.Rotator, err = newRotator(Options{
			Config: o.Config,
			Store:  o.Store,
			Sent:   counts,
			By:     "signer " + o.By,
			Changed: func(ctx context.Context, domain string) {
				if err := o.Queue.Notify(ctx, Topic, domain); err != nil {
					o.Logger.Debug("others were not told of a change of keys, they see it within half a minute", "domain", domain, "err", err)
				}
			},
			Logger: o.Logger,
		}, o.Publication)
		if err != nil {
			return nil, err
		}
	}
	return rotation.NewKeeper(ko)
}

// AnyKey in the SignedBy of a selection stands for the signature of any key.
const AnyKey = "*"

// AuthorsOf are the authors whose mail may wait for keys of a domain: that domain, and those below it, for which it may sign; "" is everybody, whose
// mail may wait for the signature of our own domain.
func AuthorsOf(domain, own string) []string {
	if domain == own {
		return []string{""}
	}
	return []string{domain, "." + domain}
}

// advise knows what to do about errors of the store.
func advise(err error) string {
	switch {
	case errors.Is(err, vault.ErrDenied):
		return "signers may not change keys in Vault: deploy/vault/setup.sh -r lets them; or set signer.rotation.automatic: false"
	case errors.Is(err, vault.ErrUnavailable):
		return "see what is said of secrets; it goes on by itself"
	}
	return "put right what it names; postroad dkim list shows which keys there are"
}
