package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"postroad/delivery/throttle"
	"postroad/queue"
)

// SiteQueue is what operators see and change of sites and their limits; *queue.Queue is one.
type SiteQueue interface {
	Postings(ctx context.Context) ([]queue.Posting, error)
	Post(ctx context.Context, p queue.Posting) error
	Unpost(ctx context.Context, p queue.Posting) error
	SlotUses(ctx context.Context) ([]queue.SlotUse, error)
	Paces(ctx context.Context) ([]queue.Pace, error)
	Waiting(ctx context.Context, domain string) (int, error)
	Record(e queue.Event)
}

const (
	maxSuspension = 30 * 24 * time.Hour
	maxCounted    = 20 // domains whose waiting jobs are counted for one site
	maxReason     = 300
)

// LimitOrder sets a limit, or takes the one away that has the same match.
type LimitOrder struct {
	Rule   throttle.Rule `json:"rule"`
	Owner  string        `json:"owner,omitempty"`
	Reason string        `json:"reason,omitempty"`
	For    time.Duration `json:"for,omitempty"` // 0: until it is taken away
	DryRun bool          `json:"dry_run,omitempty"`
}

// SiteOrder suspends a site, a domain or a path, or resumes what is known under that name.
type SiteOrder struct {
	Name   string        `json:"name"`
	Owner  string        `json:"owner,omitempty"`
	Reason string        `json:"reason,omitempty"`
	For    time.Duration `json:"for,omitempty"`
	DryRun bool          `json:"dry_run,omitempty"`
}

// Change is what an order about limits or sites came to.
type Change struct {
	Name   string    `json:"name"`
	Until  time.Time `json:"until,omitzero"`
	Found  []string  `json:"found,omitempty"` // what there was: suspension, circuit, slow, mark, limit
	DryRun bool      `json:"dry_run,omitempty"`
}

// LiveLimit is a limit that an operator set.
type LiveLimit struct {
	Match string `json:"match"`
	throttle.LiveLimit
	Until time.Time `json:"until,omitzero"`
}

// PathUse is what the cluster uses of the limits of a path.
type PathUse struct {
	Path        string         `json:"path"`
	Connections int            `json:"connections,omitempty"` // limit; 0: not known
	Nodes       map[string]int `json:"nodes,omitempty"`       // connections leased, by node
	Wants       map[string]int `json:"wants,omitempty"`
	Rate        queue.Rate     `json:"rate,omitzero"`
	LastTurn    time.Time      `json:"last_turn,omitzero"`
	SiteState
}

// SiteState is what keeps mail from a site, or slows it down.
type SiteState struct {
	Suspension *throttle.Suspension `json:"suspension,omitempty"`
	Circuit    *throttle.Circuit    `json:"circuit,omitempty"`
	Slow       *throttle.Slow       `json:"slow,omitempty"`
	Marks      []throttle.Mark      `json:"marks,omitempty"`
	Waiting    int                  `json:"waiting,omitempty"` // jobs of the domains that are known to wait for it
}

// IsOK reports that nothing keeps mail from the site or slows it down.
func (s *SiteState) IsOK() bool {
	return s.Suspension == nil && s.Circuit == nil && s.Slow == nil && len(s.Marks) == 0
}

// Limits are the limits that operators set, and what is used of all.
type Limits struct {
	Live  []LiveLimit `json:"live"`
	Paths []PathUse   `json:"paths"`
}

// Site is a site of which something is posted.
type Site struct {
	Name string `json:"name"`
	SiteState
}

func (s *Server) handleSites(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/limits", s.limits)
	mux.HandleFunc("POST /v1/limits/set", s.setLimit)
	mux.HandleFunc("POST /v1/limits/unset", s.unsetLimit)
	mux.HandleFunc("GET /v1/sites", s.sites)
	mux.HandleFunc("POST /v1/sites/suspend", s.suspend)
	mux.HandleFunc("POST /v1/sites/resume", s.resume)
}

func (s *Server) limits(w http.ResponseWriter, r *http.Request) {
	postings, err := s.o.Queue.Postings(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := Limits{Live: liveLimits(postings), Paths: []PathUse{}}
	states := statesOf(postings)
	uses, err := s.o.Queue.SlotUses(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	paces, err := s.o.Queue.Paces(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	paths := make(map[string]*PathUse)
	at := func(path string) *PathUse {
		if paths[path] == nil {
			paths[path] = &PathUse{Path: path}
			if state := states[path]; state != nil {
				paths[path].SiteState = *state
			}
		}
		return paths[path]
	}
	for _, u := range uses {
		p := at(u.Key)
		p.Connections, p.Nodes, p.Wants = u.Limit, u.Nodes, u.Wants
	}
	for _, u := range paces {
		if !strings.HasPrefix(u.Key, throttle.ConnectPrefix) {
			p := at(u.Key)
			p.Rate, p.LastTurn = u.Rate, u.Last
		}
	}
	for name := range states {
		at(name)
	}
	for _, p := range paths {
		p.Waiting = s.waiting(r.Context(), &p.SiteState)
		out.Paths = append(out.Paths, *p)
	}
	slices.SortFunc(out.Paths, func(a, b PathUse) int { return cmp.Compare(a.Path, b.Path) })
	answer(w, http.StatusOK, out)
}

func liveLimits(postings []queue.Posting) []LiveLimit {
	live := []LiveLimit{}
	for _, p := range postings {
		var l throttle.LiveLimit
		if p.Kind == throttle.KindLimit && json.Unmarshal(p.Data, &l) == nil {
			live = append(live, LiveLimit{Match: p.Name, LiveLimit: l, Until: p.Until})
		}
	}
	slices.SortFunc(live, func(a, b LiveLimit) int { return cmp.Compare(a.Match, b.Match) })
	return live
}

// statesOf are the states by the name of a site, domain or path.
func statesOf(postings []queue.Posting) map[string]*SiteState {
	states := make(map[string]*SiteState)
	at := func(name string) *SiteState {
		if states[name] == nil {
			states[name] = &SiteState{}
		}
		return states[name]
	}
	for _, p := range postings {
		switch p.Kind {
		case throttle.KindSuspension:
			if x, ok := decode[throttle.Suspension](p); ok {
				at(p.Name).Suspension = &x
			}
		case throttle.KindCircuit:
			if x, ok := decode[throttle.Circuit](p); ok {
				at(p.Name).Circuit = &x
			}
		case throttle.KindSlow:
			if x, ok := decode[throttle.Slow](p); ok {
				at(p.Name).Slow = &x
			}
		case throttle.KindMark:
			if x, ok := decode[throttle.Mark](p); ok {
				at(x.Site).Marks = append(at(x.Site).Marks, x)
			}
		}
	}
	return states
}

func decode[T any](p queue.Posting) (T, bool) {
	var x T
	return x, json.Unmarshal(p.Data, &x) == nil
}

// waiting counts what waits for a site; of many domains only some, and what cannot be counted is nothing.
func (s *Server) waiting(ctx context.Context, state *SiteState) int {
	var domains []string
	if state.Suspension != nil {
		domains = append(domains, state.Suspension.Domains...)
	}
	if state.Circuit != nil {
		domains = append(domains, state.Circuit.Domains...)
	}
	slices.Sort(domains)
	n := 0
	for _, domain := range slices.Compact(domains)[:min(maxCounted, len(slices.Compact(domains)))] {
		if waits, err := s.o.Queue.Waiting(ctx, domain); err == nil {
			n += waits
		}
	}
	return n
}

func (s *Server) sites(w http.ResponseWriter, r *http.Request) {
	postings, err := s.o.Queue.Postings(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	list := []Site{}
	for name, state := range statesOf(postings) {
		state.Waiting = s.waiting(r.Context(), state)
		list = append(list, Site{Name: name, SiteState: *state})
	}
	slices.SortFunc(list, func(a, b Site) int { return cmp.Compare(a.Name, b.Name) })
	answer(w, http.StatusOK, list)
}

// order reads the body of a request.
func order[T any](w http.ResponseWriter, r *http.Request) (T, bool) {
	var o T
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		refuse(w, fmt.Errorf("read order: %w", err))
		return o, false
	}
	return o, true
}

func (s *Server) setLimit(w http.ResponseWriter, r *http.Request) {
	o, ok := order[LimitOrder](w, r)
	if !ok {
		return
	}
	o.Rule.Live = true
	if err := errors.Join(o.Rule.Check(), checkReason(o.Reason), checkFor(o.For, 0)); err != nil {
		refuse(w, err)
		return
	}
	now := time.Now()
	p := queue.Posting{Kind: throttle.KindLimit, Name: o.Rule.Match()}
	if o.For > 0 {
		p.Until = now.Add(o.For)
	}
	data, err := json.Marshal(throttle.LiveLimit{Rule: o.Rule, Owner: o.Owner, Reason: o.Reason, Since: now})
	if err != nil {
		refuse(w, err)
		return
	}
	p.Data = data
	s.change(w, r, p, o.DryRun, fmt.Sprintf("limit %s set by %s: %s", p.Name, o.Owner, o.Reason))
}

// change posts something and answers.
func (s *Server) change(w http.ResponseWriter, r *http.Request, p queue.Posting, dryRun bool, text string) {
	if !dryRun {
		if err := s.o.Queue.Post(r.Context(), p); err != nil {
			s.fail(w, r, err)
			return
		}
		s.o.Queue.Record(queue.Event{Type: queue.Shaping, Site: p.Name, Text: text})
		s.o.Logger.Info("operator's order carried out", "kind", p.Kind, "name", p.Name, "text", text)
	}
	answer(w, http.StatusOK, Change{Name: p.Name, Until: p.Until, DryRun: dryRun})
}

func (s *Server) unsetLimit(w http.ResponseWriter, r *http.Request) {
	if o, ok := order[LimitOrder](w, r); ok {
		s.takeDown(w, r, o.Rule.Match(), o.Owner, o.DryRun, func(p queue.Posting) bool { return p.Kind == throttle.KindLimit && p.Name == o.Rule.Match() })
	}
}

func (s *Server) suspend(w http.ResponseWriter, r *http.Request) {
	o, ok := order[SiteOrder](w, r)
	if !ok {
		return
	}
	if err := errors.Join(checkName(o.Name), checkReason(o.Reason), checkFor(o.For, time.Second)); err != nil {
		refuse(w, err)
		return
	}
	now := time.Now()
	x := throttle.Suspension{Name: o.Name, Owner: o.Owner, Reason: o.Reason, Since: now, Until: now.Add(o.For)}
	data, err := json.Marshal(x)
	if err != nil {
		refuse(w, err)
		return
	}
	p := queue.Posting{Kind: throttle.KindSuspension, Name: o.Name, Data: data, Until: x.Until}
	s.change(w, r, p, o.DryRun, fmt.Sprintf("suspended until %s by %s: %s", x.Until.UTC().Format(time.RFC3339), o.Owner, o.Reason))
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request) {
	o, ok := order[SiteOrder](w, r)
	if !ok {
		return
	}
	s.takeDown(w, r, o.Name, o.Owner, o.DryRun, func(p queue.Posting) bool {
		if p.Kind == throttle.KindMark {
			x, ok := decode[throttle.Mark](p)
			return ok && x.Site == o.Name
		}
		return p.Name == o.Name && slices.Contains([]string{throttle.KindSuspension, throttle.KindCircuit, throttle.KindSlow}, p.Kind)
	})
}

// retry has the selected jobs tried now: at sites that are dead too, which begin anew.
func (s *Server) retry(ctx context.Context, sel queue.Selection) (int, error) {
	postings, err := s.o.Queue.Postings(ctx)
	if err != nil {
		return 0, err
	}
	domains := []string{sel.Domain} // empty: any
	switch {
	case sel.Unsigned: // it goes to the signer
		domains = nil
	case sel.ID != "":
		domains = nil
		for e, err := range s.o.Queue.List(ctx, sel, 0) {
			if err != nil {
				return 0, err
			}
			domains = append(domains, e.Job.Domain)
		}
	}
	for _, p := range postings {
		c, ok := decode[throttle.Circuit](p)
		if p.Kind != throttle.KindCircuit || !ok || !slices.ContainsFunc(domains, func(d string) bool { return mayWait(c, d) }) {
			continue
		}
		if err := s.o.Queue.Unpost(ctx, queue.Posting{Kind: p.Kind, Name: p.Name}); err != nil {
			return 0, err
		}
		s.o.Queue.Record(queue.Event{Type: queue.Shaping, Site: p.Name, Text: "tried again: an operator retries mail for it"})
	}
	return s.o.Queue.Retry(ctx, sel)
}

// mayWait reports that jobs of a domain, empty: of any, may wait for a dead site.
func mayWait(c throttle.Circuit, domain string) bool {
	return domain == "" || slices.Contains(c.Domains, domain) || len(c.Domains) >= throttle.MaxDomains
}

// takeDown takes away what matches and answers what that was.
func (s *Server) takeDown(w http.ResponseWriter, r *http.Request, name, owner string, dryRun bool, matches func(queue.Posting) bool) {
	postings, err := s.o.Queue.Postings(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	change := Change{Name: name, DryRun: dryRun}
	for _, p := range postings {
		if !matches(p) {
			continue
		}
		if !dryRun {
			if err := s.o.Queue.Unpost(r.Context(), queue.Posting{Kind: p.Kind, Name: p.Name}); err != nil {
				s.fail(w, r, err)
				return
			}
			s.o.Queue.Record(queue.Event{Type: queue.Shaping, Site: p.Name, Text: p.Kind + " ended by " + owner})
		}
		change.Found = append(change.Found, p.Kind)
	}
	if len(change.Found) == 0 {
		answer(w, http.StatusNotFound, failure{"nothing is set for " + name})
		return
	}
	answer(w, http.StatusOK, change)
}

func checkName(name string) error {
	if name == "" || len(name) > 190 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%.50q is no name of a site or domain", name)
	}
	return nil
}

func checkReason(reason string) error {
	if len(reason) > maxReason {
		return fmt.Errorf("a reason of %d octets is too long: want %d at most", len(reason), maxReason)
	}
	return nil
}

func checkFor(d, least time.Duration) error {
	if d < least || d > maxSuspension {
		return fmt.Errorf("a time of %s is out of range: want %s to %s", d, least, maxSuspension)
	}
	return nil
}

// Limits are the limits that operators set, and what is used of all.
func (c *Client) Limits(ctx context.Context) (Limits, error) {
	var l Limits
	err := c.callWithin(ctx, maxLine*4, http.MethodGet, "/v1/limits", nil, nil, &l)
	return l, err
}

// SetLimit sets a limit, UnsetLimit takes it away.
func (c *Client) SetLimit(ctx context.Context, o LimitOrder) (Change, error) {
	return c.change(ctx, "/v1/limits/set", o)
}

// UnsetLimit takes the limit away that has the same match.
func (c *Client) UnsetLimit(ctx context.Context, o LimitOrder) (Change, error) {
	return c.change(ctx, "/v1/limits/unset", o)
}

// Sites lists the sites of which something is posted.
func (c *Client) Sites(ctx context.Context) ([]Site, error) {
	var list []Site
	err := c.callWithin(ctx, maxLine*4, http.MethodGet, "/v1/sites", nil, nil, &list)
	return list, err
}

// Suspend keeps mail from a site or domain for a time.
func (c *Client) Suspend(ctx context.Context, o SiteOrder) (Change, error) {
	return c.change(ctx, "/v1/sites/suspend", o)
}

// Resume ends suspensions and everything else that keeps mail from a site or domain.
func (c *Client) Resume(ctx context.Context, o SiteOrder) (Change, error) {
	return c.change(ctx, "/v1/sites/resume", o)
}

func (c *Client) change(ctx context.Context, path string, order any) (Change, error) {
	var change Change
	err := c.call(ctx, http.MethodPost, path, nil, order, &change)
	return change, err
}
