package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// Notices say that something changed elsewhere, in Vault say, so that nobody need wait until they look there the next time. They are not
// kept and may be lost.
const maxNotice = 300 // octets of a name

var (
	errTopic  = errors.New("a topic has lower case letters, digits and hyphens")
	errNotice = errors.New("the name is too long for a notice")
)

// IsBadNotice reports that Notify refused its topic or name.
func IsBadNotice(err error) bool { return errors.Is(err, errTopic) || errors.Is(err, errNotice) }

func noticeSubject(topic, name string) string { return "notice." + topic + "." + encodeToken(name) }

func checkTopic(topic string) error {
	if topic == "" || strings.Trim(topic, plainToken) != "" {
		return fmt.Errorf("topic %q: %w", topic, errTopic)
	}
	return nil
}

// Notify tells all processes that something with this name changed: topic dkim and the name of a domain, topic clients and that of a
// client, topic tls and that of a certificate. nil means that the notice is on its way, not that it arrived.
func (q *Queue) Notify(ctx context.Context, topic, name string) error {
	if err := checkTopic(topic); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	if len(name) > maxNotice {
		return fmt.Errorf("notify %s: %d octets, want %d at most: %w", topic, len(name), maxNotice, errNotice)
	}
	if err := q.nc.Publish(noticeSubject(topic, name), nil); err != nil {
		return fmt.Errorf("notify %s of %s: %w", topic, name, err)
	}
	ctx, cancel := q.onLink(ctx, noteTimeout)
	defer cancel()
	if err := q.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("notify %s of %s: %w", topic, name, err)
	}
	return nil
}

// OnNotice calls fn with the name of each notice of a topic, one at a time, until stop is called or the queue is closed. A call
// that runs at that moment may go on a little longer. Notices of this process come too.
func (q *Queue) OnNotice(topic string, fn func(name string)) (stop func(), err error) {
	if err := checkTopic(topic); err != nil {
		return nil, fmt.Errorf("listen for notices: %w", err)
	}
	prefix := "notice." + topic + "."
	sub, err := q.nc.Subscribe(prefix+"*", func(m *nats.Msg) {
		if name, err := decodeToken(strings.TrimPrefix(m.Subject, prefix)); err == nil {
			fn(name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen for notices of %s: %w", topic, err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}
