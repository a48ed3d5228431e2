package tlsrpt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

const (
	lookEvery    = time.Minute
	settleTime   = 3 * flushEvery // after the end of a day, until every process has added its counts
	spreadOver   = 4 * time.Hour  // so that not all domains hear from all senders at midnight (RFC 8460 §4.1)
	retryAfter   = 30 * time.Minute
	sendTimeout  = 2 * time.Minute
	sendWidth    = 16 // domains at a time: a slow one delays few others
	maxBackedOff = 50_000
	maxMailBytes = 700 << 10
)

// SenderOptions say how reports are sent. All but Logger are required.
type SenderOptions struct {
	Store        Store
	Names        Names
	Mail         func(ctx context.Context, id queue.MessageID, env queue.Envelope, payload []byte) error // stores a message of our own
	Web          *http.Client                                                                            // package web makes one
	Domain       string                                                                                  // of the relay: reports come from its postmaster, and are signed for it
	Organization string
	Contact      string // address for questions
	Logger       *slog.Logger
}

// Sender sends reports. Make it with NewSender.
type Sender struct {
	o SenderOptions

	mu     sync.Mutex
	failed map[string]time.Time // keys that are not tried again before
}

// NewSender makes a Sender.
func NewSender(o SenderOptions) *Sender {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sender{o: o, failed: make(map[string]time.Time)}
}

// Run sends what is due, until ctx ends. No other process of the cluster may do that at the same time.
func (s *Sender) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look sends the reports whose time has come, those of some domains at a time.
func (s *Sender) look(ctx context.Context) {
	keys, err := s.o.Store.Keys(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.o.Logger.Warn("tallies for TLS reports cannot be listed", "error", err)
		}
		return
	}
	free := make(chan struct{}, sendWidth)
	var wg sync.WaitGroup
	for _, key := range keys {
		k, due := dueAt(key)
		if ctx.Err() != nil || !s.isDue(key, due) {
			continue
		}
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			s.note(key, k, s.send(ctx, k))
		})
	}
	wg.Wait()
}

func (s *Sender) isDue(key string, due time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return !now.Before(due) && !now.Before(s.failed[key])
}

// note takes note of how a report went.
func (s *Sender) note(key string, k tallyKey, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, key)
		return
	}
	s.o.Logger.Warn("a TLS report cannot be sent yet", "domain", k.domain, "day", k.day, "error", err)
	if len(s.failed) >= maxBackedOff {
		clear(s.failed)
	}
	s.failed[key] = time.Now().Add(retryAfter)
}

// dueAt is when the report of a key is to be sent: after the end of its day, at a time of the domain's own.
func dueAt(key string) (tallyKey, time.Time) {
	day, domain, _ := strings.Cut(key, " ")
	k := tallyKey{day, domain}
	start, err := time.Parse(dayLayout, day)
	if err != nil {
		return k, time.Now() // whatever it is: send reads it, and takes it away
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, domain)
	return k, start.Add(24*time.Hour + settleTime + time.Duration(h.Sum64()%uint64(spreadOver)))
}

// send sends one report to all destinations that do not have it yet, and forgets the tally when all have it.
func (s *Sender) send(ctx context.Context, k tallyKey) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	e, _, err := load(ctx, s.o.Store, k.String())
	if err != nil {
		return err
	}
	uris, err := destinations(ctx, s.o.Names, k.domain)
	if err != nil {
		return err
	}
	if len(e.Tally.Policies) == 0 {
		uris = nil
	}
	if e.ID == "" && len(uris) > 0 { // noted first, so that another process does not make a second one of it
		e.ID = string(queue.NewID())
		if err := s.save(ctx, k, e); err != nil {
			return err
		}
	}
	gz, err := s.o.build(k, e.Tally, e.ID+"@"+s.o.Domain)
	if err != nil {
		s.o.Logger.Warn("a tally for a TLS report cannot be used", "key", k.String(), "error", err)
		uris = nil
	}
	var wrong []error
	for _, uri := range uris {
		if slices.Contains(e.Done, uri) {
			continue
		}
		if err := s.deliver(ctx, k, e.ID, uri, gz); err != nil {
			wrong = append(wrong, err)
			continue
		}
		e.Done = append(e.Done, uri)
		if err := s.save(ctx, k, e); err != nil {
			return err
		}
		s.o.Logger.Info("TLS report sent", "domain", k.domain, "day", k.day, "to", cut(uri, maxText))
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	return s.save(ctx, k, entry{})
}

// save writes the state of a report; an entry without an id removes it. Counts that a late process added meanwhile are not lost, but for
// the report.
func (s *Sender) save(ctx context.Context, k tallyKey, e entry) error {
	var data []byte
	if e.ID != "" {
		var err error
		if data, err = json.Marshal(e); err != nil {
			return fmt.Errorf("encode tally: %w", err)
		}
	}
	for range mergeTries {
		_, revision, err := s.o.Store.Get(ctx, k.String())
		if err != nil {
			return err
		}
		if err = s.o.Store.Put(ctx, k.String(), data, revision, tallyKept); !errors.Is(err, ErrChanged) {
			return err
		}
	}
	return ErrChanged
}

func (s *Sender) deliver(ctx context.Context, k tallyKey, id, uri string, gz []byte) error {
	if to, isMail := mailbox(uri); isMail {
		return s.mail(ctx, k, id, to, gz)
	}
	return s.post(ctx, uri, gz)
}

// mail puts a report into the queue. It has the null reverse-path: nobody waits for its failure; and it is in no report itself.
func (s *Sender) mail(ctx context.Context, k tallyKey, id string, to address.Path, gz []byte) error {
	if len(gz) > maxMailBytes {
		return fmt.Errorf("report of %d octets, want %d at most", len(gz), maxMailBytes)
	}
	now := time.Now()
	msg, err := queue.DeriveID(queue.MessageID(id), to.String())
	if err != nil {
		return err
	}
	env := queue.Envelope{
		Recipients: []queue.Recipient{{Path: to, Notify: []string{"NEVER"}}},
		Flags:      queue.Flags{TLSOptional: true, SMTPUTF8: to.NeedsSMTPUTF8()},
		HeaderFrom: s.o.Domain,
		Accepted:   now,
	}
	if err := s.o.Mail(ctx, msg, env, s.o.message(k, id+"@"+s.o.Domain, to, gz, now)); err != nil {
		return fmt.Errorf("mail report to %s: %w", to, err)
	}
	return nil
}

// post delivers a report by HTTPS (RFC 8460 §5.4).
func (s *Sender) post(ctx context.Context, uri string, gz []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, bytes.NewReader(gz))
	if err != nil {
		return fmt.Errorf("post report: %w", err)
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	req.Header.Set("User-Agent", "postroad")
	res, err := s.o.Web.Do(req)
	if err != nil {
		return fmt.Errorf("post report: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("post report: the server says %s", cut(res.Status, maxText))
	}
	return nil
}
