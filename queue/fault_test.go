package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"postroad/queue/embedded"
)

func laneOfTest(domain string) string { return "lane-" + laneOf(domain) }

func TestRedeliveredJobGivesWayToHigherMove(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	j := q.storeMail(t, id, "example.com")[0]
	q.storeJob(t, q.readySpot("example.com"), j, 1)
	q.loseOne(t, streamJobs, laneOfTest("example.com"))
	deferred := q.storeJob(t, laterSpot("4h"), j, 2) // the worker came this far
	q.until(t, []string{mailSubject(KindMail, id), deferred.subject()}, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(_ context.Context, d *Delivery) { t.Errorf("handed out %+v", d.where) })
	})
}

func TestRedeliveredJobOfFinishedPart(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	jobs := q.storeMail(t, id, "example.com", "example.net")
	q.storeJob(t, q.readySpot("example.com"), jobs[0], 1)
	q.loseOne(t, streamJobs, laneOfTest("example.com"))
	for _, j := range jobs { // killed between `done` and the removal of the mail
		if _, err := q.put(t.Context(), streamMail, doneSubject(KindMail, id, j.Part), nil); err != nil {
			t.Fatal(err)
		}
	}
	q.until(t, nil, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(_ context.Context, d *Delivery) { t.Errorf("handed out %+v", d.where) })
	})
}

func TestJobWhoseMailIsGone(t *testing.T) {
	t.Parallel()
	q := innerQueue(t, nobodyElse)
	q.storeJob(t, q.readySpot("example.com"), Job{ID: NewID(), Kind: KindMail, Parts: 1, Domain: "example.com"}, 1)
	var asked atomic.Int64
	q.until(t, nil, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) {
			asked.Add(1)
			if _, err := d.Open(ctx); !errors.Is(err, ErrGone) {
				t.Errorf("Open: got %v, want ErrGone", err)
			}
		})
	})
	if n := asked.Load(); n != 1 {
		t.Errorf("handed out %d times", n)
	}
}

func TestUnsettledJobComesBack(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	j := q.storeMail(t, id, "example.com")[0]
	q.storeJob(t, q.readySpot("example.com"), j, 1)
	var tries atomic.Int64
	q.until(t, nil, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) {
			if tries.Add(1) == 2 {
				if err := d.Settle(ctx, Settlement{Tried: true}); err != nil {
					t.Error(err)
				}
			}
		})
	})
	if n := tries.Load(); n != 2 {
		t.Errorf("handed out %d times, want 2", n)
	}
}

// TestSlowHandlerKeepsItsJob: what is in hand longer than AckWait is given to nobody else.
func TestSlowHandlerKeepsItsJob(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	j := q.storeMail(t, NewID(), "example.com")[0]
	q.storeJob(t, q.readySpot("example.com"), j, 1)
	var tries atomic.Int64
	q.until(t, nil, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) {
			tries.Add(1)
			time.Sleep(3500 * time.Millisecond)
			if err := d.Settle(ctx, Settlement{Tried: true}); err != nil {
				t.Error(err)
			}
		})
	})
	if n := tries.Load(); n != 1 {
		t.Errorf("handed out %d times", n)
	}
}

func TestSignerDoesNotSignTwice(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	jobs := q.storeMail(t, id, "example.com", "example.net")
	q.loseOne(t, streamMail, signerConsumer)
	// Killed between the parts; the first part was deferred meanwhile. Its first job must not come again.
	first := q.storeJob(t, laterSpot("4h"), jobs[0], 2)
	second := ref{q.readySpot("example.net"), "example.net", id, 1, 1}
	var tries atomic.Int64
	q.until(t, []string{mailSubject(KindMail, id), first.subject(), second.subject()}, func(ctx context.Context) error {
		return q.Sign(ctx, 8, func(ctx context.Context, s *Signing) {
			tries.Add(1)
			if err := s.Signed(ctx, "X"); err != nil {
				t.Error(err)
			}
		})
	})
	if n := tries.Load(); n != 1 {
		t.Errorf("signed %d times", n)
	}
}

func TestSignerLeavesSignedMailAlone(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	j := q.storeMail(t, id, "example.com")[0]
	q.loseOne(t, streamMail, signerConsumer)
	moved := q.storeJob(t, laterSpot("4h"), j, 2) // signed, tried and deferred before the signer's ack was lost
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var signer sync.WaitGroup
	signer.Go(func() {
		if err := q.Sign(ctx, 8, func(_ context.Context, s *Signing) { t.Errorf("handed out %s", s.ID) }); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the signer does not let go of what was signed", func() bool {
		floor, err := q.ackFloor(t.Context(), streamMail, signerConsumer)
		return err == nil && floor > 0
	})
	cancel()
	signer.Wait()
	q.want(t, mailSubject(KindMail, id), moved.subject())
}

func TestSignerLater(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	q.storeMail(t, id, "example.com")
	var reasons []string
	var mu sync.Mutex
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.RunTimers(ctx) })
	wg.Go(func() {
		_ = q.Sign(ctx, 8, func(ctx context.Context, s *Signing) {
			mu.Lock()
			defer mu.Unlock()
			reasons = append(reasons, string(s.ID))
			if len(reasons) == 1 {
				if err := s.Later(ctx, time.Second, "no key"); err != nil {
					t.Error(err)
				}
				return
			}
			if err := s.Signed(ctx, "DKIM-Signature: x\r\n"); err != nil {
				t.Error(err)
			}
			cancel()
		})
	})
	wg.Wait()
	ready := ref{q.readySpot("example.com"), "example.com", id, 0, 3}
	q.want(t, mailSubject(KindMail, id), ready.subject())
}

func TestUnreadableJobIsHeld(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	r := ref{q.readySpot("example.com"), "example.com", NewID(), 0, 1}
	if _, err := q.put(t.Context(), streamJobs, r.subject(), []byte("PRJ9{}")); err != nil {
		t.Fatal(err)
	}
	held := r
	held.spot, held.move = heldSpot(holdUnreadable), 2
	q.until(t, []string{held.subject()}, func(ctx context.Context) error {
		return q.Deliver(ctx, 8, func(_ context.Context, d *Delivery) { t.Errorf("handed out %+v", d.where) })
	})
}

// A job names the mail of its subject, or nobody works on it: whoever may write jobs and marks but no mail cannot pass off one for the other.
func TestJobThatLiesIsHeld(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	forged, err := encodeMail(mailHeader{Envelope: sampleEnvelope(), Parts: 1, Size: 7}, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"mail." + string(id) + ".done.m"}
	if _, err := q.put(t.Context(), streamMail, want[0], forged); err != nil {
		t.Fatal(err)
	}
	for i, lie := range []func(*Job){
		func(j *Job) { j.ID += ".done" },
		func(j *Job) { j.ID = NewID() },
		func(j *Job) { j.Kind = "mail." + Kind(id) },
		func(j *Job) { j.Kind = "" },
		func(j *Job) { j.Part++ },
		func(j *Job) { j.Domain = "example.net" },
	} {
		for k, s := range []spot{signSpot("example.com"), q.readySpot("example.com"), laterSpot("10s")} {
			r := ref{s, "example.com", id, 10*i + k, 1}
			j := Job{ID: id, Kind: KindMail, Part: r.part, Parts: 100, Domain: r.domain}
			lie(&j)
			data, err := encodeJob(&j)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := q.put(t.Context(), r.stream(), r.subject(), data); err != nil {
				t.Fatal(err)
			}
			r.spot, r.move = heldSpot(holdUnreadable), 2
			want = append(want, r.subject())
		}
	}
	if n, err := q.Hold(t.Context(), Selection{}, "legal"); n != 0 || err != nil {
		t.Errorf("an operator moved %d, %v", n, err)
	}
	q.until(t, want, func(ctx context.Context) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _ = q.RunTimers(ctx) })
		wg.Go(func() {
			_ = q.Sign(ctx, 8, func(_ context.Context, s *Signing) { t.Errorf("handed to the signer: %+v", s.where) })
		})
		return q.Deliver(ctx, 8, func(_ context.Context, d *Delivery) { t.Errorf("handed out %+v", d.where) })
	})
}

// TestTimerYieldsToOperator: what the timer keeps in hand may be moved meanwhile; it must not come back.
func TestTimerYieldsToOperator(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	j := q.storeMail(t, id, "example.com")[0]
	q.storeJob(t, laterSpot("10s"), j, 2)
	held := ref{heldSpot("legal"), "example.com", id, 0, 3}
	job, err := q.getLeader(t.Context(), streamLater, ref{laterSpot("10s"), "example.com", id, 0, 2}.subject())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var timer sync.WaitGroup
	timer.Go(func() {
		if err := q.runTimer(ctx, "10s", 20*time.Second); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	inHand := func() int {
		q.hands.mu.Lock()
		defer q.hands.mu.Unlock()
		return len(q.hands.m)
	}
	eventually(t, "the timer does not take it in hand", func() bool { return inHand() == 1 })
	if n, err := q.Hold(t.Context(), Selection{ID: id}, "legal"); n != 1 || err != nil {
		t.Errorf("hold: %d, %v", n, err)
	}
	eventually(t, "the timer does not let go of it", func() bool { return inHand() == 0 && time.Since(job.time) >= 20*time.Second })
	cancel()
	timer.Wait()
	q.want(t, mailSubject(KindMail, id), held.subject())
}

func TestTimerMovesABacklog(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := oldID(time.Hour)
	q.storeMail(t, id, "example.com")
	for part := range 600 {
		q.storeJob(t, laterSpot("10s"), Job{ID: id, Kind: KindMail, Part: part, Parts: 600, Domain: "example.com"}, 1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var timers sync.WaitGroup
	timers.Go(func() { _ = q.RunTimers(ctx) })
	var c Counts
	for (c.Ready != 600 || c.Later["10s"] != 0) && ctx.Err() == nil {
		time.Sleep(200 * time.Millisecond)
		var err error
		if c, err = q.Counts(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cancel()
	timers.Wait()
	if c.Ready != 600 || c.Later["10s"] != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(1 << 20), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), Options{Connect: s.Connect, Node: "test", MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close(context.Background()); _ = s.Stop(context.Background()) }()
	body := strings.Repeat("x", 200<<10)
	var last error
	for range 10 {
		if last = q.Accept(t.Context(), NewID(), sampleEnvelope(), strings.NewReader(body)); last != nil {
			break
		}
	}
	if !errors.Is(last, ErrFull) {
		t.Errorf("a full stream answers %v, want ErrFull", last)
	}
	eventually(t, "Full() does not show the watermark", q.Full)
}

func TestReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id := NewID()
	for run := range 2 {
		s, err := embedded.Start(embedded.Options{Dir: dir, MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		q, err := Open(t.Context(), Options{Connect: s.Connect, Node: "test", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if run == 0 {
			q.storeMail(t, id, "example.com")
		} else {
			if _, err := q.Recover(t.Context()); err != nil {
				t.Error(err)
			}
			q.want(t, mailSubject(KindMail, id))
		}
		if err := q.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestLostConsumerIsAnIncident(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	q.storeMail(t, NewID(), "example.com")
	if err := q.js.DeleteConsumer(t.Context(), streamMail, signerConsumer); err != nil {
		t.Fatal(err)
	}
	err := q.ensure(t.Context())
	if !errors.Is(err, errConsumerLost) || !strings.Contains(err.Error(), "--recreate-consumers") {
		t.Errorf("got %v", err)
	}
	q.o.RecreateConsumers = true
	if err := q.ensure(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRefusesServerWithoutJetStream(t *testing.T) {
	t.Parallel()
	_, err := openOn(t, &server.Options{DontListen: true, NoSigs: true}, Options{})
	if err == nil || !strings.Contains(err.Error(), "has no JetStream") {
		t.Errorf("got %v", err)
	}
}

func TestRefusesTooFewServers(t *testing.T) {
	t.Parallel()
	_, err := openOn(t, &server.Options{DontListen: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40}, Options{Replicas: 3, MaxBytes: 1 << 20})
	if err == nil || !strings.Contains(err.Error(), "queue.replicas") {
		t.Errorf("got %v", err)
	}
}

func openOn(t *testing.T, so *server.Options, o Options) (*Queue, error) {
	t.Helper()
	s, err := server.NewServer(so)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("server does not start")
	}
	o.Node, o.Logger = "test", slog.New(slog.DiscardHandler)
	o.Connect = func(extra ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("", append(extra, nats.InProcessServer(s))...)
	}
	return Open(t.Context(), o)
}

func TestLeaseHasOneHolder(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	var holders, most, total atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			q.holdLease(ctx, "test", func(ctx context.Context) {
				total.Add(1)
				if n := holders.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer holders.Add(-1)
				<-ctx.Done()
			})
		})
	}
	eventually(t, "nobody gets the lease", func() bool { return total.Load() > 0 })
	time.Sleep(2*leaseTTL/5 + time.Second) // two tries of the others
	cancel()
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d holders at once, %d in all", most.Load(), total.Load())
	}
}

// TestCutContentIsNoEnd: when the reader's context ends in the middle of a chunked mail, the reader must see an error, for
// an end of file would make half a mail look whole.
func TestCutContentIsNoEnd(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id := NewID()
	if err := q.Accept(t.Context(), id, sampleEnvelope(), strings.NewReader(strings.Repeat("x", 5<<20))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := q.openContent(ctx, KindMail, id, mailHeader{Chunks: 10, Size: 5 << 20}, nil)
	defer func() { _ = r.Close() }()
	if _, err := io.CopyN(io.Discard, r, 600<<10); err != nil {
		t.Fatal(err)
	}
	cancel()
	n, err := io.Copy(io.Discard, r)
	if err == nil || n > 4<<20 {
		t.Errorf("after the cut: %d octets more, error %v", n, err)
	}
}

// TestBusyDomainLeavesTheLane: what a worker puts off without a try goes to a slow lane when it is ready again, in every
// process, and the domain comes back from there by itself.
func TestBusyDomainLeavesTheLane(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	other, err := Open(t.Context(), Options{Connect: q.o.Connect, Node: "other", MaxBytes: 1 << 30, Logger: q.o.Logger, leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close(context.Background()) }()
	if got := other.readySpot("dead.example").detail; got != laneOf("dead.example") {
		t.Errorf("before: lane %q", got)
	}
	j := q.storeMail(t, NewID(), "dead.example")[0]
	q.storeJob(t, q.readySpot("dead.example"), j, 1)
	var lanes []string
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var roles sync.WaitGroup
	roles.Go(func() { _ = other.RunTimers(ctx) })
	roles.Go(func() {
		_ = q.Deliver(ctx, 16, func(ctx context.Context, d *Delivery) {
			lanes = append(lanes, d.where.detail)
			s := Settlement{}
			if len(lanes) == 1 {
				s.Remaining = d.Job.Recipients
			} else {
				defer cancel()
			}
			if err := d.Settle(ctx, s); err != nil {
				t.Error(err)
			}
		})
	})
	roles.Wait()
	if want := []string{laneOf("dead.example"), slowLane("dead.example")}; !slices.Equal(lanes, want) {
		t.Errorf("went through lanes %q, want %q", lanes, want)
	}
	q.want(t)
	var s slowDomains
	s.m = make(map[string]slowDomain)
	now := time.Now()
	if !s.mark("d", now) || s.mark("d", now.Add(time.Second)) || !s.mark("d", now.Add(slowTell)) {
		t.Error("it is to be told at once, and again after slowTell")
	}
	if !s.has("d", now.Add(slowFor)) || s.has("d", now.Add(slowTell+slowFor)) || s.has("other", now) {
		t.Error("a domain is slow for slowFor")
	}
	for i := range slowAfter + 5 {
		if got, want := s.deferred("x", now), i+1 >= slowAfter; got != want {
			t.Errorf("deferral %d: %v, want %v", i+1, got, want)
		}
	}
	if s.delivered("x"); s.deferred("x", now) {
		t.Error("a delivery ends the row")
	}
	for i := range maxSlow + 10 {
		s.mark(fmt.Sprint(i), now)
	}
	if len(s.m) > maxSlow {
		t.Errorf("%d domains remembered", len(s.m))
	}
}

// TestTraceReadsManyBundles: more than one request brings, from the beginning and from a time on.
func TestTraceReadsManyBundles(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	id, began := NewID(), time.Now()
	for i := range 3*batchSize + 5 {
		q.Record(Event{Type: Admin, ID: id, Part: i})
		q.events.flush(t.Context())
	}
	for _, since := range []time.Time{{}, began.Add(-time.Minute)} {
		n := 0
		for e, err := range q.Trace(t.Context(), TraceFilter{Since: since, Client: ""}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Part != n {
				t.Fatalf("event %d is number %d", e.Part, n)
			}
			n++
		}
		if n != 3*batchSize+5 {
			t.Errorf("since %v: %d events", since, n)
		}
	}
	for e, err := range q.Trace(t.Context(), TraceFilter{Since: time.Now().Add(time.Hour)}) {
		t.Errorf("of the future: %+v, %v", e, err)
	}
}

// TestMissingConsumerComesBack: a lane whose consumer was removed goes on once it is made again.
func TestMissingConsumerComesBack(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	name := q.readySpot("example.com").consumer()
	if err := q.js.DeleteConsumer(t.Context(), streamJobs, name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var found sync.WaitGroup
	found.Go(func() {
		if _, err := q.consumer(ctx, streamJobs, name); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(time.Second) // most likely it has looked for it
	if err := q.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	found.Wait()
}
