package queue

import "testing"

// A bucket that was made anew is another one, also when it has grown longer than the old one before anybody looked.
func TestSuppressionsMadeAnew(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	suppress := func(targets ...string) {
		t.Helper()
		for _, target := range targets {
			if err := q.Suppress(ctx, Suppression{Address: target}); err != nil {
				t.Fatal(err)
			}
		}
	}
	changes := func(after SuppressionPosition) (next SuppressionPosition, n int) {
		t.Helper()
		next, err := q.SuppressionChanges(ctx, after, func(SuppressionChange) { n++ })
		if err != nil {
			t.Fatal(err)
		}
		return next, n
	}
	suppress("bob@example.com")
	at, _ := changes(SuppressionPosition{})
	for _, c := range q.sideBuckets() {
		if c.Bucket != suppressBucket {
			continue
		}
		if err := q.js.DeleteKeyValue(ctx, c.Bucket); err != nil {
			t.Fatal(err)
		}
		if _, err := q.js.CreateKeyValue(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	suppress("carol@example.com", "dave@example.com")
	if next, n := changes(at); next != (SuppressionPosition{}) || n != 0 {
		t.Errorf("got %v and %d changes, want the start and none", next, n)
	}
	if next, n := changes(SuppressionPosition{}); next.Seq != 2 || n != 2 || next.Made.Equal(at.Made) {
		t.Errorf("got %v and %d changes from the start, want 2", next, n)
	}
}
