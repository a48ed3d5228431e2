package ops_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a queue of fixed entries that notes what it is asked.
type fake struct {
	entries []queue.Entry
	events  []queue.Event
	nodes   []queue.Node
	uses    []queue.Use

	postings map[string]queue.Posting
	slots    []queue.SlotUse
	paces    []queue.Pace
	recorded []queue.Event

	overview queue.Overview
	broken   error // every call ends with it

	mu    sync.Mutex
	asked []string
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}

func (f *fake) calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fake) List(_ context.Context, sel queue.Selection, limit int) iter.Seq2[queue.Entry, error] {
	f.note("list %+v %d", sel, limit)
	return func(yield func(queue.Entry, error) bool) {
		for _, e := range f.entries {
			if !yield(e, nil) {
				return
			}
		}
		if f.broken != nil {
			yield(queue.Entry{}, f.broken)
		}
	}
}

func (f *fake) move(what string, sel queue.Selection) (int, error) {
	f.note("%s %+v", what, sel)
	return len(f.entries), f.broken
}

func (f *fake) Retry(_ context.Context, sel queue.Selection) (int, error) {
	return f.move("retry", sel)
}
func (f *fake) Cancel(_ context.Context, sel queue.Selection) (int, error) {
	return f.move("cancel", sel)
}
func (f *fake) Release(_ context.Context, sel queue.Selection) (int, error) {
	return f.move("release", sel)
}
func (f *fake) Resign(_ context.Context, sel queue.Selection) (int, error) {
	return f.move("resign", sel)
}
func (f *fake) Return(_ context.Context, sel queue.Selection, why string) (int, error) {
	return f.move("return "+why, sel)
}
func (f *fake) Hold(_ context.Context, sel queue.Selection, why string) (int, error) {
	return f.move("hold "+why, sel)
}

func (f *fake) Counts(context.Context) (queue.Counts, error) {
	return queue.Counts{Mails: 3, MailBytes: 30, Ready: 2, Later: map[queue.Class]uint64{"1m": 7}}, f.broken
}

func (f *fake) Trace(_ context.Context, filter queue.TraceFilter) iter.Seq2[queue.Event, error] {
	f.note("trace %s %s %s %t", filter.ID, filter.Sender, filter.Recipient, filter.Since.IsZero())
	return func(yield func(queue.Event, error) bool) {
		for _, e := range f.events {
			if !yield(e, nil) {
				return
			}
		}
		if f.broken != nil {
			yield(queue.Event{}, f.broken)
		}
	}
}

func (f *fake) Overview(context.Context) (queue.Overview, error) {
	f.note("overview")
	return f.overview, f.broken
}
func (f *fake) Nodes(context.Context) ([]queue.Node, error) { return f.nodes, f.broken }
func (f *fake) Postings(context.Context) ([]queue.Posting, error) {
	return slices.Collect(maps.Values(f.postings)), f.broken
}
func (f *fake) Post(_ context.Context, p queue.Posting) error {
	if f.postings == nil {
		f.postings = make(map[string]queue.Posting)
	}
	f.postings[p.Kind+" "+p.Name] = p
	return f.broken
}
func (f *fake) Unpost(_ context.Context, p queue.Posting) error {
	delete(f.postings, p.Kind+" "+p.Name)
	return f.broken
}
func (f *fake) SlotUses(context.Context) ([]queue.SlotUse, error) { return f.slots, f.broken }
func (f *fake) Paces(context.Context) ([]queue.Pace, error)       { return f.paces, f.broken }
func (f *fake) Waiting(context.Context, string) (int, error)      { return 7, f.broken }
func (f *fake) Record(e queue.Event)                              { f.recorded = append(f.recorded, e) }

func (f *fake) Uses(context.Context) ([]queue.Use, error) { return f.uses, f.broken }
func (f *fake) Spendings(context.Context) ([]queue.Spending, error) {
	return []queue.Spending{{Key: "source/one", Used: 3}, {Key: "client/web", Used: 7}}, f.broken
}
func (f *fake) Notify(_ context.Context, topic, name string) error {
	f.note("notify %s %s", topic, name)
	return f.broken
}

func (f *fake) Suppressions(_ context.Context, class *string, target string) iter.Seq2[queue.Suppression, error] {
	if class != nil {
		f.note("suppressions %q %s", *class, target)
	} else {
		f.note("suppressions of all classes %s", target)
	}
	return func(yield func(queue.Suppression, error) bool) {
		if !yield(queue.Suppression{Address: "bob@example.com"}, nil) {
			return
		}
		if f.broken != nil {
			yield(queue.Suppression{}, f.broken)
		}
	}
}

func (f *fake) Suppression(_ context.Context, key string) (*queue.Suppression, error) {
	if key == queue.SuppressionKey("", "bob@example.com") {
		return &queue.Suppression{Address: "bob@example.com"}, f.broken
	}
	return nil, f.broken
}

func (f *fake) Suppress(_ context.Context, s queue.Suppression) error {
	f.note("suppress %s %q %s", s.Address, s.Class, s.Reason)
	return f.broken
}

func (f *fake) Unsuppress(_ context.Context, class, target string) (bool, error) {
	f.note("unsuppress %s %q", target, class)
	return target == "bob@example.com", f.broken
}

func (f *fake) Tap(ctx context.Context, wish queue.TapWish) iter.Seq2[queue.TapLine, error] {
	f.note("tap %+v", wish)
	return func(yield func(queue.TapLine, error) bool) {
		if yield(queue.TapLine{From: "C", Text: "QUIT"}, nil) {
			<-ctx.Done()
		}
		if f.broken != nil {
			yield(queue.TapLine{}, f.broken)
		}
	}
}

func start(t *testing.T, o ops.Options) *ops.Server {
	t.Helper()
	s, err := ops.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *ops.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func options(t *testing.T, f *fake) ops.Options {
	t.Helper()
	dir, err := os.MkdirTemp("", "ops") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	reg := prometheus.NewRegistry()
	reg.MustRegister(ops.NewCollector(f, slog.New(slog.DiscardHandler)))
	return ops.Options{
		Queue: f, Socket: filepath.Join(dir, "data", "ops.sock"), Gatherer: reg, Version: "1.2.3",
		Ready: func() error { return f.broken },
	}
}

func entry(place queue.Place, domain string) queue.Entry {
	return queue.Entry{Place: place, Job: queue.Job{
		ID: queue.NewID(), Kind: queue.KindMail, Parts: 1, Domain: domain,
		ReversePath: address.Path{Local: "a", Domain: "b.example"},
		Recipients:  []queue.Recipient{{Path: address.Path{Local: "c", Domain: domain}}},
		Accepted:    time.Now().Add(-time.Hour).UTC().Truncate(time.Second),
	}}
}

func gather[T any](t *testing.T, items iter.Seq2[T, error]) ([]T, error) {
	t.Helper()
	var list []T
	for item, err := range items {
		if err != nil {
			return list, err
		}
		list = append(list, item)
	}
	return list, nil
}

func TestListAndTrace(t *testing.T) {
	f := &fake{
		entries: []queue.Entry{entry(queue.PlaceReady, "x.example"), entry(queue.PlaceLater, "y.example")},
		events:  []queue.Event{{Type: queue.Reception, ID: queue.NewID(), Size: 10}},
	}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	got, err := gather(t, c.List(t.Context(), ops.Selection{Domain: "X.Example", Sender: "A@B.example", OlderThan: time.Minute}, 5))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(f.entries, got, cmpopts.IgnoreUnexported(queue.Entry{})); d != "" {
		t.Error(d)
	}
	events, err := gather(t, c.Trace(t.Context(), ops.TraceFilter{Recipient: "C@X.example"}))
	if err != nil || len(events) != 1 || events[0] != f.events[0] {
		t.Errorf("got %v, %v, want %v", events, err, f.events)
	}
	id := string(f.events[0].ID)
	if _, err := gather(t, c.Trace(t.Context(), ops.TraceFilter{ID: strings.ToUpper(id)})); err != nil {
		t.Error(err)
	}
	want := []string{
		"list {ID: Domain:x.example Sender:A@b.example Client: OlderThan:1m0s HeldFor:0s SignedBy: Author: Unsigned:false} 5",
		"trace   C@x.example false",
		"trace " + id + "   true",
	}
	if d := cmp.Diff(want, f.calls()); d != "" {
		t.Error(d)
	}
}

func TestActions(t *testing.T) {
	f := &fake{entries: []queue.Entry{
		entry(queue.PlaceIncoming, "a.example"), entry(queue.PlaceSign, "a.example"), entry(queue.PlaceReady, "a.example"),
		entry(queue.PlaceLater, "a.example"), entry(queue.PlaceHeld, "a.example"),
	}}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	concerned := map[ops.Action]int{ops.ActionRetry: 2, ops.ActionCancel: 5, ops.ActionHold: 3, ops.ActionRelease: 1, ops.ActionResign: 3, ops.ActionReturn: 4}
	for action, want := range concerned {
		order := ops.Order{Selection: ops.Selection{Domain: "a.example"}, Why: "test", DryRun: true}
		got, err := c.Do(t.Context(), action, order)
		if err != nil || got != (ops.Outcome{Count: want, DryRun: true}) {
			t.Errorf("%s, dry run: got %+v, %v, want %d", action, got, err, want)
		}
	}
	unsigned := ops.Order{Selection: ops.Selection{Unsigned: true}, DryRun: true} // retry leaves held jobs alone then
	if got, err := c.Do(t.Context(), ops.ActionRetry, unsigned); err != nil || got.Count != 1 {
		t.Errorf("retry of what waits for its signature, dry run: got %+v, %v, want 1", got, err)
	}
	for _, call := range f.calls() {
		if !strings.HasPrefix(call, "list") {
			t.Errorf("a dry run did %q", call)
		}
	}
	f.asked = nil
	for _, order := range []ops.Order{{Selection: ops.Selection{All: true}}, {Selection: ops.Selection{Client: "web"}, Why: "spam"}} {
		if got, err := c.Do(t.Context(), ops.ActionHold, order); err != nil || got.Count != 5 {
			t.Errorf("got %+v, %v, want 5", got, err)
		}
	}
	want := []string{
		"hold operator {ID: Domain: Sender: Client: OlderThan:0s HeldFor:0s SignedBy: Author: Unsigned:false}",
		"hold spam {ID: Domain: Sender: Client:web OlderThan:0s HeldFor:0s SignedBy: Author: Unsigned:false}",
	}
	if d := cmp.Diff(want, f.calls()); d != "" {
		t.Error(d)
	}
}

func TestRefusals(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	for name, order := range map[string]ops.Order{
		"nothing is selected": {},
		"not a message id":    {Selection: ops.Selection{ID: "x"}},
		"domain":              {Selection: ops.Selection{Domain: "a b"}},
		"sender":              {Selection: ops.Selection{Sender: "a b"}},
		"null sender":         {Selection: ops.Selection{Sender: "<>"}},
		"not both":            {Selection: ops.Selection{Domain: "a.example", All: true}},
		"selector._domainkey": {Selection: ops.Selection{SignedBy: "example.com"}},
		"cannot be negative":  {Selection: ops.Selection{OlderThan: -1}},
	} {
		if _, err := c.Do(t.Context(), ops.ActionCancel, order); !errors.Is(err, ops.ErrRefused) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
	if _, err := c.Do(t.Context(), "explode", ops.Order{Selection: ops.Selection{All: true}}); !errors.Is(err, ops.ErrRefused) {
		t.Errorf("got %v, want a refusal", err)
	}
	if _, err := gather(t, c.Trace(t.Context(), ops.TraceFilter{ID: "x"})); !errors.Is(err, ops.ErrRefused) {
		t.Errorf("got %v, want a refusal", err)
	}
	if calls := f.calls(); len(calls) > 0 {
		t.Errorf("the queue was asked: %q", calls)
	}
}

func TestQueueTrouble(t *testing.T) {
	f := &fake{entries: []queue.Entry{entry(queue.PlaceReady, "a.example")}, broken: errors.New("no leader")}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	got, err := gather(t, c.List(t.Context(), ops.Selection{}, 0))
	if len(got) != 1 || err == nil || err.Error() != "no leader" {
		t.Errorf("got %d entries, %v, want 1 and the reason why there are no more", len(got), err)
	}
	if _, err := c.Counts(t.Context()); err == nil || err.Error() != "no leader" {
		t.Errorf("got %v, want the reason", err)
	}
	f.broken = fmt.Errorf("cancel: %w", queue.ErrNotFound)
	if _, err := c.Do(t.Context(), ops.ActionCancel, ops.Order{Selection: ops.Selection{All: true}}); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("got %v, want %v", err, queue.ErrNotFound)
	}
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	_, err := ops.NewClient(filepath.Join(dir, "none.sock")).Counts(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is `postroad serve` running") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want the path and what to do", err)
	}
	o := options(t, &fake{})
	s, err := ops.New(o)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, s)
	if _, err := os.Stat(o.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	if _, err := ops.NewClient(o.Socket).Counts(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("got %v, want that nobody listens", err)
	}
	start(t, o) // takes the place of the stale socket
	if v, err := ops.NewClient(o.Socket).Version(t.Context()); err != nil || v != "1.2.3" {
		t.Errorf("got %q, %v, want 1.2.3", v, err)
	}
	if _, err := ops.New(o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want that the socket is in use", err)
	}
	info, err := os.Stat(o.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	o.Socket = filepath.Join(dir, strings.Repeat("x", 100))
	if _, err := ops.New(o); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("got %v, want that the path is too long", err)
	}
}

func TestHealthOverTCP(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	o.Address = "127.0.0.1:0"
	s := start(t, o)
	get := func(path string) (int, string) {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/v1/queue": 404, "/v1/counts": 404} {
		if got, _ := get(path); got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	if _, body := get("/metrics"); !strings.Contains(body, `relay_queue_jobs{class="1m",place="later"} 7`) {
		t.Errorf("got %s, want the counts of the queue", body)
	}
	f.broken = errors.New("no leader")
	if code, body := get("/readyz"); code != 503 || body != "no leader\n" {
		t.Errorf("got %d %q, want 503 with the reason", code, body)
	}
	f.broken = nil
	s.Drain()
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("got %d while draining, want 503", code)
	}
}

func TestCollectorWithoutQueue(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(ops.NewCollector(&fake{broken: errors.New("away")}, slog.New(slog.DiscardHandler)))
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("got %v, %v of a queue that is away, want nothing", families, err)
	}
}
