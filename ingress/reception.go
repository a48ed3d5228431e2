package ingress

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"postroad/ingress/submission"
	"postroad/queue"
)

// reception is one message on its way into the queue.
type reception struct {
	srv     *Server
	conn    *conn
	tx      transaction
	body    io.Reader
	started time.Time
	id      queue.MessageID
}

// receive reads the header, hands the message to the queue and returns nil
// only when the queue has it.
func (m *reception) receive() error {
	o := &m.srv.options
	class := m.classOf()
	m.id = o.Queue.NewID()
	buffer := getBuffer()
	h := &header{buf: *buffer, maxBytes: o.MaxHeaderBytes, maxFields: o.MaxHeaderFields}
	defer func() {
		*buffer = h.buf
		putBuffer(buffer)
	}()
	if err := h.read(m.body); err != nil {
		return err
	}
	if h.received > o.MaxHops {
		return errLoop
	}
	body := m.body
	var seen *repeats
	if class.Idempotent && h.hasID && m.tx.client != "" {
		seen = m.newRepeats(h)
		body = seen
	}
	if err := m.fix(h, class); err != nil {
		return err
	}
	if err := m.spend(m.srv.ctx, class); err != nil {
		return err
	}

	t := m.trace(class)
	prefix := t.appendFixes(t.appendReceived(make([]byte, 0, 512)), h)
	messageID := h.messageIDText()
	if !h.hasID && !h.isSigned {
		messageID = t.madeMessageID()
	}
	env := m.envelope(h, t)
	p := newPayload(prefix, h, body)
	err := o.Queue.Accept(m.srv.ctx, m.id, env, p)
	if fault := p.fault(); fault != nil {
		if first, isRepeat := errors.AsType[*repeated](fault); isRepeat {
			return m.again(first, messageID)
		}
		return fault
	}
	if err != nil {
		return err
	}
	if !p.isComplete() {
		return errNoEnd
	}
	if seen != nil {
		seen.remember(m.id)
	}
	m.record(&env, messageID, p.size)
	return nil
}

// fix looks whether the author may be the author, and brings the header into
// its final form. Mail that carries a signature is only looked at.
func (m *reception) fix(h *header, class *Class) error {
	fields := h.buf[:h.fields]
	if m.tx.account != nil && !m.tx.isIncoming {
		if err := m.checkAuthors(fields); err != nil {
			return err
		}
	}
	if class.Submits {
		var err error
		fields, err = submission.Fix(fields, submission.Options{UTF8: m.tx.mail.flags.SMTPUTF8, Signed: h.isSigned, ReversePath: m.tx.mail.path,
			HideReceived: class.HideReceived})
		if err != nil {
			return submissionRefusal(err)
		}
	}
	if !h.isSigned && !m.tx.isIncoming {
		fields = m.srv.options.Rewriter.Header(fields)
	}
	if err := h.replace(fields); err != nil {
		return err
	}
	if !h.isSigned {
		h.dropReturnPaths()
	}
	return nil
}

// checkAuthors looks whether the client may be who the message says it is from.
func (m *reception) checkAuthors(fields []byte) error {
	authors, err := submission.Authors(fields)
	if err != nil {
		if len(m.tx.account.Senders) == 0 {
			return nil // may be anybody
		}
		return errAuthor
	}
	for _, author := range authors {
		if !m.tx.account.MaySend(author) {
			m.srv.options.Logger.Info("author is not the client's", "msg_id", string(m.id), "client", m.tx.client, "author", author.String())
			return errAuthor
		}
	}
	return nil
}

// spend counts the recipients against the limits of the client.
func (m *reception) spend(ctx context.Context, class *Class) error {
	o := &m.srv.options
	for _, l := range []struct {
		key   string
		limit queue.Limit
	}{{"client/" + m.tx.client, class.PerClient}, {"class/" + m.tx.class, class.Together}} {
		if l.limit.Count == 0 {
			continue
		}
		spent, err := o.Queue.Spend(ctx, l.key, len(m.tx.recipients), l.limit)
		if err != nil {
			return err
		}
		if spent.OK {
			continue
		}
		m.srv.metrics.limited.WithLabelValues(o.Policy.label(m.tx.class)).Inc()
		o.Logger.Warn("client is over its limit", "client", m.tx.client, "class", m.tx.class, "key", l.key, "rcpts", len(m.tx.recipients),
			"limit", l.limit.Count, "window", l.limit.Window, "retry_after", spent.RetryAfter.Round(time.Second))
		if class.RejectOverLimit {
			return errLimitReject
		}
		return errLimit
	}
	return nil
}

// repeats reads a body and knows at its end whether this message was accepted
// before: a client that vanished before it read the 250 brings it again
// (RFC 1047).
type repeats struct {
	m    *reception
	body io.Reader
	hash hash.Hash
	key  [32]byte
	err  error
}

// repeated ends the reading of a message that is in the queue already.
type repeated struct{ id queue.MessageID }

func (r *repeated) Error() string { return "this message was accepted as " + string(r.id) }

// newRepeats begins with what is known at the end of the header: who sends what
// to whom. The header is the client's, before we change anything.
func (m *reception) newRepeats(h *header) *repeats {
	r := &repeats{m: m, body: m.body, hash: sha256.New()}
	write := func(text string) {
		_, _ = io.WriteString(r.hash, text) // a hash cannot fail
		_, _ = r.hash.Write([]byte{0})
	}
	write(m.tx.client)
	write(m.tx.sender.String())
	for i := range m.tx.recipients {
		r := &m.tx.recipients[i]
		write(r.Path.String())
		write(r.ORCPT)
		write(strings.Join(r.Notify, ","))
	}
	write(m.tx.mail.envid)
	write(m.tx.mail.ret)
	write(strconv.FormatBool(m.tx.mail.flags.RequireTLS))
	write(m.tx.mail.times.said)
	_, _ = r.hash.Write(h.buf)
	return r
}

func (r *repeats) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.body.Read(p)
	_, _ = r.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		r.hash.Sum(r.key[:0])
		id, isKnown, seenErr := r.m.srv.options.Queue.Seen(r.m.srv.ctx, r.key)
		if seenErr != nil {
			r.m.srv.options.Logger.Warn("cannot look for an earlier copy of a message", "msg_id", string(r.m.id), "error", seenErr.Error())
		}
		if isKnown {
			err = &repeated{id}
		}
	}
	r.err = err
	if n > 0 {
		return n, nil
	}
	return n, err
}

// remember notes the message before the client gets its 250.
func (r *repeats) remember(id queue.MessageID) {
	if err := r.m.srv.options.Queue.Remember(r.m.srv.ctx, r.key, id); err != nil {
		r.m.srv.options.Logger.Warn("a repeat of a message would not be noticed", "msg_id", string(id), "error", err.Error())
	}
}

// again answers a repeat with the id of the first.
func (m *reception) again(first *repeated, messageID string) error {
	m.srv.metrics.messages.WithLabelValues("repeated").Inc()
	m.srv.options.Logger.Info("message repeated", "msg_id", string(first.id), "client", m.tx.client, "remote", m.conn.remote.String(),
		"message_id", messageID)
	m.id = first.id
	return nil
}

func (m *reception) trace(class *Class) *trace {
	t := &trace{
		helo:     m.tx.helo,
		remote:   literal(m.conn.remote),
		hostname: m.srv.options.Hostname,
		protocol: protocolName(m.tx.isESMTP, m.tx.mail.flags.SMTPUTF8, m.tx.tlsState != nil, m.tx.account != nil),
		id:       m.id,
		now:      time.Now(),
	}
	if state := m.tx.tlsState; state != nil {
		t.tls = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
		if len(state.PeerCertificates) > 0 {
			t.certificate = state.PeerCertificates[0]
		}
	}
	t.isHidden = class.Submits && class.HideReceived
	if len(m.tx.recipients) == 1 {
		t.recipient = m.tx.recipients[0].Path.String()
	}
	return t
}

func (m *reception) envelope(h *header, t *trace) queue.Envelope {
	env := queue.Envelope{
		ReversePath: m.tx.mail.path,
		Recipients:  m.tx.recipients,
		ENVID:       m.tx.mail.envid,
		RET:         m.tx.mail.ret,
		Flags:       m.tx.mail.flags,
		Deadline:    m.tx.mail.times.deadline(t.now),
		Client:      m.tx.client,
		Class:       m.tx.class,
		RemoteAddr:  m.conn.remote.String(),
		Helo:        m.tx.helo,
		HeaderFrom:  h.authorDomain(),
		Accepted:    t.now,
	}
	env.Flags.TLSOptional = h.isTLSOptional() && !env.Flags.RequireTLS // which goes before it (RFC 8689 §3)
	if hold := m.tx.mail.times.hold; hold.After(t.now) {
		env.HoldUntil = hold
	}
	if m.tx.isIncoming {
		env.HoldUntil = time.Time{}
		incoming(&env)
	}
	return env
}

// record notes the reception, an event for every recipient and one log line.
func (m *reception) record(env *queue.Envelope, messageID string, size int64) {
	took := time.Since(m.started)
	event := queue.Event{
		Type:      queue.Reception,
		ID:        m.id,
		Sender:    env.ReversePath.String(),
		MessageID: messageID,
		Client:    env.Client,
		Class:     env.Class,
		Peer:      peerName(env.Helo, m.conn.remote),
		Size:      size,
		Duration:  took,

		RequireTLS: env.Flags.RequireTLS,
	}
	if m.tx.tlsState != nil {
		event.TLS = tls.VersionName(m.tx.tlsState.Version)
	}
	for i := range env.Recipients {
		r := &env.Recipients[i]
		event.Recipient, event.Notify, event.Owner = r.Path.String(), strings.Join(r.Notify, ","), ""
		if !r.Owner.IsNull() {
			event.Owner = r.Owner.String()
		}
		m.srv.options.Queue.Record(event)
	}
	m.srv.metrics.recipients.Add(float64(len(env.Recipients)))
	m.srv.metrics.bytes.Add(float64(size))
	m.srv.metrics.duration.Observe(took.Seconds())
	m.srv.options.Logger.Info("message accepted", "msg_id", string(m.id), "client", env.Client, "remote", env.RemoteAddr,
		"rcpts", len(env.Recipients), "size", size)
}
