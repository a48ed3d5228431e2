package tlspolicy

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/tlsrpt"
)

// Store keeps policies for all workers of the cluster, and over their restarts. It may forget anything at any time.
type Store interface {
	// Get gives what was put last, or nil.
	Get(ctx context.Context, domain string) ([]byte, error)
	// Put keeps a value for ttl.
	Put(ctx context.Context, domain string, value []byte, ttl time.Duration) error
}

const (
	maxShelf     = 20000
	retryAfter   = 5 * time.Minute  // a fetch that failed is not repeated sooner (RFC 8461 §3.3)
	refreshAge   = 24 * time.Hour   // or half of max_age, if that is less
	fetchSpacing = time.Minute      // whatever ids a domain shows, and however short its max_age is
	absentKept   = 10 * time.Minute // that the store has nothing
	storeTimeout = 2 * time.Second
	maxStored    = 30 * 24 * time.Hour // in use it is fetched again long before
)

// held is what is known of the policy of one domain.
type held struct {
	policy  STS
	id      string
	fetched time.Time // zero: there is none
	looked  time.Time // when the store was asked

	failedID string // id whose fetch failed
	failed   time.Time
	failure  *Failure
}

func (h *held) ends() time.Time { return h.fetched.Add(h.policy.MaxAge) }

func (h *held) isValid(now time.Time) bool { return !h.fetched.IsZero() && now.Before(h.ends()) }

func (h *held) isOld(now time.Time) bool {
	return now.Sub(h.fetched) > min(h.policy.MaxAge/2, refreshAge)
}

// storedSTS is the stored form.
type storedSTS struct {
	ID      string    `json:"id"`
	Fetched time.Time `json:"fetched"`
	Text    string    `json:"text"`
}

// shelf is the cache of policies (RFC 8461 §5.1): a policy holds until its max_age is over, whatever becomes of its record meanwhile.
type shelf struct {
	names Names
	store Store
	fetch func(ctx context.Context, domain string) (string, error)

	life context.Context
	wg   sync.WaitGroup

	mu      sync.Mutex
	held    map[string]held
	flights map[string]chan struct{} // fetches under way; closed when they end
	closed  bool                     // none starts any more
}

func newShelf(life context.Context, names Names, store Store, fetch func(context.Context, string) (string, error)) *shelf {
	return &shelf{names: names, store: store, fetch: fetch, life: life, held: make(map[string]held), flights: make(map[string]chan struct{})}
}

// get gives the policy of a domain, or why there is none although its record promises one. Without either there is none, unless
// isUnknown: it could not be found out now.
func (s *shelf) get(ctx context.Context, domain string) (policy *STS, trouble *Failure, isUnknown bool) {
	h := s.load(ctx, domain)
	id, hasRecord, err := s.record(ctx, domain)
	now := time.Now()
	switch {
	case err != nil:
		policy = h.current(now)
		return policy, nil, policy == nil
	case !hasRecord, h.isValid(now) && h.id == id:
		if hasRecord && h.isOld(now) && !s.hasFailed(&h, id, now) {
			s.start(domain, id) // in good time before its end
		}
		return h.current(now), nil, false
	case s.hasFailed(&h, id, now), now.Sub(h.fetched) < fetchSpacing:
	default:
		done := s.start(domain, id)
		select {
		case <-done:
		case <-ctx.Done():
			policy = h.current(now)
			return policy, nil, policy == nil
		}
		s.mu.Lock()
		h = s.held[domain]
		s.mu.Unlock()
	}
	if policy = h.current(now); policy != nil || h.failedID != id {
		return policy, nil, policy == nil && h.id != id
	}
	return nil, h.failure, false
}

func (h *held) current(now time.Time) *STS {
	if !h.isValid(now) {
		return nil
	}
	return &h.policy
}

func (s *shelf) hasFailed(h *held, id string, now time.Time) bool {
	return h.failedID == id && now.Sub(h.failed) < retryAfter
}

// record gives the id that the domain publishes now, if it does. An error: the name service is in trouble.
func (s *shelf) record(ctx context.Context, domain string) (id string, ok bool, err error) {
	records, err := s.names.LookupTXT(ctx, "_mta-sts."+domain)
	if err != nil && !errors.Is(err, mx.ErrNoName) {
		return "", false, err
	}
	id, err = parseRecord(records)
	return id, err == nil, nil
}

// load gives what is known, from memory or the store.
func (s *shelf) load(ctx context.Context, domain string) held {
	now := time.Now()
	s.mu.Lock()
	h, known := s.held[domain]
	s.mu.Unlock()
	if s.store == nil || known && (h.isValid(now) || now.Sub(h.looked) < absentKept) {
		return h
	}
	return s.fromStore(ctx, domain)
}

// fromStore takes over what another process has fetched, if that is newer.
func (s *shelf) fromStore(ctx context.Context, domain string) held {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var fresh held
	data, err := s.store.Get(ctx, domain)
	if err == nil && len(data) > 0 {
		fresh = parseStored(data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[domain]
	if fresh.fetched.After(h.fetched) {
		h.policy, h.id, h.fetched = fresh.policy, fresh.id, fresh.fetched
	}
	if err == nil { // else it is asked again
		h.looked = time.Now()
		s.keep(domain, h)
	}
	return h
}

func parseStored(data []byte) held {
	var x storedSTS
	if json.Unmarshal(data, &x) != nil {
		return held{}
	}
	policy, err := ParseSTS(x.Text)
	if err != nil || x.Fetched.After(time.Now().Add(time.Hour)) {
		return held{}
	}
	return held{policy: policy, id: x.ID, fetched: x.Fetched}
}

// start fetches a policy, unless that is under way, and tells its end. It goes on when who asked has left.
func (s *shelf) start(domain, id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if done, is := s.flights[domain]; is {
		return done
	}
	done := make(chan struct{})
	if s.closed || s.life.Err() != nil {
		close(done)
		return done
	}
	s.flights[domain] = done
	s.wg.Go(func() {
		s.refresh(domain, id)
		s.mu.Lock()
		delete(s.flights, domain)
		s.mu.Unlock()
		close(done)
	})
	return done
}

// close waits for the fetches that are under way.
func (s *shelf) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}

// refresh brings a policy up to date.
func (s *shelf) refresh(domain, id string) {
	if s.store != nil {
		if h := s.fromStore(s.life, domain); h.id == id && h.isValid(time.Now()) && !h.isOld(time.Now()) {
			return // another process was there before us
		}
	}
	text, err := s.fetch(s.life, domain)
	var policy STS
	if err == nil {
		if policy, err = ParseSTS(text); err != nil {
			err = &Failure{Result: tlsrpt.STSInvalid, Enhanced: "4.7.0", Text: "the MTA-STS policy cannot be read", Err: err}
		}
	}
	now := time.Now()
	s.mu.Lock()
	h := s.held[domain]
	if err == nil {
		h = held{policy: policy, id: id, fetched: now, looked: now}
	} else {
		failure, is := errors.AsType[*Failure](err)
		if !is {
			failure = fetchFailure(err)
		}
		h.failedID, h.failed, h.failure = id, now, failure
	}
	s.keep(domain, h)
	s.mu.Unlock()
	if err == nil && s.store != nil && policy.MaxAge > 0 {
		s.put(domain, storedSTS{ID: id, Fetched: now, Text: strings.Join(policy.Lines(), "\n")}, min(policy.MaxAge, maxStored))
	}
}

func (s *shelf) put(domain string, x storedSTS, ttl time.Duration) {
	data, err := json.Marshal(x)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.life, storeTimeout)
	defer cancel()
	_ = s.store.Put(ctx, domain, data, ttl) // else others fetch it for themselves
}

// keep remembers; s.mu is held. When there is no room, one of a few goes: one that says nothing any more if there is such a one, else
// the one that ends first.
func (s *shelf) keep(domain string, h held) {
	if _, known := s.held[domain]; !known && len(s.held) >= maxShelf {
		const look = 8
		now, seen, victim := time.Now(), 0, ""
		var ends time.Time
		for name, x := range s.held { // in random order
			end := x.ends()
			if !x.isValid(now) {
				end = time.Time{}
			}
			if victim == "" || end.Before(ends) {
				victim, ends = name, end
			}
			if seen++; seen == look {
				break
			}
		}
		delete(s.held, victim)
	}
	s.held[domain] = h
}

// Names are the look-ups that policies rest on; *mx.DNS has them. A name that does not exist, or has no such records, gives none and no
// error, or mx.ErrNoName.
type Names interface {
	LookupTLSA(ctx context.Context, name string) (mx.TLSAAnswer, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	// LookupAlias reports that a host name is an alias, and that DNSSEC proves that.
	LookupAlias(ctx context.Context, host string) (isSecure bool, err error)
}
