package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	slotBucket   = "slots"
	slotMaxBytes = 64 << 20
	slotNotice   = "slots"
	// memberTTL is how long a member outlives its last sign. It stops counting on its slots memberMargin earlier, measured from
	// before its request, so that others get them only when it has let go.
	memberTTL    = 14 * time.Second
	memberMargin = 2 * time.Second
	memberBeat   = 3 * time.Second
	// tenancyTTL is how long what is known of a key outlives its last writer; SlotsKept tells members.
	tenancyTTL = time.Hour
	// SlotsKept is how often a member must claim again what it goes on to have.
	SlotsKept = 20 * time.Minute
	// livesAfter is how old a list of the members may be that says that one lives.
	livesAfter = time.Second
)

// ErrNoMember says that this process is not counted among those that share slots, for want of an answer of the queue.
var ErrNoMember = errors.New("the queue does not confirm that this process may have slots")

// Member is one process among those that share numbers of things, connections to a site say. A slot is had by one member at a time. All that a
// member has goes back when it has not been heard of for 14 s, and it knows 2 s before.
//
// That somebody is no longer there is read from the order of the stream in which signs of life and slots are stored, not from clocks.
type Member struct {
	q     *Queue
	cas   casBucket
	heard func(key string)
	wg    sync.WaitGroup
	stop  context.CancelFunc

	mu    sync.Mutex
	gen   generation
	known map[string]held // of keys of which it has or wants any
	lives lives
}

// generation is one life of a member: from its first sign until one that was not confirmed in time.
type generation struct {
	id    string
	life  context.Context
	end   context.CancelFunc
	seq   uint64    // of its last sign
	until time.Time // then it is over
}

// isOver reports that what was claimed in a life counts no more. A process that was stopped finds so by the clock alone.
func (g *generation) isOver(life context.Context) bool {
	return g.life != life || !time.Now().Before(g.until)
}

type held struct {
	tenancy
	revision uint64
}

// lives is a list of members as it was at a position of the stream.
type lives struct {
	ids  map[string]bool
	seq  uint64
	seen time.Time
}

// Join makes this process a member until Leave. heard is called, one call at a time, with a key of whose slots some became free or are waited for.
func (q *Queue) Join(heard func(key string)) (*Member, error) {
	m := &Member{q: q, cas: casBucket{q, slotBucket}, heard: heard, known: make(map[string]held)}
	unlisten, err := q.OnNotice(slotNotice, heard)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	ctx, cancel := context.WithCancel(q.life)
	m.stop = func() { unlisten(); cancel() }
	m.wg.Go(func() { m.run(ctx) })
	return m, nil
}

// Leave gives everything back at once.
func (m *Member) Leave(ctx context.Context) {
	m.stop()
	m.wg.Wait()
	m.mu.Lock()
	g := m.gen
	m.gen = generation{}
	m.mu.Unlock()
	if g.id == "" {
		return
	}
	g.end()
	// An empty value with a short time, as the sign of life that it replaces would end by itself.
	msg := newMsg(m.cas.subject(memberToken(g.id)), nil)
	msg.Header.Set(jetstream.MsgTTLHeader, "1s")
	_ = m.q.note(ctx, msg)
}

// Life ends when what the member has may be others'; nothing that was claimed before may be used then. It has ended where there is no
// member for now.
func (m *Member) Life() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gen.id == "" || m.gen.isOver(m.gen.life) {
		return ended
	}
	return m.gen.life
}

var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// run keeps the sign of life.
func (m *Member) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.begin(ctx); err != nil {
			_ = sleep(ctx, time.Second)
			continue
		}
		m.live(ctx)
	}
}

// begin starts a generation.
func (m *Member) begin(ctx context.Context) error {
	id, asked := strings.ToLower(rand.Text()[:12]), time.Now()
	seq, err := m.cas.write(ctx, memberToken(id), []byte(m.q.o.Node), 0, memberTTL)
	if err != nil {
		return err
	}
	g := generation{id: id, seq: seq, until: asked.Add(memberTTL - memberMargin)}
	g.life, g.end = context.WithCancel(context.Background())
	m.mu.Lock()
	m.gen, m.known, m.lives = g, make(map[string]held), lives{}
	m.mu.Unlock()
	return nil
}

// live renews the sign of life until that fails for good, or ctx ends.
func (m *Member) live(ctx context.Context) {
	m.mu.Lock()
	g := m.gen
	m.mu.Unlock()
	for ctx.Err() == nil {
		if left := time.Until(g.until); left <= 0 || sleep(ctx, min(memberBeat, left)) != nil || !time.Now().Before(g.until) {
			break
		}
		asked := time.Now()
		try, cancel := context.WithTimeout(ctx, min(memberBeat, time.Until(g.until)))
		seq, err := m.renew(try, g.id, g.seq)
		cancel()
		if errors.Is(err, errAbsent) {
			break // somebody, or some accident, has ended it
		}
		if err == nil && time.Now().Before(g.until) {
			g.seq, g.until = seq, asked.Add(memberTTL-memberMargin)
			m.mu.Lock()
			m.gen.seq, m.gen.until = g.seq, g.until
			m.mu.Unlock()
		}
	}
	if ctx.Err() == nil {
		m.q.o.Logger.Warn("slots are given up: the queue did not confirm in time that this process lives")
		g.end()
		m.mu.Lock()
		m.gen = generation{}
		m.mu.Unlock()
	}
}

// renew writes the sign of life again. After one whose answer was lost the revision is another one, but still ours.
func (m *Member) renew(ctx context.Context, id string, revision uint64) (uint64, error) {
	seq, err := m.cas.write(ctx, memberToken(id), []byte(m.q.o.Node), revision, memberTTL)
	if !errors.Is(err, errConflict) {
		return seq, err
	}
	data, revision, err := m.cas.read(ctx, memberToken(id), true)
	if err != nil {
		return 0, err
	}
	if len(data) == 0 {
		return 0, errAbsent
	}
	return m.cas.write(ctx, memberToken(id), []byte(m.q.o.Node), revision, memberTTL)
}

// Claim changes what this member has of the slots of a key. The key is free text of at most 200 octets. life is what Life returned
// before; where it has ended since, nothing was got. An error says nothing about the slots: what the member had it has, what it wanted to give back
// it may still have.
func (m *Member) Claim(ctx context.Context, life context.Context, key string, c Claim) (Claimed, error) {
	if len(key) > maxLimitKey || c.Use < 0 || c.Want < 0 || c.Limit < 0 {
		return Claimed{}, fmt.Errorf("claim of %d slots for a key of %d octets, want no less than 0, and %d octets at most", c.Want, len(key), maxLimitKey)
	}
	ctx, cancel := m.q.bound(ctx, spendTimeout)
	defer cancel()
	for try := range spendTries {
		if life.Err() != nil {
			return Claimed{}, ErrNoMember
		}
		got, tell, err := m.claimOnce(ctx, life, key, c, try)
		switch {
		case err == nil:
			if tell {
				_ = m.q.Notify(ctx, slotNotice, key)
			}
			return got, nil
		case !errors.Is(err, errConflict):
			return Claimed{}, fmt.Errorf("claim slots of %s: %w: %w", key, ErrUnavailable, err)
		}
		if err := sleep(ctx, mrand.N(min(time.Millisecond<<min(try, 10), maxRetryWait))); err != nil {
			return Claimed{}, fmt.Errorf("claim slots of %s: %w: %w", key, ErrUnavailable, err)
		}
	}
	return Claimed{}, fmt.Errorf("claim slots of %s: %w: others were quicker %d times", key, ErrUnavailable, spendTries)
}

// claimOnce makes one try. tell: others want to know.
func (m *Member) claimOnce(ctx, life context.Context, key string, c Claim, try int) (got Claimed, tell bool, err error) {
	m.mu.Lock()
	g, h := m.gen, m.known[key]
	m.mu.Unlock()
	if g.isOver(life) {
		return Claimed{}, false, ErrNoMember
	}
	// A key that nobody has used for a while has no value, and the value of one that we have is known; both cost one write.
	if try > 0 || c.Look {
		data, revision, err := m.cas.read(ctx, tenancyToken(key), try > 1)
		if err != nil {
			return Claimed{}, false, err
		}
		if h.tenancy, err = decodeTenancy(data); err != nil {
			return Claimed{}, false, err
		}
		h.revision = revision
	}
	next := h.clone()
	if next.others(g.id) {
		if err := m.bury(ctx, &next, h.revision, g.seq); err != nil {
			return Claimed{}, false, err
		}
	}
	was := next.of(g.id)
	got = next.claim(g.id, m.q.o.Node, c, m.q.spender.clock.millis(time.Now()))
	is := next.of(g.id)
	tell = is.Have < was.Have && next.isWaited() || is.Want > is.Have && (c.Tell || was.Want <= was.Have)
	// A replica that lags may show what was given back: what is more than what is used counts only once it is written.
	if slices.Equal(next.Tenants, h.Tenants) && c.Look && got.Have <= c.Use {
		return got, tell, nil
	}
	return got, tell, m.store(ctx, g, key, next, h.revision)
}

// store writes the next value of a key and remembers it.
func (m *Member) store(ctx context.Context, g generation, key string, next tenancy, revision uint64) error {
	data, err := encodeTenancy(&next)
	if err != nil {
		return err
	}
	ttl := tenancyTTL
	if len(next.Tenants) == 0 {
		ttl = memberTTL
	}
	revision, err = m.cas.write(ctx, tenancyToken(key), data, revision, ttl)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.gen.isOver(g.life):
		return ErrNoMember
	case err != nil:
		delete(m.known, key) // it may be written
		return err
	case next.isHeldBy(g.id):
		m.known[key] = held{next, revision}
	default:
		delete(m.known, key)
	}
	return nil
}

func (h held) clone() tenancy {
	t := h.tenancy
	t.Tenants = append([]tenant(nil), t.Tenants...)
	return t
}

// bury drops the tenants that are no more. Who has slots at a revision of the key had given its sign of life before it, in the
// same stream. So whoever is missing from a list at that position or a later one is no more. The list must also show our own last sign, so that no
// server answers that was cut off and has let everybody's time end.
func (m *Member) bury(ctx context.Context, t *tenancy, revision, own uint64) error {
	m.mu.Lock()
	l := m.lives
	m.mu.Unlock()
	if l.seq < max(revision, own) || time.Since(l.seen) > livesAfter {
		asked := time.Now()
		info, err := m.q.streamInfo(ctx, m.cas.stream(), m.cas.subject(memberToken("*")), 0)
		if err != nil {
			return err
		}
		if info.State.LastSeq < max(revision, own) {
			return nil // an old answer; nobody is dead by it
		}
		l = lives{ids: make(map[string]bool, len(info.State.Subjects)), seq: info.State.LastSeq, seen: asked}
		for s := range info.State.Subjects {
			l.ids[strings.TrimPrefix(s, m.cas.subject(memberToken("")))] = true
		}
		m.mu.Lock()
		if l.seq >= m.lives.seq {
			m.lives = l
		}
		m.mu.Unlock()
	}
	t.drop(func(member string) bool { return !l.ids[member] })
	return nil
}

// Members is how many members there are, as this process last saw; at least 1.
func (m *Member) Members() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(1, len(m.lives.ids))
}

// SlotUse is who has the slots of a key.
type SlotUse struct {
	Key   string         `json:"key"`
	Limit int            `json:"limit"`
	Nodes map[string]int `json:"nodes"` // how many each has
	Wants map[string]int `json:"wants"` // how many each wants in all
}

// SlotUses lists the keys of which some slots are had or waited for, for operators.
func (q *Queue) SlotUses(ctx context.Context) ([]SlotUse, error) {
	var uses []SlotUse
	prefix := "$KV." + slotBucket + "." + tenancyToken("")
	living := make(map[string]bool)
	var found []struct {
		key string
		t   tenancy
	}
	err := q.bucketValues(ctx, slotBucket, func(s *stored) {
		if id, is := strings.CutPrefix(s.subject, "$KV."+slotBucket+"."+memberToken("")); is {
			living[id] = true
			return
		}
		token, is := strings.CutPrefix(s.subject, prefix)
		t, err := decodeTenancy(s.data)
		key, keyErr := decodeToken(token)
		if is && err == nil && keyErr == nil {
			found = append(found, struct {
				key string
				t   tenancy
			}{key, t})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	for _, f := range found {
		f.t.drop(func(member string) bool { return !living[member] })
		if len(f.t.Tenants) == 0 {
			continue
		}
		u := SlotUse{Key: f.key, Limit: f.t.Limit, Nodes: make(map[string]int), Wants: make(map[string]int)}
		for _, x := range f.t.Tenants {
			u.Nodes[x.Node] += x.Have
			u.Wants[x.Node] += x.Want
		}
		uses = append(uses, u)
	}
	return uses, nil
}

func memberToken(id string) string   { return "w." + id }
func tenancyToken(key string) string { return "p." + tokenOf(key) }

// tokenOf is encodeToken, but nothing for nothing.
func tokenOf(key string) string {
	if key == "" {
		return ""
	}
	return encodeToken(key)
}

// slotStream is the bucket "slots", made by hand: a key that has ended must leave no mark, which would look like a member.
func (q *Queue) slotStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: "KV_" + slotBucket, Subjects: []string{"$KV." + slotBucket + ".>"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		MaxBytes: slotMaxBytes, MaxMsgsPerSubject: 1, Storage: jetstream.FileStorage, Replicas: q.o.Replicas, AllowDirect: true, AllowMsgTTL: true,
	}
}
