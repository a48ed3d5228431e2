package queue

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"postroad/queue/address"
	"postroad/queue/embedded"
)

// innerQueue is a queue whose streams a test may fill by hand. It waits a minute for each answer: a disk may stand still for some seconds.
func innerQueue(t *testing.T, change ...func(*Options)) *Queue {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Connect: s.Connect, Node: "test", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), AckWait: time.Second, leeway: time.Minute}
	for _, c := range change {
		c(&o)
	}
	q, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

// oldID is the id of a message that was accepted some time ago.
func oldID(ago time.Duration) MessageID {
	return fromULID(ulid.MustNew(ulid.Timestamp(time.Now().Add(-ago)), ulid.DefaultEntropy()), firstShard)
}

func (q *Queue) storeMail(t *testing.T, id MessageID, domains ...string) []Job {
	t.Helper()
	e := Envelope{Accepted: id.Time(), ReversePath: address.Path{Local: "s", Domain: "example.org"}}
	for _, d := range domains {
		e.Recipients = append(e.Recipients, Recipient{Path: address.Path{Local: "r", Domain: d}})
	}
	if err := q.Accept(t.Context(), id, e, strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	s := Signing{ID: id, Kind: KindMail, Envelope: e, head: mailHeader{Envelope: e, Size: 7}, seq: 1}
	return s.jobs()
}

func (q *Queue) storeJob(t *testing.T, s spot, j Job, move int) ref {
	t.Helper()
	r := ref{s, j.Domain, j.ID, j.Part, move}
	if err := q.putJob(t.Context(), r, j); err != nil {
		t.Fatal(err)
	}
	return r
}

// What may have been delivered goes back to its sender only when an operator names it.
func TestReturnSparesWhatARestartBroughtBack(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	q.storeJob(t, heldSpot(HoldReturned), q.storeMail(t, id, "example.com")[0], 2)
	time.Sleep(5 * time.Millisecond)
	if n, err := q.Return(t.Context(), Selection{HeldFor: time.Millisecond}, "too old"); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := q.Return(t.Context(), Selection{ID: id, HeldFor: time.Millisecond}, "too old"); n != 1 || err != nil {
		t.Errorf("by its id: got %d, %v", n, err)
	}
}

// signerDone makes the signer let go of everything without making a job.
func (q *Queue) signerDone(t *testing.T, n int) {
	t.Helper()
	c, err := q.js.Consumer(t.Context(), streamMail, signerConsumer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Fetch(n)
	if err != nil {
		t.Fatal(err)
	}
	for m := range b.Messages() {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// contents is all that lies in the three streams.
func (q *Queue) contents(t *testing.T) map[string]bool {
	t.Helper()
	out := make(map[string]bool)
	for _, s := range []string{streamMail, streamJobs, streamLater} {
		if _, err := q.subjects(t.Context(), s, ">", func(s string) { out[s] = true }); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func (q *Queue) want(t *testing.T, subjects ...string) {
	t.Helper()
	want := make(map[string]bool)
	for _, s := range subjects {
		want[s] = true
	}
	if d := cmp.Diff(want, q.contents(t)); d != "" {
		t.Errorf("what lies in the streams (-want +got):\n%s", d)
	}
}

func (q *Queue) pass(t *testing.T) ReconcileReport {
	t.Helper()
	r, err := q.Reconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReconcileKeepsHighestMove(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	j := q.storeMail(t, id, "example.com")[0]
	q.storeJob(t, q.readySpot("example.com"), j, 1)
	q.storeJob(t, laterSpot("5m"), j, 2)
	top := q.storeJob(t, laterSpot("1m"), j, 4)
	q.storeJob(t, q.readySpot("example.com"), j, 3)
	if r := q.pass(t); r.LowerMoves != 3 {
		t.Errorf("report %+v", r)
	}
	q.want(t, mailSubject(KindMail, id), top.subject())
}

func TestReconcileTieKeepsDeferral(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	j := q.storeMail(t, id, "example.com")[0]
	q.storeJob(t, heldSpot("legal"), j, 2)
	deferred := q.storeJob(t, laterSpot("1m"), j, 2)
	q.storeJob(t, q.readySpot("example.com"), j, 2)
	q.pass(t)
	q.want(t, mailSubject(KindMail, id), deferred.subject())
}

func TestReconcileDropsWorkWithoutMail(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id, young := oldID(time.Hour), NewID()
	q.storeJob(t, q.readySpot("example.com"), Job{ID: id, Kind: KindMail, Parts: 1, Domain: "example.com"}, 1)
	if _, err := q.put(t.Context(), streamMail, doneSubject(KindMail, id, 1), nil); err != nil {
		t.Fatal(err)
	}
	// A young one may belong to a mail that this listing did not see yet.
	kept := q.storeJob(t, q.readySpot("example.com"), Job{ID: young, Kind: KindMail, Parts: 1, Domain: "example.com"}, 1)
	if r := q.pass(t); r.Orphans != 2 {
		t.Errorf("report %+v", r)
	}
	q.want(t, kept.subject())
}

func TestReconcileFinishesWhatIsDone(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	jobs := q.storeMail(t, id, "example.com", "example.net")
	q.signerDone(t, 1)
	for _, j := range jobs {
		if _, err := q.put(t.Context(), streamMail, doneSubject(KindMail, id, j.Part), nil); err != nil {
			t.Fatal(err)
		}
	}
	if r := q.pass(t); r.Finished != 1 {
		t.Errorf("report %+v", r)
	}
	q.want(t)
}

func TestReconcileRemovesAbandonedChunks(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	old, young := oldID(3*time.Hour), oldID(time.Hour)
	for _, id := range []MessageID{old, young} {
		if _, err := q.put(t.Context(), streamMail, chunkSubject(KindMail, id, 0), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	// They came this moment: the clock of their ingress is behind, and the mail that they are of may be coming.
	if r := q.pass(t); r.Chunks != 0 {
		t.Errorf("chunks that have just come: report %+v", r)
	}
	q.want(t, chunkSubject(KindMail, old, 0), chunkSubject(KindMail, young, 0))
	q.patience = time.Millisecond
	if r := q.pass(t); r.Chunks != 1 {
		t.Errorf("report %+v", r)
	}
	q.want(t, chunkSubject(KindMail, young, 0))
}

func TestReconcileLeavesUnsignedMailToTheSigner(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	q.storeMail(t, id, "example.com")
	for range 3 {
		if r := q.pass(t); r.SetAside+r.Suspects != 0 {
			t.Errorf("report %+v", r)
		}
	}
	q.want(t, mailSubject(KindMail, id))
}

func TestReconcileSetsReturnedMailAside(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	q.storeMail(t, id, "example.com")
	q.signerDone(t, 1)
	if r := q.pass(t); r.Suspects != 1 || r.SetAside != 0 {
		t.Errorf("first pass: %+v", r)
	}
	if r := q.pass(t); r.SetAside != 1 {
		t.Errorf("second pass: %+v", r)
	}
	held := ref{heldSpot(HoldReturned), "example.com", id, 0, returnedMove}
	q.want(t, mailSubject(KindMail, id), held.subject())
	if n, err := q.Retry(t.Context(), Selection{ID: id}); n != 1 || err != nil {
		t.Fatalf("retry: %d, %v", n, err)
	}
	again := ref{signSpot("example.com"), "example.com", id, 0, returnedMove + 1}
	q.want(t, mailSubject(KindMail, id), again.subject())
}

func TestReconcileRemovesReturnedMailWhoseEndIsOnRecord(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Minute)
	q.storeMail(t, id, "example.com")
	q.signerDone(t, 1)
	q.Record(Event{Type: Finished, ID: id})
	q.events.flush(t.Context())
	if r := q.pass(t); r.Finished != 1 || r.SetAside+r.Suspects != 0 {
		t.Errorf("report %+v", r)
	}
	q.want(t)
}

func TestReconcileIsIdempotent(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	j := q.storeMail(t, id, "example.com", "example.net")
	q.storeJob(t, q.readySpot("example.com"), j[0], 1)
	q.storeJob(t, laterSpot("4h"), j[1], 2)
	q.signerDone(t, 1)
	before := q.contents(t)
	for range 3 {
		if r := q.pass(t); r != (ReconcileReport{Jobs: 2, Mails: 1}) {
			t.Errorf("report %+v", r)
		}
	}
	if d := cmp.Diff(before, q.contents(t)); d != "" {
		t.Error(d)
	}
}
