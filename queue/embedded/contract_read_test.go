package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// TestPurgeByFilterAndSequence: one request removes what lies below a sequence and matches a filter, also from
// a work queue with consumers; what they have in hand and what they will hand out later stays right.
func TestPurgeByFilterAndSequence(t *testing.T) {
	js, stream := contract(t, jobs())
	lane := consumer(t, js, "JOBS", "lane-1", "ready.1.>")
	other := consumer(t, js, "JOBS", "lane-2", "ready.2.>")
	var acks []*jetstream.PubAck
	for i := range 4 {
		acks = append(acks, publish(t, js, fmt.Sprintf("ready.1.%d", i)))
		publish(t, js, fmt.Sprintf("ready.2.%d", i))
	}
	err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("ready.1.>"), jetstream.WithPurgeSequence(acks[2].Sequence))
	if err != nil {
		t.Fatal(err)
	}
	if n := pending(t, lane).NumPending; n != 2 {
		t.Errorf("lane 1 has %d pending, want 2: the purge goes up to the sequence, not including it", n)
	}
	for _, want := range []string{"ready.1.2", "ready.1.3"} {
		msg := next(t, lane)
		if msg.Subject() != want {
			t.Errorf("lane 1 got %s, want %s", msg.Subject(), want)
		}
	}
	none(t, lane)
	if n := pending(t, other).NumPending; n != 4 {
		t.Errorf("lane 2 has %d pending, want 4", n)
	}
}

// TestPurgeKeepOrSequence: keep and sequence exclude each other.
func TestPurgeKeepOrSequence(t *testing.T) {
	js, stream := contract(t, jobs())
	publish(t, js, "ready.1")
	err := stream.Purge(t.Context(), jetstream.WithPurgeKeep(1), jetstream.WithPurgeSequence(2))
	if err == nil {
		t.Error("keep and sequence together are accepted")
	}
}

// TestPurgeOfOneMailWithItsMarks: one request removes the mail, its marks and its chunks; the answer comes when
// they are gone.
func TestPurgeOfOneMailWithItsMarks(t *testing.T) {
	js, stream := contract(t, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}})
	for _, s := range []string{"mail.a.c.0", "mail.a.c.1", "mail.a.m", "mail.a.done.0", "mail.ab.m"} {
		publish(t, js, s)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("mail.a.>")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uint64{"mail.ab.m": 1}, subjects(t, stream, ">")); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("mail.a.>")); err != nil {
		t.Errorf("purge of what is not there: %v", err)
	}
}

// TestInfoShowsSubjectsAndLastSequence: one answer tells what is there and how far the server has come. Only with
// both is "not found" a fact.
func TestInfoShowsSubjectsAndLastSequence(t *testing.T) {
	js, stream := contract(t, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}})
	publish(t, js, "mail.a.done.0")
	publish(t, js, "mail.a.done.1")
	last := publish(t, js, "mail.b.m")
	for filter, want := range map[string]map[string]uint64{
		"mail.a.done.>": {"mail.a.done.0": 1, "mail.a.done.1": 1},
		"mail.c.>":      {},
	} {
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(filter))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, info.State.Subjects); diff != "" {
			t.Errorf("%s (-want +got):\n%s", filter, diff)
		}
		if info.State.LastSeq != last.Sequence {
			t.Errorf("%s: got last sequence %d, want %d", filter, info.State.LastSeq, last.Sequence)
		}
	}
}

// TestGetByLeaderOrDirect: AllowDirect decides for the whole stream which way the client reads. A request to the
// API goes to the leader whatever AllowDirect says; it has to be made by hand.
func TestGetByLeaderOrDirect(t *testing.T) {
	js, stream := contract(t, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}, AllowDirect: true})
	publish(t, js, "mail.a.m")

	if _, err := stream.GetLastMsgForSubject(t.Context(), "mail.a.m"); err != nil {
		t.Errorf("direct get: %v", err)
	}
	if _, err := stream.GetLastMsgForSubject(t.Context(), "mail.b.m"); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("direct get of nothing: got %v, want %v", err, jetstream.ErrMsgNotFound)
	}
	ask := func(subject string) (answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
		} `json:"message"`
	}) {
		t.Helper()
		reply, err := js.Conn().Request("$JS.API.STREAM.MSG.GET.MAIL", []byte(`{"last_by_subj":"`+subject+`"}`), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(reply.Data, &answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if a := ask("mail.a.m"); a.Error != nil || a.Message.Seq != 1 {
		t.Errorf("leader get: got %+v", a)
	}
	if a := ask("mail.b.m"); a.Error == nil || a.Error.ErrorCode != jetstream.JSErrCodeMessageNotFound {
		t.Errorf("leader get of nothing: got %+v, want code %d", a, jetstream.JSErrCodeMessageNotFound)
	}
}

// TestGetNextBySubject: the first message of a filter at or after a sequence can be asked for without a consumer.
func TestGetNextBySubject(t *testing.T) {
	js, stream := contract(t, jobs())
	publish(t, js, "ready.1.a")
	publish(t, js, "ready.2.b")
	publish(t, js, "ready.1.c")
	msg, err := stream.GetMsg(t.Context(), 2, jetstream.WithGetMsgSubject("ready.1.>"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := msg.Subject, "ready.1.c"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestKeyTTL: a lease is a key that goes away by itself; the bucket needs LimitMarkerTTL, and a renewal that does
// not carry the TTL again lasts for ever.
func TestKeyTTL(t *testing.T) {
	s := start(t, Options{})
	_, js := connect(t, s)
	ctx := t.Context()
	plain, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "plain"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = plain.Create(ctx, "lease", nil, jetstream.KeyTTL(time.Second))
	wantCode(t, err, 10166) // per-message TTL is disabled

	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "leases", LimitMarkerTTL: time.Minute, Storage: jetstream.FileStorage})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := kv.Create(ctx, "held", []byte("node-1"), jetstream.KeyTTL(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(ctx, "held", []byte("node-2"), jetstream.KeyTTL(time.Second)); !errors.Is(err, jetstream.ErrKeyExists) {
		t.Errorf("second create: got %v, want %v", err, jetstream.ErrKeyExists)
	}
	if _, err := kv.Update(ctx, "held", []byte("node-2"), rev+5); !errors.Is(err, jetstream.ErrKeyExists) {
		t.Errorf("update of another revision: got %v, want %v", err, jetstream.ErrKeyExists)
	}
	w, err := kv.Watch(ctx, "lease", jetstream.UpdatesOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Stop() }()
	if _, err := kv.Create(ctx, "lease", []byte("node-1"), jetstream.KeyTTL(time.Second)); err != nil {
		t.Fatal(err)
	}
	for end, is := time.After(time.Minute), jetstream.KeyValuePut; is == jetstream.KeyValuePut; {
		select {
		case e := <-w.Updates():
			if is = e.Operation(); is != jetstream.KeyValuePut && is != jetstream.KeyValuePurge {
				t.Errorf("got operation %v, want the mark of a limit", is)
			}
		case <-end:
			t.Fatal("the lease does not end")
		}
	}
	if _, err := kv.Create(ctx, "lease", []byte("node-2"), jetstream.KeyTTL(time.Second)); err != nil {
		t.Errorf("create after the end of the lease: %v", err)
	}
}

// TestRenewalWithoutTTL: the client's Update makes a lease last for ever; a renewal has to be published with the
// TTL, under the name of the key, expecting the revision.
func TestRenewalWithoutTTL(t *testing.T) {
	s := start(t, Options{})
	_, js := connect(t, s)
	ctx := t.Context()
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "leases", LimitMarkerTTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"updated", "published"} {
		await(t, "the renewal of a lease before its end", func() bool {
			rev, err := kv.Create(ctx, key, nil, jetstream.KeyTTL(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if key == "updated" {
				_, err = kv.Update(ctx, key, nil, rev)
			} else {
				_, err = js.Publish(ctx, "$KV.leases."+key, nil, jetstream.WithMsgTTL(time.Second), jetstream.WithExpectLastSequencePerSubject(rev))
			}
			api, is := errors.AsType[*jetstream.APIError](err)
			if err != nil && (!is || api.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequence) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	await(t, "the published lease to end", func() bool {
		_, err := kv.Get(ctx, "published")
		return errors.Is(err, jetstream.ErrKeyNotFound)
	})
	if _, err := kv.Get(ctx, "updated"); err != nil {
		t.Errorf("the updated lease: got %v, want it to last", err)
	}
}
