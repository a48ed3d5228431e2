package stage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"postroad/queue"
	"postroad/queue/address"
)

const (
	acceptTries = 5
	openLimit   = time.Minute
	closeLimit  = 30 * time.Second
)

// Mail is one message to be put into the queue. Its content is made up.
type Mail struct {
	Number     int      // in its Message-ID
	Recipients []string // local@domain
	Size       int      // octets of the body, about; 0: 1,000
}

// Mouth puts mail into a queue as an ingress in another process would.
type Mouth struct{ q *queue.Queue }

// Sender is the reverse-path of all mail.
const Sender = "rider@sender.example"

// OpenMouth connects to the queue that listens at url.
func OpenMouth(ctx context.Context, url, node string) (*Mouth, error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	q, err := queue.Open(ctx, queue.Options{
		Connect: func(extra ...nats.Option) (*nats.Conn, error) { return nats.Connect(url, extra...) },
		Node:    node,
		Follow:  true,
	})
	if err != nil {
		return nil, err
	}
	return &Mouth{q}, nil
}

// Close ends the connection.
func (m *Mouth) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return m.q.Close(ctx)
}

// Fill puts n mails into the queue with several publishers at once; mail makes the i-th, from 0, and is called from several goroutines.
func (m *Mouth) Fill(ctx context.Context, n, publishers int, mail func(i int) Mail) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range publishers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if err := m.Put(ctx, mail(int(i))); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Put puts one mail into the queue.
func (m *Mouth) Put(ctx context.Context, mail Mail) error {
	from, err := address.Parse(Sender)
	if err != nil {
		return err
	}
	env := queue.Envelope{
		ReversePath: from, Client: "check", RemoteAddr: "127.0.0.1", Helo: "check.example", HeaderFrom: "sender.example", Accepted: time.Now(),
	}
	for _, text := range mail.Recipients {
		to, err := address.Parse(text)
		if err != nil {
			return err
		}
		env.Recipients = append(env.Recipients, queue.Recipient{Path: to})
	}
	text := mail.text()
	id := m.q.NewID()
	if err := m.accept(ctx, id, env, text); err != nil {
		return fmt.Errorf("accept mail %d: %w", mail.Number, err)
	}
	m.q.Record(queue.Event{
		Type: queue.Reception, ID: id, Sender: Sender, Recipient: strings.Join(mail.Recipients, " "), Client: env.Client, Size: int64(len(text)),
	})
	return nil
}

// accept gives a queue that does not confirm in time the same message again, as a client would.
func (m *Mouth) accept(ctx context.Context, id queue.MessageID, env queue.Envelope, text string) error {
	for try := 1; ; try++ {
		err := m.q.Accept(ctx, id, env, strings.NewReader(text))
		if try == acceptTries || ctx.Err() != nil || !errors.Is(err, queue.ErrUnavailable) {
			return err
		}
		Say("  the queue did not confirm a message within its patience, it gets it again: %v", err)
	}
}

const (
	bodyLine    = "Nobody opens the door.\r\n"
	defaultBody = 1000
)

func (m Mail) text() string {
	size := m.Size
	if size == 0 {
		size = defaultBody
	}
	return fmt.Sprintf("From: %s\r\nTo: %s\r\nSubject: %d\r\nDate: Wed, 25 Nov 2026 12:00:00 +0000\r\nMessage-ID: <%d@sender.example>\r\n\r\n",
		Sender, m.Recipients[0], m.Number, m.Number) + strings.Repeat(bodyLine, size/len(bodyLine)+1)
}
