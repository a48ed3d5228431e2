package embedded

// The contract tests pin what the queue rests on in nats-server and nats.go. When an upgrade breaks one,
// the rule in design.md §3 that it names has to be thought through again.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// contract gives a server with one stream and JetStream on a connection of its own.
func contract(t *testing.T, c jetstream.StreamConfig) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	s := start(t, Options{})
	_, js := connect(t, s)
	stream, err := js.CreateStream(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return js, stream
}

// jobs is a work queue as the queue makes it.
func jobs() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: "JOBS", Subjects: []string{"ready.>", "bar.>"}, Retention: jetstream.WorkQueuePolicy,
		Discard: jetstream.DiscardNew, MaxBytes: 64 << 20, Duplicates: 2 * time.Minute, AllowRollup: true,
	}
}

func publish(t *testing.T, js jetstream.JetStream, subject string, opts ...jetstream.PublishOpt) *jetstream.PubAck {
	t.Helper()
	ack, err := js.Publish(t.Context(), subject, []byte(subject), opts...)
	if err != nil {
		t.Fatalf("publish %s: %v", subject, err)
	}
	return ack
}

// wantCode checks the server's error code.
func wantCode(t *testing.T, err error, code jetstream.ErrorCode) {
	t.Helper()
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok || api.ErrorCode != code {
		t.Errorf("got error %v, want code %d", err, code)
	}
}

// TestDuplicateOutlivesTheAck: a job that comes back under the same subject within the window is answered
// duplicate:true and is gone. Hence the move in its subject.
func TestDuplicateOutlivesTheAck(t *testing.T) {
	js, stream := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>")
	first := publish(t, js, "ready.1", jetstream.WithMsgID("ready.1"))
	if first.Duplicate {
		t.Error("the first message is a duplicate")
	}
	if err := next(t, c).DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := publish(t, js, "ready.1", jetstream.WithMsgID("ready.1"))
	if !again.Duplicate || again.Sequence != first.Sequence {
		t.Errorf("got %+v, want a duplicate of sequence %d", again, first.Sequence)
	}
	if n := stored(t, stream); n != 0 {
		t.Errorf("got %d messages stored, want 0", n)
	}
}

// TestExpectedSequenceZero: "the subject must be new". On one replica this is looked at before the Msg-Id
// (stream.go 6775), so the repeat of a publish that did succeed is answered by 10071, not by duplicate:true;
// three replicas look at the Msg-Id first. Hence 10071 means "unknown, read back", never "somebody else".
func TestExpectedSequenceZero(t *testing.T) {
	js, _ := contract(t, jobs())
	zero := jetstream.WithExpectLastSequencePerSubject(0)
	publish(t, js, "ready.0")
	first := publish(t, js, "ready.1", jetstream.WithMsgID("ready.1"), zero)

	_, err := js.Publish(t.Context(), "ready.1", nil, jetstream.WithMsgID("ready.1"), zero)
	wantCode(t, err, 10071) // wrong last sequence
	if want := fmt.Sprintf("wrong last sequence: %d", first.Sequence); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
	_, err = js.Publish(t.Context(), "ready.1", nil, jetstream.WithMsgID("another"), zero)
	wantCode(t, err, 10071)
	// A refused message leaves no trace of its Msg-Id.
	if ack := publish(t, js, "ready.2", jetstream.WithMsgID("another"), zero); ack.Duplicate {
		t.Error("the Msg-Id of a refused message is remembered")
	}
}

// TestExpectedSequenceZeroAfterRemoval: the expectation is about what is there, not about what was.
func TestExpectedSequenceZeroAfterRemoval(t *testing.T) {
	js, _ := contract(t, jobs())
	c := consumer(t, js, "JOBS", "work", "ready.>")
	zero := jetstream.WithExpectLastSequencePerSubject(0)
	publish(t, js, "ready.1", zero)
	if err := next(t, c).DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, js, "ready.1", zero)
}

// TestFullStreamRefuses: DiscardNew with MaxBytes answers with an error, which the ingress turns into 452, and
// what is removed makes room again.
func TestFullStreamRefuses(t *testing.T) {
	c := jobs()
	c.MaxBytes = 64 << 10
	js, stream := contract(t, c)
	var n int
	var err error
	for ; err == nil; n++ {
		_, err = js.Publish(t.Context(), fmt.Sprintf("ready.%d", n), make([]byte, 10<<10), jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithMsgID(fmt.Sprint(n)))
	}
	wantCode(t, err, 10077) // maximum bytes exceeded
	if n < 5 {
		t.Errorf("refused message %d already", n)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("ready.0")); err != nil {
		t.Fatal(err)
	}
	publish(t, js, "ready.again", jetstream.WithMsgID(fmt.Sprint(n-1))) // nor is the refused Msg-Id remembered
}

// TestRollupInWorkQueue: a mark on a subject of its own replaces the one before it, also in a work queue and
// without a consumer for it, so marks do not pile up.
func TestRollupInWorkQueue(t *testing.T) {
	js, stream := contract(t, jobs())
	consumer(t, js, "JOBS", "work", "ready.>")
	publish(t, js, "ready.1")
	var last *jetstream.PubAck
	for range 5 {
		msg := nats.NewMsg("bar.node-1")
		msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		ack, err := js.PublishMsg(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && ack.Sequence != last.Sequence+1 {
			t.Errorf("got sequence %d after %d", ack.Sequence, last.Sequence)
		}
		last = ack
	}
	if diff := cmp.Diff(map[string]uint64{"bar.node-1": 1, "ready.1": 1}, subjects(t, stream, ">")); diff != "" {
		t.Errorf("stored messages (-want +got):\n%s", diff)
	}
}

// TestOnePerSubject does the same without the header: with MaxMsgsPerSubject 1 the newer message replaces the older
// one, in a work queue and with DiscardNew, too.
func TestOnePerSubject(t *testing.T) {
	c := jobs()
	c.MaxMsgsPerSubject, c.AllowRollup = 1, false
	js, stream := contract(t, c)
	work := consumer(t, js, "JOBS", "work", "ready.>")
	for range 3 {
		publish(t, js, "bar.node-1")
	}
	last := publish(t, js, "ready.1")
	if diff := cmp.Diff(map[string]uint64{"bar.node-1": 1, "ready.1": 1}, subjects(t, stream, ">")); diff != "" {
		t.Errorf("stored messages (-want +got):\n%s", diff)
	}
	if last.Sequence != 4 {
		t.Errorf("got sequence %d, want 4: a replaced message has used one", last.Sequence)
	}
	if _, err := js.Publish(t.Context(), "ready.1", nil, jetstream.WithExpectLastSequencePerSubject(0)); err == nil {
		t.Error("a job was replaced although its subject had to be new")
	}
	if got, want := next(t, work).Subject(), "ready.1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestMaxPayload: a message above 1 MiB is refused by the client itself; headers count.
func TestMaxPayload(t *testing.T) {
	s := start(t, Options{})
	nc, js := connect(t, s)
	if got, want := nc.MaxPayload(), int64(1<<20); got != want {
		t.Fatalf("got max_payload %d, want %d", got, want)
	}
	if _, err := js.CreateStream(t.Context(), jobs()); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "ready.1", make([]byte, 1<<20)); err != nil {
		t.Errorf("exactly max_payload: %v", err)
	}
	_, err := js.Publish(t.Context(), "ready.2", make([]byte, 1<<20+1))
	if !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("one more: got error %v, want %v", err, nats.ErrMaxPayload)
	}
	_, err = js.Publish(t.Context(), "ready.3", make([]byte, 1<<20), jetstream.WithMsgID("ready.3"))
	if !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("exactly max_payload and a header: got error %v, want %v", err, nats.ErrMaxPayload)
	}
}

// TestNoReconnectBuffer: with ReconnectBufSize(-1) a publish without a connection fails at once instead of
// being sent, perhaps for the second time, after the reconnect.
func TestNoReconnectBuffer(t *testing.T) {
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254)) // where no other server comes up
	first := start(t, Options{Listen: host + ":0"})
	nc, err := nats.Connect(first.ClientURL(), nats.Timeout(time.Minute), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, first)
	await(t, "the connection to be lost", func() bool { return !nc.IsConnected() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	_, err = js.Publish(ctx, "ready.1", nil)
	if !errors.Is(err, nats.ErrReconnectBufExceeded) {
		t.Errorf("got error %v after %v, want %v", err, time.Since(began), nats.ErrReconnectBufExceeded)
	}
}
