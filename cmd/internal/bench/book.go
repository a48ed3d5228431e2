package bench

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/sink"
)

// book keeps what happened to each message. All of it is in memory: 64 octets per message.
type book struct {
	prefix string // of the tokens of this run; messages of an earlier one do not count

	mu       sync.Mutex
	entries  []entry
	kept     int // accepted
	arrived  int // accepted or not, first copies
	twice    int
	signed   int
	strange  int // came without a token of this run
	lastSeen time.Time
}

type entry struct {
	begun, accepted, arrived time.Time
}

func newBook() *book { return &book{prefix: rand.Text() + "-"} }

// begin notes that a message is sent now and returns its token.
func (b *book) begin(number int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.entries) <= number {
		b.entries = append(b.entries, entry{})
	}
	b.entries[number].begun = time.Now()
	return b.prefix + strconv.Itoa(number)
}

func (b *book) accepted(number int) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries[number].accepted = now
	b.kept++
}

// seen notes an arrival.
func (b *book) seen(token string, signed bool) {
	now := time.Now()
	text, ours := strings.CutPrefix(token, b.prefix)
	number, err := strconv.Atoi(text)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !ours || err != nil || number < 0 || number >= len(b.entries) {
		b.strange++
		return
	}
	if !b.entries[number].arrived.IsZero() {
		b.twice++
		return
	}
	b.entries[number].arrived = now
	b.lastSeen = now
	b.arrived++
	if signed {
		b.signed++
	}
}

func (b *book) counts() (accepted, arrived int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept, b.arrived
}

func (b *book) report(began time.Time) Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := Report{Accepted: b.kept, Delivered: b.arrived, Signed: b.signed, Duplicates: b.twice, Strange: b.strange}
	var accept, whole []time.Duration
	var lastAccepted time.Time
	for _, e := range b.entries {
		if !e.accepted.IsZero() {
			accept = append(accept, e.accepted.Sub(e.begun))
			if e.accepted.After(lastAccepted) {
				lastAccepted = e.accepted
			}
			if e.arrived.IsZero() {
				r.Missing++
			}
		}
		if !e.arrived.IsZero() {
			whole = append(whole, e.arrived.Sub(e.begun))
		}
	}
	r.Accept, r.EndToEnd = percentiles(accept), percentiles(whole)
	if s := lastAccepted.Sub(began).Seconds(); s > 0 {
		r.AcceptedPerSecond = float64(b.kept) / s
	}
	if s := b.lastSeen.Sub(began).Seconds(); s > 0 {
		r.DeliveredPerSecond = float64(b.arrived) / s
		r.EndToEndSeconds = s
	}
	return r
}

// receiver is the sink of a run.
type receiver struct{ s *sink.Sink }

func (r *run) openSink() (*receiver, error) {
	if r.o.Sink == "" {
		return nil, nil
	}
	s, err := sink.New(sink.Options{Address: r.o.Sink, Latency: r.o.SinkLatency, Message: func(m *sink.Message) sink.Reply {
		r.book.seen(tokenOf(m.Data))
		return ""
	}})
	if err != nil {
		return nil, err
	}
	s.Start()
	if r.o.sinkOpen != nil {
		r.o.sinkOpen(s.Addr())
	}
	return &receiver{s}, nil
}

func (r *receiver) close() {
	if r == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = r.s.Stop(ctx)
}
