package embedded

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// consumer makes a durable pull consumer as the queue does.
func consumer(t *testing.T, js jetstream.JetStream, stream, name, filter string, change ...func(*jetstream.ConsumerConfig)) jetstream.Consumer {
	t.Helper()
	cfg := jetstream.ConsumerConfig{
		Durable: name, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 1000,
	}
	for _, c := range change {
		c(&cfg)
	}
	c, err := js.CreateConsumer(t.Context(), stream, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func next(t *testing.T, c jetstream.Consumer) jetstream.Msg {
	t.Helper()
	msg, err := c.Next(jetstream.FetchMaxWait(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// none checks that the consumer has nothing to hand out.
func none(t *testing.T, c jetstream.Consumer) {
	t.Helper()
	batch, err := c.FetchNoWait(10)
	if err != nil {
		t.Fatal(err)
	}
	for msg := range batch.Messages() {
		t.Errorf("consumer hands out %s", msg.Subject())
	}
	if err := batch.Error(); err != nil {
		t.Error(err)
	}
}

func stored(t *testing.T, s jetstream.Stream) uint64 {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

func subjects(t *testing.T, s jetstream.Stream, filter string) map[string]uint64 {
	t.Helper()
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(filter))
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Subjects
}

func pending(t *testing.T, c jetstream.Consumer) *jetstream.ConsumerInfo {
	t.Helper()
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestNakWithDelayStaysPending: what waits with a delay counts against MaxAckPending and blocks the consumer.
// Hence the stream LATER.
func TestNakWithDelayStaysPending(t *testing.T) {
	js, _ := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>", func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 2 })
	for i := range 3 {
		publish(t, js, fmt.Sprintf("ready.%d", i))
	}
	for range 2 {
		if err := next(t, c).NakWithDelay(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "both messages to count", func() bool { return pending(t, c).NumAckPending == 2 })
	none(t, c)
}

// TestDoubleAck: it waits for the removal from a work queue, answers also for a message that an operator has
// deleted meanwhile, and answers a second time; so its success says nothing about the message.
func TestDoubleAck(t *testing.T) {
	js, stream := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>")
	publish(t, js, "ready.1")
	deleted := publish(t, js, "ready.2")
	first, second := next(t, c), next(t, c)
	if err := first.DoubleAck(t.Context()); err != nil {
		t.Errorf("first ack: %v", err)
	}
	if n := stored(t, stream); n != 1 {
		t.Errorf("got %d messages after the ack, want 1", n)
	}
	if err := first.DoubleAck(t.Context()); !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		t.Errorf("second ack of the same message: got %v, want %v", err, jetstream.ErrMsgAlreadyAckd)
	}
	if err := stream.DeleteMsg(t.Context(), deleted.Sequence); err != nil {
		t.Fatal(err)
	}
	if err := second.DoubleAck(t.Context()); err != nil {
		t.Errorf("ack of a deleted message: %v", err)
	}
}

// TestAckWithOlderToken: a worker that was too slow acks with the token of its own delivery; that acks the
// message although it has been handed out again.
func TestAckWithOlderToken(t *testing.T) {
	js, stream := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>", func(c *jetstream.ConsumerConfig) { c.AckWait = 100 * time.Millisecond })
	publish(t, js, "ready.1")
	slow := next(t, c)
	again := next(t, c)
	meta, err := again.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	if meta.NumDelivered != 2 {
		t.Errorf("got delivery %d, want 2", meta.NumDelivered)
	}
	if err := slow.DoubleAck(t.Context()); err != nil {
		t.Errorf("ack with the older token: %v", err)
	}
	if n := stored(t, stream); n != 0 {
		t.Errorf("got %d messages after the older token's ack, want 0", n)
	}
	if err := again.DoubleAck(t.Context()); err != nil {
		t.Errorf("ack with the newer token: %v", err)
	}
}

// TestInProgressKeepsTheMessage: InProgress restarts AckWait, counted from its arrival.
func TestInProgressKeepsTheMessage(t *testing.T) {
	t.Parallel()
	js, _ := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>", func(c *jetstream.ConsumerConfig) { c.AckWait = 10 * time.Second })
	publish(t, js, "ready.1")
	msg := next(t, c)
	for range 4 {
		time.Sleep(3 * time.Second)
		if err := msg.InProgress(); err != nil {
			t.Fatal(err)
		}
		none(t, c)
	}
}

// TestFetchMaxWait: a batch ends with what there is when the time is over, without an error.
func TestFetchMaxWait(t *testing.T) {
	t.Parallel()
	js, _ := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>")
	fetch := func(wait time.Duration) (n int, took time.Duration) {
		began := time.Now()
		batch, err := c.Fetch(5, jetstream.FetchMaxWait(wait))
		if err != nil {
			t.Fatal(err)
		}
		for range batch.Messages() {
			n++
		}
		if err := batch.Error(); err != nil {
			t.Errorf("batch ended with %v", err)
		}
		return n, time.Since(began)
	}
	if n, took := fetch(200 * time.Millisecond); n != 0 || took < 150*time.Millisecond {
		t.Errorf("empty queue: got %d messages after %v", n, took)
	}
	publish(t, js, "ready.1")
	publish(t, js, "ready.2")
	if n, took := fetch(8 * time.Second); n != 2 || took < 6*time.Second {
		t.Errorf("two of five: got %d messages after %v", n, took)
	}
	for i := range 5 {
		publish(t, js, fmt.Sprintf("ready.more.%d", i))
	}
	if n, took := fetch(5 * time.Minute); n != 5 || took > 4*time.Minute {
		t.Errorf("five of five: got %d messages after %v", n, took)
	}
}

// TestLanesDoNotOverlap: consumers of a work queue may not share a subject, and tokens of a long subject filter
// as any others.
func TestLanesDoNotOverlap(t *testing.T) {
	js, _ := contract(t, jobs())
	lane := consumer(t, js, "JOBS", "lane-3", "ready.3.>")
	consumer(t, js, "JOBS", "lane-4", "ready.4.>")
	exact := consumer(t, js, "JOBS", "lane-5", "ready.5.*.*.*.*")
	_, err := js.CreateConsumer(t.Context(), "JOBS", jetstream.ConsumerConfig{
		Durable: "all", FilterSubject: "ready.*.example_com.>", AckPolicy: jetstream.AckExplicitPolicy,
	})
	wantCode(t, err, 10100) // filtered consumer not unique on workqueue stream

	publish(t, js, "ready.4.example_com.id.0.1")
	publish(t, js, "ready.5.example_com.id.0.1")
	publish(t, js, "ready.3.example_com.id.0.1")
	if got, want := next(t, lane).Subject(), "ready.3.example_com.id.0.1"; got != want {
		t.Errorf("lane 3 got %s, want %s", got, want)
	}
	if got, want := next(t, exact).Subject(), "ready.5.example_com.id.0.1"; got != want {
		t.Errorf("six tokens: got %s, want %s", got, want)
	}
	none(t, lane)
	if n := pending(t, lane).NumPending; n != 0 {
		t.Errorf("lane 3 has %d pending, want 0: the others' messages do not count", n)
	}
}

// TestUnfilteredMessageStays: a work queue keeps what no consumer wants.
func TestUnfilteredMessageStays(t *testing.T) {
	js, stream := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.1.>")
	publish(t, js, "ready.2.a")
	publish(t, js, "ready.1.a")
	if err := next(t, c).DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uint64{"ready.2.a": 1}, subjects(t, stream, ">")); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

// TestDeletedWhileInHand: a message that is purged while a worker holds it is not handed out again, and no
// longer counts as pending.
func TestDeletedWhileInHand(t *testing.T) {
	js, stream := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>", func(c *jetstream.ConsumerConfig) { c.AckWait = 100 * time.Millisecond })
	publish(t, js, "ready.1")
	next(t, c)
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("ready.1")); err != nil {
		t.Fatal(err)
	}
	if n := pending(t, c).NumAckPending; n != 0 {
		t.Errorf("got %d pending after the purge, want 0", n)
	}
	time.Sleep(150 * time.Millisecond)
	none(t, c)
}
