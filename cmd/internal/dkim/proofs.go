package dkim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postroad/cmd/internal/config"
	"postroad/signer/rotation"
)

const (
	// proofTTL keeps caches from showing a proof to whoever comes for the next one of the same name.
	proofTTL  = time.Second
	proofPoll = time.Second
	// removeLimit bounds the removal of a record, which is done also when the command is interrupted.
	removeLimit = time.Minute
)

// Proofs publishes records by which a name is proved to be ours, in the way in which those of keys are published.
type Proofs struct {
	dns       *DNS
	publisher rotation.Publisher
	wait      time.Duration
}

// NewProofs takes who publishes records from the configuration. Each record must be seen within wait.
func NewProofs(c *config.Config, wait time.Duration) (*Proofs, error) {
	r := c.Signer.Rotation
	r.UpdateTTL = proofTTL
	p := &Proofs{publisher: publisherOf(&r), wait: wait}
	if p.publisher == nil {
		return nil, errors.New("nobody publishes records in the DNS: set signer.rotation.hook, or update_server, update_zone and update_key")
	}
	var err error
	p.dns, err = NewDNS(c, nil)
	return p, err
}

// Place is where the record of a name has to be: there, or where its alias (CNAME) leads. It is an error if no name server answers.
func (p *Proofs) Place(ctx context.Context, name string) (string, error) {
	view, err := p.dns.client.Look(ctx, name)
	if err != nil {
		return "", err
	}
	place, answers := view.Name, 0
	var faults []string
	for i := range view.Answers {
		switch a := &view.Answers[i]; {
		case a.IsResolver():
		case a.Err != nil:
			faults = append(faults, a.Server+": "+a.Err.Error())
		default:
			answers++
			if n := len(a.CNAME); n > 0 {
				place = a.CNAME[n-1]
			}
		}
	}
	if answers == 0 {
		return "", fmt.Errorf("no name server of %s answers for it: %s", view.Zone, strings.Join(faults, "; "))
	}
	return place, nil
}

// Publish makes value the one TXT record of a name, and returns when all name servers of its zone show that; remove takes it away again, also
// when ctx has ended. After an error there is nothing to remove.
func (p *Proofs) Publish(ctx context.Context, name, value string) (remove func() error, err error) {
	place, err := p.Place(ctx, name)
	if err != nil {
		return nil, err
	}
	remove = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
		defer cancel()
		if err := p.publisher.Publish(ctx, rotation.Record{Op: rotation.OpDelete, Name: place}); err != nil {
			return fmt.Errorf("the TXT record of %s could not be removed: %w: remove it by hand", place, err)
		}
		return nil
	}
	if err := p.publisher.Publish(ctx, rotation.Record{Op: rotation.OpAdd, Name: place, Value: value}); err != nil {
		_ = remove() // it may have happened, all the same
		return nil, fmt.Errorf("%w (see signer.rotation; if the record is in another zone, make it an alias, CNAME, of a name in this one)", err)
	}
	if err := p.await(ctx, name, value); err != nil {
		return nil, errors.Join(err, remove())
	}
	return remove, nil
}

func (p *Proofs) await(ctx context.Context, name, value string) error {
	patience, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	var last []string
	for {
		view, err := p.dns.client.Look(patience, name)
		verdict := view.Judge(func(record string) bool { return record == value })
		if err == nil && len(verdict.Faults) == 0 {
			return nil
		}
		if patience.Err() == nil || last == nil {
			last = nil
			for _, fault := range append(verdict.Faults, err) {
				if fault != nil {
					last = append(last, fault.Error())
				}
			}
		}
		select {
		case <-time.After(proofPoll):
		case <-patience.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the record was published and is not at all name servers after %v: %s", p.wait, strings.Join(last, "; "))
		}
	}
}
