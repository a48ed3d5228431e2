package dkim

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postroad/queue"
)

const (
	// gatherFor is how long domains gather whose mail need not wait any more: one look through the queue does for all.
	gatherFor = 3 * time.Second
	// fewDomains is up to how many domains the queue is asked for each of them: each is two looks through it, and a look that also sorts out
	// whose mail there is costs one more.
	fewDomains = 1
	// retryLimit bounds one round.
	retryLimit = time.Hour
)

// retries lets mail that waits for keys of domains wait no longer, one round at a time.
type retries struct {
	o    *KeeperOptions
	wake chan struct{} // full when there are domains

	mu      sync.Mutex
	domains map[string]bool
}

func newRetries(o *KeeperOptions) *retries {
	return &retries{o: o, wake: make(chan struct{}, 1), domains: make(map[string]bool)}
}

// add has mail of a domain retried soon. It does not wait.
func (r *retries) add(domain string) {
	r.mu.Lock()
	r.domains[domain] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run retries until ctx ends.
func (r *retries) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		timer := time.NewTimer(gatherFor)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		r.mu.Lock()
		domains := r.domains
		r.domains = make(map[string]bool)
		r.mu.Unlock()
		if len(domains) > 0 {
			r.round(ctx, domains)
		}
	}
}

// round retries what waits for keys of these domains.
func (r *retries) round(ctx context.Context, domains map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, retryLimit)
	defer cancel()
	total := 0
	selections, err := r.selections(ctx, domains)
	for _, sel := range selections {
		n, failed := r.o.Queue.Retry(ctx, sel)
		total += n
		if failed != nil {
			err = failed
			break
		}
	}
	names := slices.Sorted(maps.Keys(domains))
	names = names[:min(len(names), 10)]
	if err != nil && ctx.Err() == nil {
		r.o.Logger.Warn("mail that waits for keys is not retried at once, it comes within five minutes by itself", "domains", len(domains), "first", names, "err", err)
	}
	if total > 0 {
		r.o.Logger.Info("mail that waited for keys is retried", "domains", len(domains), "first", names, "jobs", total)
	}
}

// selections are what is to be retried. Of many domains the queue is gone through once, for the mails that wait: a retry of one mail costs no
// look through the whole, and when most of all that waits is meant, one more look takes everything. What an error leaves comes by itself.
func (r *retries) selections(ctx context.Context, domains map[string]bool) ([]queue.Selection, error) {
	var list []queue.Selection
	if domains[r.o.OwnDomain] {
		return append(list, queue.Selection{Unsigned: true}), nil
	}
	if len(domains) <= fewDomains {
		for domain := range domains {
			for _, author := range AuthorsOf(domain, r.o.OwnDomain) {
				list = append(list, queue.Selection{Author: author, Unsigned: true})
			}
		}
		return list, nil
	}
	seen, others := make(map[queue.MessageID]bool), 0
	for e, err := range r.o.Queue.List(ctx, queue.Selection{Unsigned: true}, 0) {
		if err != nil {
			return list, err
		}
		switch {
		case e.Place != queue.PlaceLater || seen[e.Job.ID]:
		case !isBelow(e.Job.HeaderFrom, domains):
			others++
		case len(seen) < maxWaiting:
			seen[e.Job.ID] = true
			list = append(list, queue.Selection{ID: e.Job.ID, Unsigned: true})
		}
	}
	if len(list) > manyMails && len(list) > others {
		return []queue.Selection{{Unsigned: true}}, nil
	}
	return list, nil
}

const (
	// maxWaiting bounds the mails that one round retries by their ids.
	maxWaiting = 200_000
	// manyMails are dearer by their ids than a look through the queue.
	manyMails = 100
)

// isBelow reports that an author's domain is one of these, or below one.
func isBelow(author string, domains map[string]bool) bool {
	for name := strings.ToLower(author); name != ""; {
		if domains[name] {
			return true
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return false
}
