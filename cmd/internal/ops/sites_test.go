package ops_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/delivery/throttle"
	"postroad/queue"
)

func TestLimitsAndSites(t *testing.T) {
	f := &fake{slots: []queue.SlotUse{{Key: "mx.example.net", Limit: 10, Nodes: map[string]int{"a": 3, "b": 4}}},
		paces: []queue.Pace{{Key: "mx.example.net", Rate: queue.Rate{Count: 100, Window: time.Second}}, {Key: throttle.ConnectPrefix + "mx.example.net"}}}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	ctx := t.Context()
	rule := throttle.Rule{Domain: "example.net", Rate: queue.Rate{Count: 50, Window: time.Second}}
	if change, err := c.SetLimit(ctx, ops.LimitOrder{Rule: rule, Owner: "alice", Reason: "they asked", For: time.Hour, DryRun: true}); err != nil || change.Name != "domain=example.net" || len(f.postings) != 0 {
		t.Errorf("dry run: got %+v, %v, %d postings", change, err, len(f.postings))
	}
	if _, err := c.SetLimit(ctx, ops.LimitOrder{Rule: rule, Owner: "alice", Reason: "they asked", For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetLimit(ctx, ops.LimitOrder{Rule: throttle.Rule{Domain: "example.net"}}); !errors.Is(err, ops.ErrRefused) {
		t.Errorf("a rule that limits nothing: got %v, want a refusal", err)
	}
	if _, err := c.Suspend(ctx, ops.SiteOrder{Name: "mx.example.net", Owner: "bob", Reason: "blocked", For: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []ops.SiteOrder{{Name: "a b", For: time.Hour}, {Name: "a"}, {Name: "a", For: 9999 * time.Hour}} {
		if _, err := c.Suspend(ctx, bad); !errors.Is(err, ops.ErrRefused) {
			t.Errorf("%+v: got %v, want a refusal", bad, err)
		}
	}
	l, err := c.Limits(ctx)
	if err != nil || len(l.Live) != 1 || l.Live[0].Owner != "alice" || l.Live[0].Until.IsZero() || len(l.Paths) != 1 {
		t.Fatalf("got %+v, %v", l, err)
	}
	if p := l.Paths[0]; p.Connections != 10 || p.Nodes["b"] != 4 || p.Rate.Count != 100 || p.Suspension == nil || p.Suspension.Reason != "blocked" {
		t.Errorf("got %+v", p)
	}
	sites, err := c.Sites(ctx)
	if err != nil || len(sites) != 1 || sites[0].Suspension.Owner != "bob" {
		t.Fatalf("got %+v, %v", sites, err)
	}
	if len(f.recorded) != 2 || f.recorded[1].Type != queue.Shaping || !strings.Contains(f.recorded[1].Text, "by bob: blocked") {
		t.Errorf("got events %+v", f.recorded)
	}
	if change, err := c.Resume(ctx, ops.SiteOrder{Name: "mx.example.net", Owner: "bob"}); err != nil || len(change.Found) != 1 {
		t.Errorf("got %+v, %v", change, err)
	}
	if change, err := c.UnsetLimit(ctx, ops.LimitOrder{Rule: throttle.Rule{Domain: "example.net"}, Owner: "bob"}); err != nil || change.Found[0] != throttle.KindLimit {
		t.Errorf("got %+v, %v", change, err)
	}
	if len(f.postings) != 0 {
		t.Errorf("left: %+v", f.postings)
	}
	if _, err := c.Resume(ctx, ops.SiteOrder{Name: "mx.example.net"}); err == nil {
		t.Error("nothing was set, and that is no error")
	}
}

// TestRetryWakesDeadSites: mail that an operator retries is tried, also where the site is dead.
func TestRetryWakesDeadSites(t *testing.T) {
	for _, c := range []struct {
		name  string
		order ops.Order
		left  []string
	}{
		{"all", ops.Order{Selection: ops.Selection{All: true}}, nil},
		{"one domain", ops.Order{Selection: ops.Selection{Domain: "a.example"}}, []string{"mx.b.example"}},
		{"one mail", ops.Order{Selection: ops.Selection{ID: string(queue.NewID())}}, []string{"mx.b.example"}},
		{"dry run", ops.Order{Selection: ops.Selection{All: true}, DryRun: true}, []string{"mx.a.example", "mx.b.example"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{entries: []queue.Entry{entry(queue.PlaceLater, "a.example")}, postings: make(map[string]queue.Posting)}
			for _, d := range []string{"a.example", "b.example"} {
				data, err := json.Marshal(throttle.Circuit{Path: "mx." + d, Domains: []string{d}})
				if err != nil {
					t.Fatal(err)
				}
				f.postings["circuit mx."+d] = queue.Posting{Kind: throttle.KindCircuit, Name: "mx." + d, Data: data}
			}
			o := options(t, f)
			start(t, o)
			if got, err := ops.NewClient(o.Socket).Do(t.Context(), ops.ActionRetry, c.order); err != nil || got.Count != 1 {
				t.Fatalf("got %+v, %v", got, err)
			}
			var left []string
			for _, p := range f.postings {
				left = append(left, p.Name)
			}
			slices.Sort(left)
			if !slices.Equal(left, c.left) {
				t.Errorf("dead after it: %v, want %v", left, c.left)
			}
		})
	}
}
