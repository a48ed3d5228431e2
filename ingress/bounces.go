package ingress

import (
	"errors"
	"strings"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/verp"
)

// BounceClass is the class of what anybody may send: mail to the addresses that bounces come back to.
const BounceClass = "bounces"

// Bounces are the addresses of our own that mail is taken for, from anybody on listeners with Bounces.
type Bounces struct {
	Ring *verp.Ring // makes the addresses that bounces come back to; they are all in its domain
	// Mailboxes of that domain are read by people: mail for these local parts, in lower case, goes on to the address behind them.
	Mailboxes map[string]address.Path
	// Feedback are local parts of it, in lower case, to which reports of complaints come; who they are about is read from them.
	Feedback map[string]bool
}

// maxBounceRecipients bounds those of one mail that comes back: a report is about one mail, and what its sender sent is looked up for it.
const maxBounceRecipients = 10

// isBounce reports an address of the domain for bounces.
func (o *Options) isBounce(path address.Path) bool {
	return o.Bounces != nil && path.Domain == o.Bounces.Ring.Domain()
}

// recipient is what becomes of one. Nobody is ever told what became of it: who sent it may be made up (RFC 5321 §6.2).
func (b *Bounces) recipient(path address.Path) (queue.Recipient, error) {
	r := queue.Recipient{Path: path, Notify: []string{"NEVER"}}
	if to, ok := b.Mailboxes[strings.ToLower(path.Local)]; ok {
		r.Path = to
		return r, nil
	}
	if b.Feedback[strings.ToLower(path.Local)] {
		return r, nil
	}
	_, err := b.Ring.Read(path)
	switch {
	case errors.Is(err, verp.ErrNoKeys):
		return r, errBounceLater
	case err != nil:
		return r, errNoBounce
	}
	return r, nil
}

// bounceRcpt takes a recipient at the domain for bounces: from anybody where the listener says so, and from clients of our own.
func (s *session) bounceRcpt(tx *transaction, path address.Path) error {
	o := &s.srv.options
	switch {
	case s.conn.client == "" && !s.conn.listener.Bounces:
		return errRelaying
	case len(tx.recipients) > 0 && !tx.isIncoming:
		return errBouncesApart
	case len(tx.recipients) >= o.MaxRecipients || tx.octets > maxRecipientOctets:
		return errTooManyRecipients
	}
	rcpt, err := o.Bounces.recipient(path)
	if err != nil {
		return err
	}
	token, err := o.Bounces.Ring.Read(path)
	if err == nil && tx.cameBack != "" && tx.cameBack != token.ID {
		return errBouncesApart
	}
	for _, r := range tx.recipients {
		if r.Path == rcpt.Path {
			return nil // what is said once is not taken twice
		}
	}
	if len(tx.recipients) >= maxBounceRecipients {
		return errTooManyRecipients
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tx.isIncoming, tx.mail.path = true, address.Path{}
	if err == nil {
		tx.cameBack = token.ID
	}
	if tx.client == "" {
		tx.client, tx.class = BounceClass, BounceClass
	}
	tx.recipients = append(tx.recipients, rcpt)
	tx.octets += len(rcpt.Path.Local) + len(rcpt.Path.Domain)
	return nil
}

// classOf is what the sender of a transaction may do. What comes back is never changed, whoever brings it.
func (m *reception) classOf() *Class {
	class := m.srv.options.Policy.class(m.tx.class)
	if !m.tx.isIncoming {
		return class
	}
	c := *class
	c.Submits, c.HideReceived, c.MaxHold = false, false, 0
	return &c
}

// incoming makes an envelope that of mail that came back: what its sender wished of its delivery does not concern us.
func incoming(env *queue.Envelope) {
	env.Incoming = true
	env.ENVID, env.RET, env.Deadline = "", "", queue.Deadline{}
	env.Flags = queue.Flags{EightBit: env.Flags.EightBit, SMTPUTF8: env.Flags.SMTPUTF8}
}
