package throttle

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"postroad/queue"
)

const (
	maxPutOff   = 20000   // keys of which domains are remembered
	pullPage    = 200_000 // jobs to be pulled forward that are kept in mind, 60 MB: a million are listed anew after each
	pullClaimed = 5 * time.Minute
	pullBeat    = 20 * time.Second // between two signs that a pull goes on
	pullSilence = time.Minute      // then another process goes on with it
	maxClaiming = 16               // at a time
	maxShares   = 50               // at a time
	maxWakes    = 10               // at a time: each may keep a connection for as long as a host is silent
)

// pullPauses come before pulls. What was sent away lies in the queue a moment later, and other processes hear a moment later that the way is free.
var pullPauses = []time.Duration{0, 5 * time.Second, 10 * time.Second}

// Waits remembers that jobs of a domain wait for a path that is dead, or about to be.
func (s *Sites) Waits(path, domain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sentAway(path, domain)
}

// sentAway remembers a domain whose jobs wait. The caller holds the lock.
func (s *Sites) sentAway(key, domain string) {
	set, known := s.putOff[key]
	if !known {
		if s.o.Board == nil {
			return // nobody asks
		}
		if len(s.putOff) >= maxPutOff {
			return
		}
		set = make(map[string]bool)
		s.putOff[key] = set
	}
	if _, known := set[domain]; !known && len(set) < MaxDomains {
		set[domain] = false // not shared yet
	}
}

// pulling is a pull that one process does for the cluster. It posts it again as long as it goes on; when it does not, another goes on with it.
// What was pulled forward already is not there any more, so that begins at the beginning.
type pulling struct {
	Of      string    `json:"of"`             // of the posting that went
	Path    string    `json:"path,omitempty"` // for its pace
	Domains []string  `json:"domains"`
	Since   time.Time `json:"since"`
	IsDone  bool      `json:"done,omitempty"`
}

// seenPull is a pull of some process, as it was seen last.
type seenPull struct {
	it       pulling
	revision uint64
	at       time.Time // by our clock; the clocks of others do not matter
}

// begin pulls forward what waited for a posting to go: one process all that is known, the others what only they know of. The caller holds the
// lock.
func (s *Sites) begin(p queue.Posting, domains []string, path string) {
	it := pulling{Of: p.Name, Path: path, Domains: slices.Clone(domains), Since: time.Now()}
	for domain := range s.putOff[p.Name] {
		if !slices.Contains(domains, domain) {
			it.Domains = append(it.Domains, domain)
		}
	}
	delete(s.putOff, p.Name)
	if len(it.Domains) == 0 {
		return
	}
	s.wg.Go(func() {
		if p.Revision == 0 { // nobody else knows of it
			s.pull(s.life, it)
			return
		}
		claim := queue.Posting{Kind: kindPull, Name: strconv.FormatUint(p.Revision, 10)}
		var err error
		switch claim.Revision, err = s.postPull(claim, it); {
		case err == nil:
			s.pullHeld(claim, it)
		case errors.Is(err, queue.ErrOvertaken):
			it.Domains = it.Domains[len(domains):]
			s.pull(s.life, it)
		default:
			s.pull(s.life, it)
		}
	})
}

// goOn takes over pulls of which nothing was heard for a while: who did them is gone, or could not do them.
func (s *Sites) goOn(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, seen := range s.pulls {
		if now.Sub(seen.at) < pullSilence {
			continue
		}
		s.pulls[name] = seenPull{seen.it, seen.revision, now} // not again at once
		claim := queue.Posting{Kind: kindPull, Name: name, Revision: seen.revision}
		s.wg.Go(func() {
			var err error
			if claim.Revision, err = s.postPull(claim, seen.it); err == nil {
				s.o.Logger.Info("a pull of another process did not go on, it is taken over", "of", seen.it.Of)
				s.pullHeld(claim, seen.it)
			}
		})
	}
}

// postPull claims a pull over its revision, and returns the next one.
func (s *Sites) postPull(claim queue.Posting, it pulling) (uint64, error) {
	it.Domains = it.Domains[:min(len(it.Domains), MaxDomains)]
	claim.Data, claim.Until = encode(it), time.Now().Add(pullClaimed)
	return s.claim(claim)
}

// claim posts what this process is about to do for all, and returns the posting's revision; queue.ErrOvertaken: another process does it.
func (s *Sites) claim(p queue.Posting) (uint64, error) {
	select {
	case s.claims <- struct{}{}:
		defer func() { <-s.claims }()
	case <-s.life.Done():
		return 0, s.life.Err()
	}
	ctx, cancel := context.WithTimeout(s.life, postTime)
	defer cancel()
	return s.o.Board.PostOver(ctx, p)
}

// pullHeld pulls for the cluster, and says so until it is done. It ends when another has taken over.
func (s *Sites) pullHeld(claim queue.Posting, it pulling) {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	var beat sync.WaitGroup
	beat.Go(func() {
		for pause(ctx, pullBeat); ctx.Err() == nil; pause(ctx, pullBeat) {
			switch next, err := s.postPull(claim, it); {
			case err == nil:
				claim.Revision = next
			case errors.Is(err, queue.ErrOvertaken):
				cancel()
			}
		}
	})
	isDone := s.pull(ctx, it)
	cancel()
	beat.Wait()
	if it.IsDone = isDone; isDone {
		_, _ = s.postPull(claim, it) // else it is done once more
	}
}

// pull pulls forward, and reports whether that came to its end.
func (s *Sites) pull(ctx context.Context, it pulling) (isDone bool) {
	moved := 0
	for _, d := range pullPauses {
		pause(ctx, d)
		if ctx.Err() != nil {
			return false
		}
		if _, err := s.o.Pace(it.Path); err != nil || len(it.Domains) == 0 {
			isDone = true
			break
		}
		n, err := s.o.Board.Pull(ctx, it.Domains, it.Since, pullPage, s.pullPace(it.Path))
		if moved += n; err != nil {
			s.o.Logger.Warn("waiting jobs cannot be pulled forward", "of", it.Of, "error", err)
		}
		isDone = err == nil
	}
	s.o.Logger.Info("waiting jobs were pulled forward", "of", it.Of, "count", moved)
	return isDone
}

// pullPace keeps the distance between two jobs that are pulled forward. What a slow queue takes is caught up, a second's worth at most.
func (s *Sites) pullPace(path string) func(context.Context) error {
	next := time.Now()
	return func(ctx context.Context) error {
		every, err := s.o.Pace(path)
		if err != nil {
			return err
		}
		if earliest := time.Now().Add(-time.Second); next.Before(earliest) {
			next = earliest
		}
		if next = next.Add(every); time.Until(next) > 0 {
			pause(ctx, time.Until(next))
		}
		return ctx.Err()
	}
}

// withPutOff adds the domains that this process knows of, as many as fit.
func (s *Sites) withPutOff(key string, domains []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addPutOff(key, domains)
}

// addPutOff is withPutOff for a caller that holds the lock.
func (s *Sites) addPutOff(key string, domains []string) []string {
	domains = slices.Clone(domains)
	for d, isShared := range s.putOff[key] {
		if !isShared && len(domains) < MaxDomains && !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	return domains
}

// isShared notes which domains are posted.
func (s *Sites) isShared(key string, domains []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range domains {
		if _, known := s.putOff[key][d]; known {
			s.putOff[key][d] = true
		}
	}
}

// share adds to postings the domains that this process knows of.
func (s *Sites) share() {
	s.mu.Lock()
	var posts []func(context.Context)
	for key := range s.putOff {
		if len(posts) >= maxShares {
			break
		}
		if p, is := s.suspensions[key]; is {
			if domains := s.addPutOff(key, p.it.Domains); len(domains) > len(p.it.Domains) {
				p.it.Domains = domains
				posts = append(posts, s.over(KindSuspension, key, p.it, p.it.Until, p.revision, domains))
			}
		} else if c, is := s.circuits[key]; is {
			if domains := s.addPutOff(key, c.it.Domains); len(domains) > len(c.it.Domains) {
				c.it.Domains = domains
				posts = append(posts, s.over(KindCircuit, key, c.it, c.it.Until.Add(circuitKept), c.revision, domains))
			}
		}
	}
	s.mu.Unlock()
	for _, post := range posts {
		s.say(post)
	}
}

// over replaces a posting by one with more domains; when others were quicker, theirs are there, and ours come later.
func (s *Sites) over(kind, name string, of any, until time.Time, revision uint64, domains []string) func(context.Context) {
	data := encode(of)
	return func(ctx context.Context) {
		if _, err := s.o.Board.PostOver(ctx, queue.Posting{Kind: kind, Name: name, Data: data, Until: until, Revision: revision}); err == nil {
			s.isShared(name, domains)
		}
	}
}

// wake makes a job ready for each dead path whose time to be probed has come: it is tried also when no mail comes and none is due for long. One
// process does so for all, again when that came to nothing within ProbeTime.
func (s *Sites) wake(now time.Time) {
	type due struct {
		revision uint64
		domains  []string
	}
	var all []due
	s.mu.Lock()
	for path, c := range s.circuits {
		if len(all) >= maxWakes {
			break
		}
		if s.closing[path] || now.Before(c.it.Until) || now.Before(c.it.ProbeUntil) {
			continue
		}
		if domains := s.addPutOff(path, c.it.Domains); len(domains) > 0 {
			all = append(all, due{c.revision, domains})
		}
	}
	s.mu.Unlock()
	for _, d := range all {
		s.say(func(ctx context.Context) {
			claim := queue.Posting{Kind: kindProbe, Name: strconv.FormatUint(d.revision, 10), Data: json.RawMessage("{}"), Until: time.Now().Add(ProbeTime)}
			if _, err := s.claim(claim); errors.Is(err, queue.ErrOvertaken) {
				return
			}
			if _, err := s.o.Board.PullOne(ctx, d.domains); err != nil {
				s.o.Logger.Warn("no job can be had to probe a dead site", "error", err)
			}
		})
	}
}
