package queue

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"postroad/queue/address"
)

func TestKept(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	if v, rev, err := q.Recall(ctx, "sts", "example.net"); v != nil || rev != 0 || err != nil {
		t.Fatalf("got %q, %d, %v", v, rev, err)
	}
	if err := q.Keep(ctx, "sts", "example.net", []byte("one"), 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	v, rev, err := q.Recall(ctx, "sts", "example.net")
	if string(v) != "one" || err != nil {
		t.Fatalf("got %q, %v", v, err)
	}
	if err := q.Keep(ctx, "sts", "example.net", []byte("late"), 0, time.Hour); !errors.Is(err, ErrChanged) {
		t.Errorf("an old revision: got %v", err)
	}
	if err := q.Keep(ctx, "sts", "example.org", []byte("x"), 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := q.Keep(ctx, "rpt", "2026-01-01 a.test", []byte("y"), 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := q.Keep(ctx, "sts", "example.net", nil, rev, 0); err != nil {
		t.Fatal(err)
	}
	if keys, err := q.Kept(ctx, "sts"); err != nil || !slices.Equal(keys, []string{"example.org"}) {
		t.Errorf("got %q, %v", keys, err)
	}
	if keys, err := q.Kept(ctx, "rpt"); err != nil || !slices.Equal(keys, []string{"2026-01-01 a.test"}) {
		t.Errorf("got %q, %v", keys, err)
	}
	if v, rev, err := q.Recall(ctx, "sts", "example.net"); len(v) > 0 || rev == 0 || err != nil {
		t.Errorf("forgotten: got %q, %d, %v", v, rev, err)
	}
	for _, topic := range []string{"", "A", "a.b"} {
		if q.Keep(ctx, topic, "k", []byte("v"), 0, time.Hour) == nil {
			t.Errorf("topic %q: got no error", topic)
		}
	}
	if q.Keep(ctx, "sts", "k", make([]byte, maxKept+1), 0, time.Hour) == nil {
		t.Error("too large: got no error")
	}
}

// TestTalliesLeaveRoomForPolicies: what is counted for TLS reports may fill its bucket; policies are kept all the same.
func TestTalliesLeaveRoomForPolicies(t *testing.T) {
	q := innerQueue(t)
	for _, c := range q.sideBuckets() {
		if c.Bucket == keptIn(KeptTallies) {
			c.MaxBytes = 3 * maxKept
			if _, err := q.js.UpdateKeyValue(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	var err error
	for i := 0; err == nil && i < 10; i++ {
		err = q.Keep(t.Context(), KeptTallies, fmt.Sprint(i), make([]byte, maxKept), 0, time.Hour)
	}
	if err == nil {
		t.Fatal("the bucket of tallies has no bound")
	}
	if err := q.Keep(t.Context(), KeptPolicies, "example.net", []byte("policy"), 0, time.Hour); err != nil {
		t.Errorf("a policy beside a full bucket of tallies: %v", err)
	}
	if v, _, err := q.Recall(t.Context(), KeptTallies, "0"); len(v) != maxKept || err != nil {
		t.Errorf("the first tally: got %d octets, %v", len(v), err)
	}
}

func TestOriginate(t *testing.T) {
	q := innerQueue(t)
	id := NewID()
	env := Envelope{Recipients: []Recipient{{Path: address.Path{Local: "bob", Domain: "example.net"}}}, HeaderFrom: "example.org", Accepted: time.Now()}
	for range 2 { // a repeat finds it
		if err := q.Originate(t.Context(), id, env, []byte("Subject: x\r\n\r\ny\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	c, err := q.Counts(t.Context())
	if err != nil || c.Mails != 1 {
		t.Errorf("got %+v, %v", c, err)
	}
	if q.Originate(t.Context(), NewID(), Envelope{}, nil) == nil {
		t.Error("without recipients: got no error")
	}
}
