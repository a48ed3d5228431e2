package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"postroad/queue"
)

const (
	maxBody      = 64 << 10
	writeTimeout = 30 * time.Second // for one line of a stream
	scrapeLimit  = 10 * time.Second
)

func (s *Server) healthHandler() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{Timeout: scrapeLimit, MaxRequestsInFlight: 4}))
	return mux
}

// adminHandler is the API, version 1, beside health and metrics.
func (s *Server) adminHandler() *http.ServeMux {
	mux := s.healthHandler()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"version": s.o.Version})
	})
	mux.HandleFunc("GET /v1/counts", s.counts)
	mux.HandleFunc("GET /v1/queue", s.list)
	mux.HandleFunc("POST /v1/queue/{action}", s.act)
	mux.HandleFunc("GET /v1/trace", s.trace)
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/nodes", s.nodes)
	mux.HandleFunc("GET /v1/uses", s.uses)
	mux.HandleFunc("GET /v1/spendings", s.spendings)
	mux.HandleFunc("POST /v1/notices", s.notify)
	mux.HandleFunc("GET /v1/suppressions", s.listSuppressions)
	mux.HandleFunc("POST /v1/suppressions/{action}", s.suppress)
	mux.HandleFunc("GET /v1/tap", s.tap)
	s.handleSites(mux)
	return mux
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	err := s.o.Ready()
	if s.draining.Load() {
		err = errors.New("stopping")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (s *Server) counts(w http.ResponseWriter, r *http.Request) {
	c, err := s.o.Queue.Counts(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, c)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	given, err := selectionOf(query)
	if err != nil {
		refuse(w, err)
		return
	}
	sel, err := given.resolve()
	if err != nil && !errors.Is(err, errNothingSelected) {
		refuse(w, err)
		return
	}
	limit, err := limitOf(query)
	if err != nil {
		refuse(w, err)
		return
	}
	stream(s, w, r, s.o.Queue.List(r.Context(), sel, limit))
}

func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	given, err := traceFilterOf(r.URL.Query())
	if err != nil {
		refuse(w, err)
		return
	}
	filter, err := given.resolve()
	if err != nil {
		refuse(w, err)
		return
	}
	stream(s, w, r, s.o.Queue.Trace(r.Context(), filter))
}

func (s *Server) act(w http.ResponseWriter, r *http.Request) {
	var order Order
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&order); err != nil {
		refuse(w, fmt.Errorf("read order: %w", err))
		return
	}
	sel, err := order.Selection.resolve()
	if err != nil {
		refuse(w, err)
		return
	}
	action := Action(r.PathValue("action"))
	run, concerns := s.action(action, order.Why, &sel)
	if run == nil {
		refuse(w, fmt.Errorf("there is no action %q", action))
		return
	}
	outcome := Outcome{DryRun: order.DryRun}
	if order.DryRun {
		outcome.Count, err = s.count(r.Context(), sel, concerns)
	} else {
		outcome.Count, err = run(r.Context(), sel)
		s.o.Logger.Info("operator's order carried out", "action", action, "selection", order.Selection, "count", outcome.Count, "err", err)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, outcome)
}

// action gives what an action does, and which of the selected jobs it concerns.
func (s *Server) action(a Action, why string, sel *queue.Selection) (run func(context.Context, queue.Selection) (int, error), concerns func(queue.Place) bool) {
	q := s.o.Queue
	switch a {
	case ActionRetry:
		return s.retry, func(p queue.Place) bool { return p == queue.PlaceLater || p == queue.PlaceHeld && !sel.Unsigned }
	case ActionCancel:
		return q.Cancel, func(queue.Place) bool { return true }
	case ActionRelease:
		return q.Release, func(p queue.Place) bool { return p == queue.PlaceHeld }
	case ActionResign:
		return q.Resign, func(p queue.Place) bool { return p != queue.PlaceIncoming && p != queue.PlaceSign }
	case ActionReturn:
		if why == "" {
			why = "the operator sent it back"
		}
		back := func(ctx context.Context, sel queue.Selection) (int, error) { return q.Return(ctx, sel, why) }
		return back, func(p queue.Place) bool { return p != queue.PlaceIncoming }
	case ActionHold:
		if why == "" {
			why = "operator"
		}
		hold := func(ctx context.Context, sel queue.Selection) (int, error) { return q.Hold(ctx, sel, why) }
		return hold, func(p queue.Place) bool { return p != queue.PlaceHeld && p != queue.PlaceIncoming }
	}
	return nil, nil
}

func (s *Server) count(ctx context.Context, sel queue.Selection, concerns func(queue.Place) bool) (n int, err error) {
	for entry, err := range s.o.Queue.List(ctx, sel, 0) {
		if err != nil {
			return n, err
		}
		if concerns(entry.Place) {
			n++
		}
	}
	return n, nil
}

// stream sends one JSON object per line. When it breaks off, the last line says why.
func stream[T any](s *Server, w http.ResponseWriter, r *http.Request, items iter.Seq2[T, error]) {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	begun := time.Now()
	for item, err := range items {
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err != nil {
			s.o.Logger.Warn("listing broke off", "path", r.URL.Path, "err", err)
			_ = enc.Encode(failure{err.Error()})
			return
		}
		if enc.Encode(item) != nil {
			return // the client is gone
		}
		if time.Since(begun) > time.Second { // a person is waiting
			begun = time.Now()
			_ = control.Flush()
		}
	}
}

// refuse answers a request that is wrong.
func refuse(w http.ResponseWriter, err error) {
	answer(w, http.StatusBadRequest, failure{err.Error()})
}

// fail answers a request that the queue could not do.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, queue.ErrNotFound) {
		answer(w, http.StatusNotFound, failure{err.Error()})
		return
	}
	s.o.Logger.Warn("request not carried out", "path", r.URL.Path, "err", err)
	answer(w, http.StatusServiceUnavailable, failure{err.Error()})
}

func answer(w http.ResponseWriter, status int, body any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
