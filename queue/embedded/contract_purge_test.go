package embedded

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// TestRemovalBesideWorkInHand: a worker has five messages in hand. The third is removed by somebody else, the
// fourth is acked, then the server restarts. A purge by subject that is narrower than the consumer's filter may move
// the consumer's ack floor (consumer.go purge, isWider), the next ack then carries it over the first two, and they
// are never handed out again: lost. It is a race between that code and the goroutine that decStreamPending starts,
// hence several attempts. A delete of the message always leaves the floor alone. Hence single messages are
// deleted, and a purge has exactly the filter of a consumer or one that no consumer wants.
func TestRemovalBesideWorkInHand(t *testing.T) {
	tests := []struct {
		name     string
		remove   func(*testing.T, jetstream.Stream, uint64)
		floor    uint64
		again    []uint64
		attempts int
	}{
		{"purge by subject", func(t *testing.T, s jetstream.Stream, seq uint64) {
			if err := s.Purge(t.Context(), jetstream.WithPurgeSubject(fmt.Sprintf("ready.%d", seq))); err != nil {
				t.Fatal(err)
			}
		}, 4, []uint64{5}, 50},
		{"delete", func(t *testing.T, s jetstream.Stream, seq uint64) {
			if err := s.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}, 0, []uint64{1, 2, 5}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := start(t, Options{Dir: dir})
			nc, js := connect(t, s)
			floor := removeBesideWork(t, js, tt.remove)
			for n := 1; floor != tt.floor && n < tt.attempts; n++ {
				if err := js.DeleteStream(t.Context(), "JOBS"); err != nil {
					t.Fatal(err)
				}
				floor = removeBesideWork(t, js, tt.remove)
			}
			if floor != tt.floor {
				t.Fatalf("got ack floor %d in %d attempts, want %d", floor, tt.attempts, tt.floor)
			}
			nc.Close()
			stop(t, s)

			_, js = connect(t, start(t, Options{Dir: dir}))
			if diff := cmp.Diff(tt.again, handedOut(t, js, len(tt.again))); diff != "" {
				t.Errorf("handed out again (-want +got):\n%s", diff)
			}
		})
	}
}

// removeBesideWork takes five messages in hand, has the third removed, acks the fourth and returns the ack floor.
func removeBesideWork(t *testing.T, js jetstream.JetStream, remove func(*testing.T, jetstream.Stream, uint64)) uint64 {
	t.Helper()
	stream, err := js.CreateStream(t.Context(), jobs())
	if err != nil {
		t.Fatal(err)
	}
	work := consumer(t, js, "JOBS", "work", "ready.>", func(c *jetstream.ConsumerConfig) { c.AckWait = 6 * time.Second })
	var hand []jetstream.Msg
	for i := 1; i <= 5; i++ {
		publish(t, js, fmt.Sprintf("ready.%d", i))
		hand = append(hand, next(t, work))
	}
	remove(t, stream, 3)
	if err := hand[3].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pending(t, work).AckFloor.Stream
}

// handedOut collects the sequences that "work" hands out: as many as are wanted, and what follows them at once.
func handedOut(t *testing.T, js jetstream.JetStream, want int) (seqs []uint64) {
	t.Helper()
	work, err := js.Consumer(t.Context(), "JOBS", "work")
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(n int, within time.Duration) (got int) {
		t.Helper()
		batch, err := work.Fetch(n, jetstream.FetchMaxWait(within))
		if err != nil {
			t.Fatal(err)
		}
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			got++
			if seq := meta.Sequence.Stream; !slices.Contains(seqs, seq) { // else a second time: the wait was over again
				seqs = append(seqs, seq)
			}
		}
		return got
	}
	for end := time.Now().Add(2 * time.Minute); len(seqs) < want && time.Now().Before(end); {
		fetch(want-len(seqs), time.Minute)
	}
	fetch(10, 3*time.Second)
	slices.Sort(seqs)
	return seqs
}
