package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue/address"
)

// Suppression says that an address, or every address of a domain, is not to be written to. It lies in the bucket suppressions under the
// class of clients that it is for, the domain and a hash of the local part, until it ends.
type Suppression struct {
	Address string `json:"address"`         // local@domain, or domain for all of its addresses; domains as A-labels, all in lower case
	Class   string `json:"class,omitempty"` // of the clients whose mail it stops; empty: everybody's
	Reason  string `json:"reason"`          // class of a refusal, complaint, or an operator's word; at most 100 octets
	Text    string `json:"text,omitempty"`  // what the host said, or the operator; at most 300 octets
	Owner   string `json:"owner,omitempty"` // who added it: an operator, or policy
	Source  string `json:"source,omitempty"`

	Refusals int       `json:"refusals,omitempty"` // of the policy: so many so far
	Pending  bool      `json:"pending,omitempty"`  // too few refusals: it stops nothing yet
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"` // zero: it does not end
}

const (
	suppressBucket   = "suppressions"
	suppressMaxBytes = 512 << 20 // about a million and a half of them; when it is full no more can be added
	suppressTries    = 5         // against other processes that write the same, or a queue that is slow to answer
	suppressBatch    = 1000      // that one request reads
	maxReason        = 100
	maxReasonText    = 300

	// SuppressionNotice is the topic of notices that suppressions were changed by an operator.
	SuppressionNotice = "suppressions"
)

// ErrSuppressionsFull says that the bucket of suppressions is full.
var ErrSuppressionsFull = errors.New("the list of suppressions is full")

// SuppressionTarget brings what people write, bob@example.com, example.com or @example.com, into the form in which suppressions are kept.
func SuppressionTarget(text string) (string, error) {
	text = strings.TrimSpace(text)
	if domain, whole := strings.CutPrefix(text, "@"); whole || !strings.Contains(text, "@") {
		clean, err := address.Normalize(domain)
		if err != nil {
			return "", fmt.Errorf("%.300q is neither an address nor a domain: %w", text, err)
		}
		return clean, nil
	}
	p, err := address.Parse(text)
	if err != nil {
		return "", err
	}
	return SuppressionAddress(p), nil
}

// SuppressionAddress is the form in which the suppression of a recipient is kept. Case makes no difference: hardly any host tells local
// parts apart by it.
func SuppressionAddress(p address.Path) string { return strings.ToLower(p.String()) }

// SuppressionKey names what suppresses a target for a class; empty class: everybody's mail.
func SuppressionKey(class, target string) string {
	local, domain := "=", target
	if at := strings.LastIndexByte(target, '@'); at >= 0 {
		sum := sha256.Sum256([]byte(target[:at]))
		local, domain = hex.EncodeToString(sum[:12]), target[at+1:]
	}
	return encodeToken(class) + "." + encodeToken(domain) + "." + local
}

func (s *Suppression) check() error {
	target, err := SuppressionTarget(s.Address)
	if err != nil {
		return err
	}
	if s.Address = target; len(s.Class) > maxReason || len(s.Owner) > maxReason || len(s.Source) > maxReason {
		return fmt.Errorf("suppress %s: class, owner and source have at most %d octets", s.Address, maxReason)
	}
	s.Reason, s.Text = cutTo(s.Reason, maxReason), cutTo(s.Text, maxReasonText)
	if s.Since.IsZero() {
		s.Since = time.Now()
	}
	if s.Since = s.Since.UTC().Truncate(time.Second); !s.Until.IsZero() && !s.Until.After(time.Now()) {
		return fmt.Errorf("suppress %s: its end %s is over", s.Address, s.Until.Format(time.RFC3339))
	}
	return nil
}

func cutTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// IsOver reports that a suppression has ended.
func (s *Suppression) IsOver(now time.Time) bool { return !s.Until.IsZero() && !now.Before(s.Until) }

// Suppress adds a suppression, or replaces the one for the same address and class.
func (q *Queue) Suppress(ctx context.Context, s Suppression) error {
	if err := s.check(); err != nil {
		return err
	}
	var err error
	for range suppressTries { // writing it twice does no harm
		if err = q.writeSuppression(ctx, &s, nil); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Unsuppress takes a suppression away and reports whether there was one.
func (q *Queue) Unsuppress(ctx context.Context, class, target string) (bool, error) {
	key := SuppressionKey(class, target)
	_, _, err := q.suppression(ctx, key)
	if errors.Is(err, errAbsent) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the suppression of %s: %w", target, err)
	}
	m := newMsg("$KV."+suppressBucket+"."+key, nil)
	m.Header.Set("KV-Operation", "DEL")
	m.Header.Set(jetstream.MsgTTLHeader, time.Hour.String()) // for as long others can see that it has gone
	if err := q.note(ctx, m); err != nil {
		return false, fmt.Errorf("take away the suppression of %s: %w", target, err)
	}
	return true, nil
}

// Suppression finds the suppression of a key, pending ones and such as have ended too; nil: there is none.
func (q *Queue) Suppression(ctx context.Context, key string) (*Suppression, error) {
	s, _, err := q.suppression(ctx, key)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	return s, err
}

func (q *Queue) suppression(ctx context.Context, key string) (*Suppression, uint64, error) {
	m, err := q.get(ctx, "KV_"+suppressBucket, "$KV."+suppressBucket+"."+key)
	if err != nil {
		return nil, 0, err
	}
	if len(m.data) == 0 { // the mark of one that has gone
		return nil, m.seq, errAbsent
	}
	s := new(Suppression)
	if err := json.Unmarshal(m.data, s); err != nil {
		return nil, m.seq, fmt.Errorf("read suppression: %w", err)
	}
	return s, m.seq, nil
}

// NoteRefusal counts a refusal of an address by the policy: from the after-th within the time within on it is suppressed for the time keep.
// One that stops mail already is left alone.
func (q *Queue) NoteRefusal(ctx context.Context, s Suppression, after int, within, keep time.Duration) error {
	if err := s.check(); err != nil {
		return err
	}
	var err error
	for range suppressTries {
		var old *Suppression
		var seq uint64
		old, seq, err = q.suppression(ctx, SuppressionKey(s.Class, s.Address))
		if err != nil && !errors.Is(err, errAbsent) {
			return fmt.Errorf("look for the suppression of %s: %w", s.Address, err)
		}
		next := s
		next.Refusals = 1
		now := time.Now()
		if old != nil && !old.IsOver(now) {
			if !old.Pending || old.Source != "" && old.Source == s.Source { // told twice
				return nil
			}
			next.Refusals = old.Refusals + 1
		}
		next.Until = now.Add(keep)
		if next.Pending = next.Refusals < after; next.Pending {
			next.Until = now.Add(within)
		}
		if err = q.writeSuppression(ctx, &next, &seq); !errors.Is(err, errConflict) {
			return err
		}
	}
	return err
}

// writeSuppression stores it; revision, if it is given, must be the one that it replaces.
func (q *Queue) writeSuppression(ctx context.Context, s *Suppression, revision *uint64) error {
	s.Until = s.Until.UTC().Truncate(time.Second)
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("suppress %s: %w", s.Address, err)
	}
	m := newMsg("$KV."+suppressBucket+"."+SuppressionKey(s.Class, s.Address), data)
	if !s.Until.IsZero() {
		m.Header.Set(jetstream.MsgTTLHeader, max(time.Second, time.Until(s.Until).Round(time.Second)).String())
	}
	if revision != nil {
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(*revision, 10))
	}
	err = q.note(ctx, m)
	switch {
	case hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew):
		return fmt.Errorf("suppress %s: %w", s.Address, errConflict)
	case hasCode(err, codeStoreFailed, codeNoResources):
		return fmt.Errorf("suppress %s: %w: remove some, or let them end sooner", s.Address, ErrSuppressionsFull)
	case err != nil:
		return fmt.Errorf("suppress %s: %w", s.Address, err)
	}
	return nil
}

// Suppressions yields the suppressions of a class, a domain or an address (empty: all), in the order in which they were written.
func (q *Queue) Suppressions(ctx context.Context, class *string, target string) iter.Seq2[Suppression, error] {
	filter := []string{"*", "*", "*"}
	if class != nil {
		filter[0] = encodeToken(*class)
	}
	if target != "" {
		key := strings.Split(SuppressionKey("", target), ".")
		if filter[1] = key[1]; strings.Contains(target, "@") {
			filter[2] = key[2]
		}
	}
	subjects := "$KV." + suppressBucket + "." + strings.Join(filter, ".")
	if class == nil && target == "" {
		subjects = ">" // which the servers know to be everything: they need not compare
	}
	return func(yield func(Suppression, error) bool) {
		now := time.Now()
		for from := uint64(1); ; {
			batch, err := q.getBatch(ctx, "KV_"+suppressBucket, subjects, map[string]any{"seq": from, "batch": suppressBatch})
			if err != nil {
				yield(Suppression{}, fmt.Errorf("list suppressions: %w", err))
				return
			}
			for _, m := range batch {
				from = m.seq + 1
				var s Suppression
				if len(m.data) == 0 || json.Unmarshal(m.data, &s) != nil || s.IsOver(now) {
					continue
				}
				if !yield(s, nil) {
					return
				}
			}
			if len(batch) == 0 {
				return
			}
		}
	}
}

// SuppressionChange is a key that was written or has gone.
type SuppressionChange struct {
	Key  string
	Gone bool
}

// SuppressionPosition is how far the list of suppressions has been read. The zero position is before its start.
type SuppressionPosition struct {
	Made time.Time // when the bucket was made: one that is made anew counts from the start again
	Seq  uint64
}

// SuppressionChanges calls fn with the keys that were written after a position, or have gone lately, and returns the position up to which
// that is all. The zero position gives everything there is. When the bucket is another one than that of the position, or no longer reaches it,
// the answer is the zero position, and what is known is to be forgotten.
func (q *Queue) SuppressionChanges(ctx context.Context, after SuppressionPosition, fn func(SuppressionChange)) (SuppressionPosition, error) {
	prefix := "$KV." + suppressBucket + "."
	info, err := q.streamInfo(ctx, "KV_"+suppressBucket, "", 0)
	if err != nil {
		return after, fmt.Errorf("look at suppressions: %w", err)
	}
	isStart := after == SuppressionPosition{}
	if !isStart && (!info.Created.Equal(after.Made) || info.State.LastSeq < after.Seq) {
		return SuppressionPosition{}, nil
	}
	after.Made = info.Created
	for after.Seq < info.State.LastSeq {
		batch, err := q.getBatch(ctx, "KV_"+suppressBucket, ">", map[string]any{"seq": after.Seq + 1, "batch": suppressBatch})
		if err != nil {
			return after, fmt.Errorf("read suppressions: %w", err)
		}
		for _, m := range batch {
			after.Seq = max(after.Seq, m.seq)
			fn(SuppressionChange{Key: strings.TrimPrefix(m.subject, prefix), Gone: len(m.data) == 0})
		}
		if len(batch) == 0 { // a replica that lags would show fewer: the rest comes next time
			return after, nil
		}
	}
	return after, nil
}
