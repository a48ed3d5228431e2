package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Taps let an operator hear dialogues with hosts while they go on, wherever in the cluster. Who listens says so every few seconds on
// tap.want; a process that relays then tells what fits on tap.line.<session>. Nothing of it is kept, and it may be lost.
const (
	tapWanted   = "tap.want"
	tapLines    = "tap.line."
	tapRepeat   = 5 * time.Second
	tapLapse    = 3*tapRepeat + tapRepeat/2 // without a repeat nobody listens any more
	maxTaps     = 8                         // at a time, so that nobody turns all dialogues of a cluster into a flood
	tapRate     = 500                       // lines a second of one process for one listener
	tapPending  = 10_000                    // lines that a slow listener may be behind
	maxTapLine  = 4 << 10                   // octets
	maxTapWords = 512                       // octets of a wish
)

// MaxTap is how long one may listen.
const MaxTap = time.Hour

// TapWish says whose dialogues are to be heard: of a site, a domain or a message; all that are given must agree, and one must be given.
type TapWish struct {
	Site   string    `json:"site,omitempty"`
	Domain string    `json:"domain,omitempty"`
	ID     MessageID `json:"id,omitempty"`
}

// TapLine is one line of a dialogue.
type TapLine struct {
	At     time.Time `json:"at"`
	Node   string    `json:"node"`
	ID     MessageID `json:"id"`
	Part   int       `json:"part,omitempty"`
	Domain string    `json:"domain,omitempty"`
	Site   string    `json:"site,omitempty"`
	From   string    `json:"from"` // C: we, S: the host, *: what happened
	Text   string    `json:"text"`
	Missed int       `json:"missed,omitempty"` // lines before it that were too many
}

var errNoWish = errors.New("say whose dialogues: of a site, a domain or a message")

// IsBadTap reports that Tap refused the wish.
func IsBadTap(err error) bool { return errors.Is(err, errNoWish) }

// wanted is a wish on its way.
type wanted struct {
	TapWish
	Session string `json:"session"`
}

func (w TapWish) check() error {
	if w == (TapWish{}) || len(w.Site)+len(w.Domain)+len(w.ID) > maxTapWords {
		return errNoWish
	}
	return nil
}

func (w TapWish) fits(s TapLine) bool {
	return (w.Site == "" || strings.EqualFold(w.Site, s.Site)) && (w.Domain == "" || strings.EqualFold(w.Domain, s.Domain)) &&
		(w.ID == "" || strings.EqualFold(string(w.ID), string(s.ID)))
}

// Tap yields the lines that fit until ctx ends, MaxTap at most. An error ends it.
func (q *Queue) Tap(ctx context.Context, wish TapWish) iter.Seq2[TapLine, error] {
	return func(yield func(TapLine, error) bool) {
		if err := wish.check(); err != nil {
			yield(TapLine{}, fmt.Errorf("listen to dialogues: %w", err))
			return
		}
		ctx, cancel := context.WithTimeout(ctx, MaxTap)
		defer cancel()
		session := strings.ToLower(string(NewID()))
		sub, err := q.nc.SubscribeSync(tapLines + session)
		if err == nil {
			err = sub.SetPendingLimits(tapPending, tapPending*maxTapLine)
		}
		if err != nil {
			yield(TapLine{}, fmt.Errorf("listen to dialogues: %w", err))
			return
		}
		defer func() { _ = sub.Unsubscribe() }()
		words, err := json.Marshal(wanted{wish, session})
		if err != nil {
			yield(TapLine{}, err)
			return
		}
		for ctx.Err() == nil {
			if err := q.nc.Publish(tapWanted, words); err != nil {
				yield(TapLine{}, fmt.Errorf("listen to dialogues: %w", err))
				return
			}
			if !hear(ctx, sub, yield) {
				return
			}
		}
	}
}

// hear yields lines until the wish is to be repeated; false: the listener has had enough.
func hear(ctx context.Context, sub *nats.Subscription, yield func(TapLine, error) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, tapRepeat)
	defer cancel()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, nats.ErrSlowConsumer):
			continue // some are lost
		case err != nil && ctx.Err() != nil:
			return true
		case err != nil:
			yield(TapLine{}, fmt.Errorf("listen to dialogues: %w", err))
			return false
		}
		var line TapLine
		if json.Unmarshal(m.Data, &line) == nil && !yield(line, nil) {
			return false
		}
	}
}

// Taps are the listeners that a process knows of. Make it with OpenTaps.
type Taps struct {
	q    *Queue
	sub  *nats.Subscription
	mu   sync.Mutex // of whoever changes taps
	taps atomic.Pointer[[]*tap]
}

// tap is one listener.
type tap struct {
	TapWish
	session string
	until   atomic.Int64 // Unix nanoseconds

	mu     sync.Mutex
	second int64 // of the lines that are counted
	lines  int
	missed int
}

// OpenTaps begins to note who listens, until Close or the end of the queue.
func (q *Queue) OpenTaps() (*Taps, error) {
	t := &Taps{q: q}
	sub, err := q.nc.Subscribe(tapWanted, func(m *nats.Msg) {
		var w wanted
		if len(m.Data) > 2*maxTapWords || json.Unmarshal(m.Data, &w) != nil || w.check() != nil || w.Session == "" || strings.Trim(w.Session, plainToken) != "" {
			return
		}
		t.want(w, time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("hear who listens to dialogues: %w", err)
	}
	t.sub = sub
	return t, nil
}

// Close ends it. Whoever listens hears nothing more of this process.
func (t *Taps) Close() {
	_ = t.sub.Unsubscribe()
	t.taps.Store(nil)
}

// want notes a wish or its repeat, and forgets those who have gone.
func (t *Taps) want(w wanted, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*tap
	isKnown := false
	if old := t.taps.Load(); old != nil {
		for _, l := range *old {
			if l.session == w.Session {
				l.until.Store(now.Add(tapLapse).UnixNano())
				isKnown = true
			}
			if l.until.Load() > now.UnixNano() {
				list = append(list, l)
			}
		}
	}
	if !isKnown && len(list) < maxTaps {
		l := &tap{TapWish: w.TapWish, session: w.Session}
		l.until.Store(now.Add(tapLapse).UnixNano())
		list = append(list, l)
	}
	t.taps.Store(&list)
}

// Hear gives what is to be called with each line of a dialogue about a message, or nil when nobody listens to it, which costs next to
// nothing. Of about only what a wish speaks of is looked at; the rest of it is that of the lines.
func (t *Taps) Hear(about TapLine) func(at time.Time, from, text string) {
	taps := t.taps.Load()
	if taps == nil {
		return nil
	}
	now := time.Now().UnixNano()
	var fit []*tap
	isAlive := false
	for _, l := range *taps {
		if l.until.Load() <= now {
			continue
		}
		isAlive = true
		if l.fits(about) {
			fit = append(fit, l)
		}
	}
	if !isAlive {
		t.taps.CompareAndSwap(taps, nil)
	}
	if len(fit) == 0 {
		return nil
	}
	about.Node = t.q.o.Node
	return func(at time.Time, from, text string) {
		about.At, about.From, about.Text = at, from, text
		for _, l := range fit {
			t.tell(l, about)
		}
	}
}

// tell publishes a line, unless the listener has gone or has had too much in this second.
func (t *Taps) tell(l *tap, line TapLine) {
	if l.until.Load() <= line.At.UnixNano() {
		return
	}
	missed, is := l.turn(line.At.Unix())
	if !is {
		return
	}
	line.Missed = missed
	if data, err := json.Marshal(line); err == nil && len(data) <= maxTapLine {
		_ = t.q.nc.Publish(tapLines+l.session, data) // best effort
	}
}

func (l *tap) turn(second int64) (missed int, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if second != l.second {
		l.second, l.lines = second, 0
	}
	if l.lines++; l.lines > tapRate {
		l.missed++
		return 0, false
	}
	missed, l.missed = l.missed, 0
	return missed, true
}
