package queue_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postroad/queue"
)

func TestSuppressionTarget(t *testing.T) {
	for text, want := range map[string]string{
		"Bob@Example.COM":       "bob@example.com",
		" bob@example.com ":     "bob@example.com",
		"@Example.com":          "example.com",
		"example.com":           "example.com",
		"bob@bücher.example":    "bob@xn--bcher-kva.example",
		`"bob smith"@a.example`: `"bob smith"@a.example`,
		"":                      "",
		"bob@":                  "",
		"a b":                   "",
		"<>":                    "",
	} {
		got, err := queue.SuppressionTarget(text)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
}

// changes are the keys that changed after a position.
func changes(t *testing.T, q *queue.Queue, after queue.SuppressionPosition) (queue.SuppressionPosition, []queue.SuppressionChange) {
	t.Helper()
	var list []queue.SuppressionChange
	next, err := q.SuppressionChanges(t.Context(), after, func(c queue.SuppressionChange) { list = append(list, c) })
	if err != nil {
		t.Fatal(err)
	}
	return next, list
}

func listed(t *testing.T, q *queue.Queue, class *string, target string) []string {
	t.Helper()
	var list []string
	for s, err := range q.Suppressions(t.Context(), class, target) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s.Class+"/"+s.Address)
	}
	slices.Sort(list)
	return list
}

func TestSuppressions(t *testing.T) {
	q := testQueue(t)
	ctx := t.Context()
	for _, s := range []queue.Suppression{
		{Address: "Bob@example.com", Reason: "asked", Owner: "alice"},
		{Address: "bob@example.com", Class: "news", Reason: "complaint"},
		{Address: "@example.net", Until: time.Now().Add(time.Hour)},
		{Address: "carol@example.com", Text: strings.Repeat("é", 300)},
	} {
		if err := q.Suppress(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Suppress(ctx, queue.Suppression{Address: "dave@example.com", Until: time.Now().Add(-time.Second)}); err == nil {
		t.Error("one that is over was taken")
	}
	s, err := q.Suppression(ctx, queue.SuppressionKey("", "bob@example.com"))
	if err != nil || s == nil || s.Address != "bob@example.com" || s.Reason != "asked" || s.Owner != "alice" || s.Since.IsZero() || !s.Until.IsZero() || s.Pending {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err := q.Suppression(ctx, queue.SuppressionKey("", "dave@example.com")); s != nil || err != nil {
		t.Errorf("got %+v, %v for somebody who is not on the list", s, err)
	}
	at, all := changes(t, q, queue.SuppressionPosition{})
	if len(all) != 4 {
		t.Errorf("got %v, want 4 changes", all)
	}
	everybody, news := "", "news"
	for _, tt := range []struct {
		class  *string
		target string
		want   []string
	}{
		{nil, "", []string{"/bob@example.com", "/carol@example.com", "/example.net", "news/bob@example.com"}},
		{&everybody, "", []string{"/bob@example.com", "/carol@example.com", "/example.net"}},
		{&news, "", []string{"news/bob@example.com"}},
		{nil, "example.com", []string{"/bob@example.com", "/carol@example.com", "news/bob@example.com"}},
		{nil, "bob@example.com", []string{"/bob@example.com", "news/bob@example.com"}},
	} {
		if got := listed(t, q, tt.class, tt.target); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %v, want %v", tt.target, got, tt.want)
		}
	}
	for _, want := range []bool{true, false} {
		if had, err := q.Unsuppress(ctx, "news", "bob@example.com"); had != want || err != nil {
			t.Errorf("got %v, %v, want %v", had, err, want)
		}
	}
	next, list := changes(t, q, at)
	if len(list) != 1 || !list[0].Gone || list[0].Key != queue.SuppressionKey("news", "bob@example.com") {
		t.Errorf("got %v, want the one that has gone", list)
	}
	if again, list := changes(t, q, next); again != next || len(list) != 0 {
		t.Errorf("nothing changed: got %v, %v", again, list)
	}
	next.Seq += 100
	if anew, _ := changes(t, q, next); anew != (queue.SuppressionPosition{}) {
		t.Errorf("got position %v behind the end, want the start", anew)
	}
}

// From the second refusal on, within the time for it; one refusal told twice is one.
func TestNoteRefusal(t *testing.T) {
	q := testQueue(t)
	note := func(address, source string, after int, within time.Duration) {
		t.Helper()
		if err := q.NoteRefusal(t.Context(), queue.Suppression{Address: address, Reason: "invalid_recipient", Source: source}, after, within, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	get := func(address string) *queue.Suppression {
		t.Helper()
		s, err := q.Suppression(t.Context(), queue.SuppressionKey("", address))
		if err != nil || s == nil {
			t.Fatalf("%s: got %v, %v", address, s, err)
		}
		return s
	}
	note("bob@example.com", "m1", 2, time.Hour)
	note("bob@example.com", "m1", 2, time.Hour)
	if s := get("bob@example.com"); !s.Pending || s.Refusals != 1 {
		t.Errorf("after one refusal: got %+v", s)
	}
	note("bob@example.com", "m2", 2, time.Hour)
	first := get("bob@example.com")
	if first.Pending || first.Refusals != 2 || time.Until(first.Until) < 50*time.Minute {
		t.Errorf("after two refusals: got %+v", first)
	}
	note("bob@example.com", "m3", 2, time.Hour)
	if s := get("bob@example.com"); *s != *first {
		t.Errorf("what stops mail already was changed: got %+v, want %+v", s, first)
	}
	if err := q.Suppress(t.Context(), queue.Suppression{Address: "carol@example.com", Owner: "alice"}); err != nil {
		t.Fatal(err)
	}
	note("carol@example.com", "m4", 1, time.Hour)
	if s := get("carol@example.com"); s.Owner != "alice" {
		t.Errorf("an operator's entry was changed: got %+v", s)
	}
	// Both processes see the same one before.
	errs := make(chan error)
	for i := range 4 {
		go func() {
			errs <- q.NoteRefusal(context.Background(), queue.Suppression{Address: "dave@example.com", Source: fmt.Sprint(i)}, 100, time.Hour, time.Hour)
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if s := get("dave@example.com"); s.Refusals != 4 {
		t.Errorf("four at once: got %d refusals", s.Refusals)
	}
}

// What ends is gone by itself, and its going is seen.
func TestSuppressionEnds(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	if err := q.Suppress(t.Context(), queue.Suppression{Address: "alice@example.com"}); err != nil {
		t.Fatal(err)
	}
	at, _ := changes(t, q, queue.SuppressionPosition{})
	if err := q.Suppress(t.Context(), queue.Suppression{Address: "bob@example.com", Until: time.Now().Add(8 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		next, list := changes(t, q, at)
		if len(list) == 1 && list[0].Gone {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not end: at %v, %v", next, list)
		}
	}
	if got := listed(t, q, nil, ""); !slices.Equal(got, []string{"/alice@example.com"}) {
		t.Errorf("got %v, want the one that does not end", got)
	}
}
