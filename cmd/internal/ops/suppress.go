package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"sync"

	"postroad/queue"
)

// suppressBatch is how many entries one request carries, suppressWriters how many of them are written at a time.
const (
	suppressBatch   = 500
	suppressBody    = 1 << 20
	suppressWriters = 32
)

// SuppressOrder asks to add suppressions, or to take them away: then only their address and class count.
type SuppressOrder struct {
	Entries []queue.Suppression `json:"entries"`
	DryRun  bool                `json:"dry_run,omitempty"` // only look
}

// SuppressOutcome is what became of it.
type SuppressOutcome struct {
	Count  int             `json:"count"`  // added or replaced, or taken away; or would be
	Absent int             `json:"absent"` // to be taken away, and not there
	Wrong  []SuppressFault `json:"wrong,omitempty"`
	DryRun bool            `json:"dry_run,omitempty"`
}

// SuppressFault is an entry that could not be taken.
type SuppressFault struct {
	Address string `json:"address"`
	Error   string `json:"error"`
}

func (s *Server) listSuppressions(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var class *string
	if query.Has("class") {
		name := query.Get("class")
		class = &name
	}
	target := query.Get("target")
	if target != "" {
		var err error
		if target, err = queue.SuppressionTarget(target); err != nil {
			refuse(w, err)
			return
		}
	}
	stream(s, w, r, s.o.Queue.Suppressions(r.Context(), class, target))
}

func (s *Server) suppress(w http.ResponseWriter, r *http.Request) {
	var order SuppressOrder
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, suppressBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&order); err != nil {
		refuse(w, fmt.Errorf("read order: %w", err))
		return
	}
	if len(order.Entries) > suppressBatch {
		refuse(w, fmt.Errorf("%d entries in one order, want %d at most", len(order.Entries), suppressBatch))
		return
	}
	do := s.addSuppression
	if r.PathValue("action") == "remove" {
		do = s.removeSuppression
	} else if r.PathValue("action") != "add" {
		refuse(w, fmt.Errorf("there is no action %q", r.PathValue("action")))
		return
	}
	outcome, err := carryOut(r.Context(), order, do)
	if !order.DryRun && outcome.Count > 0 {
		_ = s.o.Queue.Notify(r.Context(), queue.SuppressionNotice, "") // who misses it looks every ten seconds
		s.o.Logger.Info("operator's order carried out", "action", "suppress "+r.PathValue("action"), "count", outcome.Count, "err", err)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, outcome)
}

// carryOut does the entries of an order, several at a time. What is wrong with one of them stops none of the others; an error is the queue's.
func carryOut(ctx context.Context, order SuppressOrder, do func(context.Context, queue.Suppression, bool) (bool, error)) (SuppressOutcome, error) {
	out := SuppressOutcome{DryRun: order.DryRun}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failure error
	free := make(chan struct{}, suppressWriters)
	for _, e := range order.Entries {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			target, err := queue.SuppressionTarget(e.Address)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				out.Wrong = append(out.Wrong, SuppressFault{e.Address, err.Error()})
				return
			}
			e.Address = target
			done, err := do(ctx, e, order.DryRun)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				failure = errors.Join(failure, err)
			case done:
				out.Count++
			default:
				out.Absent++
			}
		})
		mu.Lock()
		failed := failure != nil
		mu.Unlock()
		if failed {
			break
		}
	}
	wg.Wait()
	return out, failure
}

func (s *Server) addSuppression(ctx context.Context, e queue.Suppression, dry bool) (bool, error) {
	if dry {
		return true, nil
	}
	e.Pending, e.Refusals = false, 0
	return true, s.o.Queue.Suppress(ctx, e)
}

func (s *Server) removeSuppression(ctx context.Context, e queue.Suppression, dry bool) (bool, error) {
	if !dry {
		return s.o.Queue.Unsuppress(ctx, e.Class, e.Address)
	}
	old, err := s.o.Queue.Suppression(ctx, queue.SuppressionKey(e.Class, e.Address))
	return old != nil, err
}

// Suppressions yields the suppressions of a class (nil: of all) and a target (empty: all).
func (c *Client) Suppressions(ctx context.Context, class *string, target string) iter.Seq2[queue.Suppression, error] {
	query := url.Values{}
	if class != nil {
		query.Set("class", *class)
	}
	set(query, "target", target)
	return lines[queue.Suppression](ctx, c, "/v1/suppressions", query)
}

// Suppress adds suppressions; Unsuppress takes them away. Of very many, those before an error are done.
func (c *Client) Suppress(ctx context.Context, o SuppressOrder) (SuppressOutcome, error) {
	return c.suppress(ctx, "add", o)
}

// Unsuppress: see Suppress.
func (c *Client) Unsuppress(ctx context.Context, o SuppressOrder) (SuppressOutcome, error) {
	return c.suppress(ctx, "remove", o)
}

func (c *Client) suppress(ctx context.Context, action string, o SuppressOrder) (SuppressOutcome, error) {
	total := SuppressOutcome{DryRun: o.DryRun}
	for rest := o.Entries; len(rest) > 0; {
		n := min(len(rest), suppressBatch)
		var one SuppressOutcome
		err := c.call(ctx, http.MethodPost, "/v1/suppressions/"+action, nil, SuppressOrder{Entries: rest[:n], DryRun: o.DryRun}, &one)
		if err != nil {
			return total, err
		}
		total.Count, total.Absent = total.Count+one.Count, total.Absent+one.Absent
		total.Wrong = append(total.Wrong, one.Wrong...)
		rest = rest[n:]
	}
	return total, nil
}
