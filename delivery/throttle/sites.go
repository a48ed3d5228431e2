package throttle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"postroad/queue"
)

const (
	// ProbeTime is how long others leave a dead site to the one that probes it.
	ProbeTime = 2 * time.Minute
	// MaxDomains is how many domains a posting names.
	MaxDomains = 200
	shareEvery = 10 * time.Second
	// firstReading is how long a process that starts waits for what is posted; a new leader of the bucket takes 4 to 9 s.
	firstReading = 15 * time.Second
	closeAgain   = 300 * time.Millisecond
	circuitKept  = time.Hour // after the time of its next probe
	maxNews      = 1000      // that wait to be posted
	postTime     = 5 * time.Second
)

// Board is where the cluster posts what it knows of sites; *queue.Queue is one. See there.
type Board interface {
	FollowPostings(ctx context.Context, fn func(p queue.Posting, isThere bool), looked func(error)) error
	Post(ctx context.Context, p queue.Posting) error
	PostOver(ctx context.Context, p queue.Posting) (uint64, error)
	Unpost(ctx context.Context, p queue.Posting) error
	Pull(ctx context.Context, domains []string, since time.Time, page int, pace func(context.Context) error) (int, error)
	PullOne(ctx context.Context, domains []string) (bool, error)
	Record(e queue.Event)
}

var _ Board = (*queue.Queue)(nil)

// SitesOptions configure Sites. Board and Configured are required.
type SitesOptions struct {
	Board      Board
	Configured []Rule
	// Changed is called when what is known of a path may have changed: the circuit of that path, or, with an empty path, rules or suspensions.
	Changed func(path string)
	// Pace is the distance at which jobs of a path may be pulled forward; an error ends that.
	Pace   func(path string) (time.Duration, error)
	Logger *slog.Logger
}

// Sites is what the cluster knows of sites: suspensions, dead sites, limits that operators set, reactions.
type Sites struct {
	o    SitesOptions
	wg   sync.WaitGroup
	stop context.CancelFunc
	life context.Context
	news chan func(context.Context)
	read chan struct{} // closed when all that is posted was read once

	mu          sync.Mutex
	unread      error // of the last look
	rules       *Rules
	live        map[string]Rule
	suspensions map[string]posted[Suspension]
	circuits    map[string]posted[Circuit]
	slow        map[string]posted[Slow]
	marks       map[string]posted[Mark]
	putOff      map[string]map[string]bool // domains by key of a suspension or path of a circuit
	orphans     map[string]bool            // keys of putOff for which there was no posting at the last look
	closing     map[string]bool            // paths whose circuit is being closed
	unposted    map[string]time.Time       // paths that died, which could not be posted then
	pulls       map[string]seenPull        // that are not done
	claims      chan struct{}              // taken by each that asks for leave to pull
}

type posted[T any] struct {
	it       T
	revision uint64
}

// NewSites checks the rules. Nothing is followed before Start.
func NewSites(o SitesOptions) (*Sites, error) {
	rules, err := NewRules(o.Configured...)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func(string) {}
	}
	s := &Sites{o: o, rules: rules, news: make(chan func(context.Context), maxNews), read: make(chan struct{}), live: make(map[string]Rule),
		suspensions: make(map[string]posted[Suspension]), circuits: make(map[string]posted[Circuit]), slow: make(map[string]posted[Slow]),
		marks: make(map[string]posted[Mark]), putOff: make(map[string]map[string]bool), closing: make(map[string]bool),
		unposted: make(map[string]time.Time), pulls: make(map[string]seenPull),
		claims: make(chan struct{}, maxClaiming)}
	s.life, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Start begins to follow the board.
func (s *Sites) Start() {
	if s.o.Board == nil {
		close(s.read)
		return
	}
	var once sync.Once
	looked := func(err error) {
		s.mu.Lock()
		s.unread = err
		s.mu.Unlock()
		if err == nil {
			once.Do(func() { close(s.read) })
		}
	}
	s.wg.Go(func() {
		for s.life.Err() == nil {
			if err := s.o.Board.FollowPostings(s.life, s.take, looked); err != nil {
				s.o.Logger.Warn("postings about sites cannot be followed, it is tried again", "error", err)
				pause(s.life, time.Second)
			}
		}
	})
	s.wg.Go(s.tell)
}

// Await waits until all that is posted was read once, for firstReading at most: then a log line says why it was not, and limits and
// suspensions are those of the configuration until it is.
func (s *Sites) Await(ctx context.Context) {
	timer := time.NewTimer(firstReading)
	defer timer.Stop()
	select {
	case <-s.read:
	case <-ctx.Done():
	case <-timer.C:
		s.mu.Lock()
		err := s.unread
		s.mu.Unlock()
		s.o.Logger.Warn("limits and suspensions that operators set cannot be read: mail goes out by the configuration's until they can be", "error", err)
	}
}

// Stop ends everything that it began.
func (s *Sites) Stop() {
	s.stop()
	s.wg.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Rules are the rules in force.
func (s *Sites) Rules() *Rules {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rules
}

// For finds the limits of a job, halved where the receiver asked for less.
func (s *Sites) For(q Query) Limits {
	l := s.Rules().For(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slow, is := s.slow[l.Path]; is && time.Now().Before(slow.it.Until) {
		l.Connections = max(1, l.Connections/2)
		l.Rate.Window *= 2
	}
	return l
}

// Counts is how much is posted, as this process knows.
type Counts struct{ Suspensions, Circuits, Slow int }

// Counts counts what is posted.
func (s *Sites) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Counts{len(s.suspensions), len(s.circuits), len(s.slow)}
}

// Usable reports whether a source may be used for a site.
func (s *Sites) Usable(source, site string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, is := s.marks[markName(source, site)]
	return !is || !time.Now().Before(m.it.Until)
}

func markName(source, site string) string { return source + " " + site }

// Suspended finds what keeps a job from being sent, nil if nothing does. It remembers the domain.
func (s *Sites) Suspended(domain, site, path string) *Suspension {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, name := range []string{domain, site, path} {
		if p, is := s.suspensions[name]; is && now.Before(p.it.Until) {
			s.sentAway(name, domain)
			found := p.it
			return &found
		}
	}
	return nil
}

// Dead is the circuit of a path, if it is open, and this process does not know better.
func (s *Sites) Dead(path string) (Circuit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, is := s.circuits[path]
	return c.it, is && !s.closing[path]
}

// take notes what is posted, and what is no longer.
func (s *Sites) take(p queue.Posting, isThere bool) {
	path := ""
	s.mu.Lock()
	switch p.Kind {
	case KindSuspension:
		if was, _ := note(s.suspensions, p, isThere); !isThere {
			s.begin(p, was.Domains, "")
		}
	case KindCircuit:
		path = p.Name
		delete(s.unposted, path)
		if was, _ := note(s.circuits, p, isThere); !isThere {
			s.begin(p, was.Domains, path)
		}
	case KindSlow:
		note(s.slow, p, isThere)
	case KindMark:
		note(s.marks, p, isThere)
	case KindLimit:
		s.setLive(p, isThere)
	case kindPull:
		delete(s.pulls, p.Name)
		var it pulling
		if err := json.Unmarshal(p.Data, &it); err == nil && isThere && !it.IsDone && len(it.Domains) > 0 {
			s.pulls[p.Name] = seenPull{it, p.Revision, time.Now()}
		}
	}
	s.mu.Unlock()
	s.o.Changed(path)
}

// note keeps a posting, or forgets it, and returns what it says.
func note[T any](m map[string]posted[T], p queue.Posting, isThere bool) (T, bool) {
	var it T
	if err := json.Unmarshal(p.Data, &it); err != nil {
		return it, false // of another version
	}
	if isThere {
		m[p.Name] = posted[T]{it, p.Revision}
	} else {
		delete(m, p.Name)
	}
	return it, true
}

// setLive changes the rules that operators set. The caller holds the lock.
func (s *Sites) setLive(p queue.Posting, isThere bool) {
	var l LiveLimit
	if err := json.Unmarshal(p.Data, &l); err != nil || l.Rule.Check() != nil {
		return // of another version
	}
	l.Rule.Live = true
	if isThere {
		s.live[p.Name] = l.Rule
	} else {
		delete(s.live, p.Name)
	}
	if rules, err := NewRules(append(slices.Clone(s.o.Configured), slices.Collect(maps.Values(s.live))...)...); err == nil {
		s.rules = rules
	}
}

// tell posts news one after the other, and shares which domains wait.
func (s *Sites) tell() {
	tick := time.NewTimer(shareEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case post := <-s.news:
			ctx, cancel := context.WithTimeout(s.life, postTime)
			post(ctx)
			cancel()
		case <-tick.C:
			s.tidy(time.Now())
			s.goOn(time.Now())
			s.share()
			s.wake(time.Now())
			tick.Reset(shareEvery/2 + rand.N(shareEvery)) // not all processes at the same time
		}
	}
}

// say has something posted. When too much waits it is dropped: what is posted helps others, and nothing rests on it.
func (s *Sites) say(post func(context.Context)) bool {
	if s.o.Board == nil {
		return false
	}
	select {
	case s.news <- post:
		return true
	default:
		return false
	}
}

func encode(of any) json.RawMessage {
	data, err := json.Marshal(of)
	if err != nil {
		return nil // cannot happen to the structs above
	}
	return data
}

// Died tells the cluster that nobody at a path can be reached.
func (s *Sites) Died(c Circuit) {
	if s.o.Board == nil {
		return
	}
	s.mu.Lock()
	s.unposted[c.Path] = time.Now() // until it is posted
	s.mu.Unlock()
	s.say(func(ctx context.Context) {
		s.mu.Lock()
		was, isOpen := s.circuits[c.Path]
		s.mu.Unlock()
		c.Since = time.Now()
		if isOpen {
			c.Since = was.it.Since
		}
		c.Domains = s.withPutOff(c.Path, was.it.Domains)
		if s.postCircuit(ctx, c, was.revision) != nil {
			return
		}
		s.isShared(c.Path, c.Domains)
		if !isOpen {
			s.record(c.Path, "site is dead: "+c.Text)
		}
	})
}

// postCircuit posts a circuit over another one, and notes it.
func (s *Sites) postCircuit(ctx context.Context, c Circuit, over uint64) error {
	until := c.Until.Add(circuitKept)
	revision, err := s.o.Board.PostOver(ctx, queue.Posting{Kind: KindCircuit, Name: c.Path, Data: encode(c), Until: until, Revision: over})
	if err != nil {
		if !errors.Is(err, queue.ErrOvertaken) {
			s.o.Logger.Warn("others do not hear of a dead site", "site", c.Path, "error", err)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.circuits[c.Path].revision < revision {
		s.circuits[c.Path] = posted[Circuit]{c, revision}
	}
	delete(s.unposted, c.Path)
	return nil
}

// Lives tells the cluster that a path can be reached again, and pulls forward what waits for it.
func (s *Sites) Lives(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, isOpen := s.circuits[path]
	if _, is := s.unposted[path]; is && !isOpen {
		delete(s.unposted, path)
		s.begin(queue.Posting{Name: path}, nil, path) // no posting goes by which it would begin
	}
	if !isOpen || s.closing[path] {
		return
	}
	s.closing[path] = s.say(func(ctx context.Context) {
		s.closeCircuit(ctx, path)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.closing, path)
	})
}

// closeCircuit takes a circuit down. Others may be adding domains to it.
func (s *Sites) closeCircuit(ctx context.Context, path string) {
	for ctx.Err() == nil {
		s.mu.Lock()
		c, isOpen := s.circuits[path]
		s.mu.Unlock()
		if !isOpen {
			return // by another process
		}
		err := s.o.Board.Unpost(ctx, queue.Posting{Kind: KindCircuit, Name: path, Revision: c.revision})
		if err != nil {
			pause(ctx, closeAgain)
			continue
		}
		s.mu.Lock()
		if s.circuits[path].revision == c.revision {
			delete(s.circuits, path)
		}
		s.mu.Unlock()
		s.record(path, "site is alive again")
		return // its end is followed by all, this process too
	}
}

// Probe asks for leave to try a dead path: one process at a time has it.
func (s *Sites) Probe(ctx context.Context, path string) bool {
	s.mu.Lock()
	c, isOpen := s.circuits[path]
	s.mu.Unlock()
	now := time.Now()
	if !isOpen || s.o.Board == nil {
		return true // others do not know of it
	}
	if now.Before(c.it.ProbeUntil) || now.Before(c.it.Until) {
		return false
	}
	c.it.ProbeUntil = now.Add(ProbeTime)
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	return s.postCircuit(ctx, c.it, c.revision) == nil
}

// EndProbe gives leave to probe back: it came to nothing.
func (s *Sites) EndProbe(path string) {
	s.say(func(ctx context.Context) {
		s.mu.Lock()
		c, isOpen := s.circuits[path]
		s.mu.Unlock()
		if isOpen && !c.it.ProbeUntil.IsZero() {
			c.it.ProbeUntil = time.Time{}
			_ = s.postCircuit(ctx, c.it, c.revision)
		}
	})
}

// Suspend stops a path, a site or a domain for a time, by a reaction.
func (s *Sites) Suspend(x Suspension) {
	s.mu.Lock()
	was, is := s.suspensions[x.Name]
	s.mu.Unlock()
	if is && !was.it.Until.Before(x.Until.Add(-x.Until.Sub(x.Since)/10)) {
		return // it is suspended as long already
	}
	s.say(func(ctx context.Context) {
		if s.post(ctx, KindSuspension, x.Name, x, x.Until) {
			s.record(x.Name, fmt.Sprintf("suspended until %s by %s: %s", x.Until.UTC().Format(time.RFC3339), x.Owner, x.Reason))
		}
	})
}

// SlowDown halves what a path gets for a time, by a reaction.
func (s *Sites) SlowDown(x Slow) {
	s.mu.Lock()
	was, is := s.slow[x.Path]
	s.mu.Unlock()
	if is && time.Until(was.it.Until) > x.Until.Sub(x.Since)/2 {
		return
	}
	s.say(func(ctx context.Context) {
		if s.post(ctx, KindSlow, x.Path, x, x.Until) {
			s.record(x.Path, "site gets half until "+x.Until.UTC().Format(time.RFC3339)+": "+x.Reason)
		}
	})
}

// MarkBad keeps a source from a site for a time, by a reaction.
func (s *Sites) MarkBad(x Mark) {
	if !s.Usable(x.Source, x.Site) {
		return
	}
	s.say(func(ctx context.Context) {
		if s.post(ctx, KindMark, markName(x.Source, x.Site), x, x.Until) {
			s.record(x.Site, "source "+x.Source+" is not used for it until "+x.Until.UTC().Format(time.RFC3339)+": "+x.Reason)
		}
	})
}

func (s *Sites) post(ctx context.Context, kind, name string, of any, until time.Time) bool {
	err := s.o.Board.Post(ctx, queue.Posting{Kind: kind, Name: name, Data: encode(of), Until: until})
	if err != nil {
		s.o.Logger.Warn("others do not hear of a reaction", "kind", kind, "of", name, "error", err)
	}
	return err == nil
}

// record makes an event of the site.
func (s *Sites) record(site, text string) {
	s.o.Board.Record(queue.Event{Type: queue.Shaping, Site: site, Text: text})
	s.o.Logger.Info("state of a site changed", "site", site, "text", text)
}

// tidy forgets what is over. Its postings end by themselves.
func (s *Sites) tidy(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, p := range s.suspensions {
		if !now.Before(p.it.Until) {
			delete(s.suspensions, key)
		}
	}
	maps.DeleteFunc(s.slow, func(_ string, p posted[Slow]) bool { return !now.Before(p.it.Until) })
	maps.DeleteFunc(s.marks, func(_ string, p posted[Mark]) bool { return !now.Before(p.it.Until) })
	for path, c := range s.circuits {
		if now.After(c.it.Until.Add(circuitKept)) {
			delete(s.circuits, path)
		}
	}
	maps.DeleteFunc(s.unposted, func(_ string, at time.Time) bool { return now.Sub(at) > circuitKept })
	were := s.orphans
	s.orphans = make(map[string]bool)
	for key := range s.putOff {
		_, isSuspended := s.suspensions[key]
		_, isDead := s.circuits[key]
		_, isUnposted := s.unposted[key]
		switch {
		case isSuspended || isDead || isUnposted:
		case were[key]:
			delete(s.putOff, key) // they come by themselves
		default:
			s.orphans[key] = true // it may be posted yet
		}
	}
}
