package queue

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue/address"
)

func TestE6_82_Origin(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	id, other := NewID(), NewID()
	for i := range 3 {
		for _, of := range []MessageID{other, id} {
			q.Record(Event{Type: Reception, ID: of, Sender: "alice@example.org", Recipient: fmt.Sprintf("r%d@example.net", i), Client: "web", Class: "news", MessageID: "<1@example.org>",
				RequireTLS: of == id, Notify: []string{"", "NEVER", "SUCCESS,DELAY"}[i]})
		}
	}
	q.Record(Event{Type: Delivered, ID: id, Sender: "eve@example.org", Recipient: "eve@example.net"})
	q.events.flush(ctx)
	got, err := q.Origin(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	want := Origin{Sender: address.Path{Local: "alice", Domain: "example.org"}, Client: "web", Class: "news", MessageID: "<1@example.org>", RequireTLS: true}
	for i, notify := range [][]string{nil, {"NEVER"}, {"SUCCESS", "DELAY"}} {
		want.Recipients = append(want.Recipients, Recipient{Path: address.Path{Local: fmt.Sprintf("r%d", i), Domain: "example.net"}, Notify: notify})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// The process that took it was killed before it had noted that: what others noted will do.
	killed := NewID()
	q.Record(Event{Type: Delivered, ID: killed, Sender: "alice@example.org", Recipient: "r@example.net", Client: "web", Notify: "NEVER", RequireTLS: true})
	q.events.flush(ctx)
	want = Origin{Sender: want.Sender, Client: "web", IsPartial: true, RequireTLS: true,
		Recipients: []Recipient{{Path: address.Path{Local: "r", Domain: "example.net"}, Notify: []string{"NEVER"}}}}
	if got, err = q.Origin(ctx, killed); err != nil || !cmp.Equal(want, got) {
		t.Errorf("without its reception: got %+v, %v, want %+v", got, err, want)
	}
	if _, err := q.Origin(ctx, NewID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown message: got %v, want %v", err, ErrNotFound)
	}
	if _, err := q.Origin(ctx, "x"); !errors.Is(err, ErrMalformedID) {
		t.Errorf("no id: got %v, want %v", err, ErrMalformedID)
	}
}

// TestE6_81_OriginOfDeliveries: where only deliveries are on record, each says whom it came from: the owner of a list, or the sender.
func TestE6_81_OriginOfDeliveries(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	for recipient, sender := range map[string]string{"bob@example.net": "alice@example.org", "carol@example.net": "boss@example.org"} {
		q.Record(Event{Type: Delivered, ID: id, Sender: sender, Recipient: recipient})
	}
	q.events.flush(t.Context())
	o, err := q.Origin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for local, want := range map[string]string{"bob": "alice@example.org", "carol": "boss@example.org"} {
		if got := o.SenderTo(address.Path{Local: local, Domain: "example.net"}).String(); got != want {
			t.Errorf("of %s %s is told, want %s", local, got, want)
		}
	}
}

// What is not looked through to its end gives no answer, neither that there was no such message nor that these were all of its recipients.
func TestOriginBehindManyFacts(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	lost, half := NewID(), NewID()
	note := func(e Event) {
		q.Record(e)
		q.events.flush(ctx)
	}
	note(Event{Type: Reception, ID: half, Sender: "alice@example.org", Recipient: "a@example.net"})
	usual := maxOriginFacts
	maxOriginFacts = 2000
	t.Cleanup(func() { maxOriginFacts = usual })
	note(Event{Type: Delivered, ID: NewID(), Text: strings.Repeat("x", maxOriginFacts)})
	note(Event{Type: Reception, ID: half, Sender: "alice@example.org", Recipient: "b@example.net"})
	note(Event{Type: Reception, ID: lost, Sender: "alice@example.org", Recipient: "a@example.net"})
	for _, id := range []MessageID{lost, half} {
		if got, err := q.Origin(ctx, id); !errors.Is(err, ErrTooManyFacts) {
			t.Errorf("got %+v, %v, want %v", got, err, ErrTooManyFacts)
		}
	}
}

func TestSharedKeys(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	if keys, err := q.SharedKeys(ctx, "a"); err != nil || len(keys) != 0 {
		t.Errorf("got %v, %v before there are any", keys, err)
	}
	keep := func(every, kept time.Duration, want int) []SharedKey {
		t.Helper()
		if err := q.KeepSharedKeys(ctx, "a", every, kept); err != nil {
			t.Fatal(err)
		}
		keys, err := q.SharedKeys(ctx, "a")
		if err != nil || len(keys) != want {
			t.Fatalf("got %d keys, %v, want %d", len(keys), err, want)
		}
		return keys
	}
	first := keep(time.Hour, time.Hour, 1)
	if again := keep(time.Hour, time.Hour, 1); !cmp.Equal(first, again) {
		t.Error("a young key was replaced")
	}
	second := keep(0, time.Hour, 2)
	if !second[0].Made.After(second[1].Made) || !cmp.Equal(second[1], first[0]) || cmp.Equal(second[0].Secret, second[1].Secret) || len(second[0].Secret) != sharedKeyBytes {
		t.Errorf("got %v after %v", second, first)
	}
	third := keep(0, time.Nanosecond, 2) // the one that it replaces is kept from now on
	if !cmp.Equal(third[1], second[0]) {
		t.Errorf("got %v after %v", third, second)
	}
	if keys, err := q.SharedKeys(ctx, "b"); err != nil || len(keys) != 0 {
		t.Errorf("another name: got %v, %v", keys, err)
	}
}
