package dkim

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/signer/rotation"
)

// Lister lists the queue of a running server; *ops.Client is one.
type Lister interface {
	// List yields the jobs that match.
	List(ctx context.Context, sel ops.Selection, limit int) iter.Seq2[queue.Entry, error]
}

// Count counts in the queue of a running server, at each question anew.
func Count(l Lister) rotation.Sent { return sent{l} }

type sent struct{ l Lister }

// Queued implements rotation.Sent.
func (s sent) Queued(ctx context.Context, domain, selector string) (int, error) {
	n := 0
	for _, err := range s.l.List(ctx, ops.Selection{SignedBy: rotation.Name(domain, selector)}, 0) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Tally counts queued jobs by their signatures.
type Tally map[string]int // by name of the record: selector._domainkey.domain

// maxTally bounds the keys that are told apart.
const maxTally = 200_000

// TallyOf goes through jobs that bear signatures, once.
func TallyOf(jobs iter.Seq2[queue.Entry, error]) (Tally, error) {
	t := make(Tally)
	for e, err := range jobs {
		if err != nil {
			return nil, err
		}
		seen := make(map[string]bool)
		for _, s := range fieldsOf(e.Job.Signatures) {
			name := strings.ToLower(rotation.Name(s.Domain, s.Selector))
			if !seen[name] {
				t[name]++
			}
			seen[name] = true
		}
		if len(t) > maxTally {
			return nil, fmt.Errorf("the queue bears signatures of more than %d keys", maxTally)
		}
	}
	return t, nil
}

const (
	// tallyAge is how long a count is used. A key is asked for long after its last signature, so that it does not matter.
	tallyAge = time.Minute
	// tallyLimit bounds one count.
	tallyLimit = time.Hour
)

// counted is a rotation.Sent that goes through the queue at most once a minute, however many keys are asked for. It counts while run runs;
// who asks may give up, and the count serves the next one.
type counted struct {
	jobs func(ctx context.Context) iter.Seq2[queue.Entry, error]
	asks chan chan<- outcome
}

// outcome is what came of a count.
type outcome struct {
	tally Tally
	err   error
}

func newCounted(jobs func(context.Context) iter.Seq2[queue.Entry, error]) *counted {
	return &counted{jobs: jobs, asks: make(chan chan<- outcome)}
}

// run counts for those who ask, until ctx ends.
func (c *counted) run(ctx context.Context) {
	var tally Tally
	var at time.Time // when it was complete
	for {
		select {
		case <-ctx.Done():
			return
		case reply := <-c.asks:
			var err error
			if tally == nil || time.Since(at) > tallyAge {
				bounded, cancel := context.WithTimeout(ctx, tallyLimit)
				tally, err = TallyOf(c.jobs(bounded))
				cancel()
				at = time.Now()
			}
			reply <- outcome{tally, err}
		}
	}
}

// Queued implements rotation.Sent.
func (c *counted) Queued(ctx context.Context, domain, selector string) (int, error) {
	reply := make(chan outcome, 1) // nobody may be there to take it
	select {
	case c.asks <- reply:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case o := <-reply:
		return o.tally[rotation.Name(domain, selector)], o.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
