package ops_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

func TestSuppressions(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	everybody := ""
	for _, class := range []*string{nil, &everybody} {
		var got []string
		for s, err := range c.Suppressions(t.Context(), class, "Example.COM") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, s.Address)
		}
		if !slices.Equal(got, []string{"bob@example.com"}) {
			t.Errorf("got %v", got)
		}
	}
	entries := []queue.Suppression{{Address: "Bob@example.com", Class: "news", Reason: "asked"}, {Address: "no address@"}}
	for i, tt := range []struct {
		do   func() (ops.SuppressOutcome, error)
		want ops.SuppressOutcome
	}{
		{func() (ops.SuppressOutcome, error) {
			return c.Suppress(t.Context(), ops.SuppressOrder{Entries: entries, DryRun: true})
		}, ops.SuppressOutcome{Count: 1, DryRun: true}},
		{func() (ops.SuppressOutcome, error) {
			return c.Unsuppress(t.Context(), ops.SuppressOrder{Entries: entries, DryRun: true})
		}, ops.SuppressOutcome{Absent: 1, DryRun: true}},
		{func() (ops.SuppressOutcome, error) {
			return c.Suppress(t.Context(), ops.SuppressOrder{Entries: entries})
		}, ops.SuppressOutcome{Count: 1}},
		{func() (ops.SuppressOutcome, error) {
			return c.Unsuppress(t.Context(), ops.SuppressOrder{Entries: entries})
		}, ops.SuppressOutcome{Count: 1}},
	} {
		got, err := tt.do()
		if err != nil || len(got.Wrong) != 1 || got.Wrong[0].Address != "no address@" {
			t.Errorf("%d: got %+v, %v, want one that is wrong", i, got, err)
		}
		if got.Wrong = nil; fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%d: got %+v, want %+v", i, got, tt.want)
		}
	}
	want := []string{"suppressions of all classes example.com", `suppressions "" example.com`,
		`suppress bob@example.com "news" asked`, "notify suppressions ", `unsuppress bob@example.com "news"`, "notify suppressions "}
	if got := f.calls(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// Many go in several requests.
	many := make([]queue.Suppression, 1201)
	for i := range many {
		many[i].Address = fmt.Sprintf("u%d@example.com", i)
	}
	if got, err := c.Suppress(t.Context(), ops.SuppressOrder{Entries: many}); err != nil || got.Count != len(many) {
		t.Errorf("got %d, %v, want %d", got.Count, err, len(many))
	}
	f.broken = errors.New("no answer")
	if _, err := c.Suppress(t.Context(), ops.SuppressOrder{Entries: many}); err == nil {
		t.Error("a queue that does not answer: got no error")
	}
}
