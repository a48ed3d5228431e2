package ingress

import (
	"crypto/tls"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"postroad/ingress/account"
	"postroad/ingress/rewrite"
	"postroad/queue"
	"postroad/queue/address"
)

// transaction is one MAIL … end of message. It holds all that Data needs of
// the connection, which goes on while Data of a BDAT runs.
type transaction struct {
	mail       mailCommand
	sender     address.Path // the reverse-path as it came; mail.path is what became of it
	helo       string
	isESMTP    bool
	tlsState   *tls.ConnectionState // nil in clear
	account    *account.Client      // nil: a trusted network, or a stranger
	client     string
	class      string
	recipients []queue.Recipient
	isIncoming bool            // all of them are addresses that bounces come back to
	cameBack   queue.MessageID // that such an address names; empty: none did yet
	octets     int             // of the recipients with their parameters
	refused    int             // recipients refused for their number
}

// maxRecipientOctets keeps the envelope well inside of one message of the
// queue, whatever MaxRecipients is.
const maxRecipientOctets = 300 << 10

// session is what go-smtp calls for the commands of one client. Reset and
// Logout may be called while Data of a BDAT runs on another goroutine, and
// under go-smtp's locks: they only clear the transaction.
type session struct {
	srv  *Server
	conn *conn

	mu sync.Mutex
	tx *transaction
}

var _ smtp.Session = (*session)(nil)

// newSession is the smtp.Backend: called at the first EHLO or HELO.
func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	guard, isGuard := c.Conn().(*conn)
	if !isGuard {
		return nil, smtpError(errUnavailable)
	}
	return &session{srv: s, conn: guard}, nil
}

// Reset ends the transaction.
func (s *session) Reset() {
	s.mu.Lock()
	s.tx = nil
	s.mu.Unlock()
	s.conn.setTransaction(false)
}

// Logout ends the session.
func (s *session) Logout() error {
	s.Reset()
	return nil
}

// Mail begins a transaction with the MAIL that the guard has read.
func (s *session) Mail(string, *smtp.MailOptions) error {
	c, m := s.conn, s.conn.mail
	switch {
	case c.helo == "":
		return s.refuse("MAIL", m.path, errNoHello) // go-smtp remembers the one from before STARTTLS
	case s.current() != nil:
		return s.refuse("MAIL", m.path, errNested)
	case m.err != nil:
		return s.refuse("MAIL", m.path, m.err)
	case !c.isStillGood():
		c.hangupFor(errAccountChanged)
		return s.refuse("MAIL", m.path, errAccountChanged)
	case c.listener.Auth == AuthRequired && c.account == nil:
		return s.refuse("MAIL", m.path, c.authFirst())
	case m.size > s.srv.options.MaxMessageBytes:
		return s.refuse("MAIL", m.path, errSize)
	case s.srv.options.Queue.Full():
		return s.refuse("MAIL", m.path, errFull)
	}
	tx := &transaction{mail: m, helo: c.helo, isESMTP: c.isESMTP, tlsState: c.tlsState, account: c.account, client: c.client, class: c.class}
	if err := s.complete(&tx.mail.path, m.unqualified, errReversePath); err != nil {
		return s.refuse("MAIL", m.path, err)
	}
	if c.account != nil && !tx.mail.path.IsNull() && !c.account.MaySend(tx.mail.path) {
		return s.refuse("MAIL", m.path, errSender)
	}
	if c.client != "" && s.takesNoMail(tx.mail.path) {
		return s.refuse("MAIL", m.path, errNullMX)
	}
	tx.sender = tx.mail.path
	if c.client != "" {
		tx.mail.path = s.srv.options.Rewriter.Sender(tx.sender)
	}
	s.mu.Lock()
	s.tx = tx
	s.mu.Unlock()
	c.setTransaction(true)
	return nil
}

// takesNoMail asks about the domain of a reverse-path, if that is wanted.
func (s *session) takesNoMail(p address.Path) bool {
	ask := s.srv.options.TakesNoMail
	return ask != nil && !p.IsNull() && !address.IsLiteral(p.Domain) && ask(s.srv.ctx, p.Domain)
}

// authFirst is the answer where only clients with an account may send.
func (c *conn) authFirst() *refusal {
	if len(c.mechanisms()) == 0 {
		return errAuthTLSFirst
	}
	return errAuthNeeded
}

// complete puts our domain to an address that came without one (RFC 6409
// §6.2), for clients of our own.
func (s *session) complete(path *address.Path, unqualified string, otherwise *refusal) error {
	if unqualified == "" {
		return nil
	}
	if s.conn.client == "" {
		return otherwise
	}
	completed, err := address.ParseForward(unqualified + "@" + s.srv.options.OwnDomain)
	if err != nil {
		return pathRefusal(err, otherwise)
	}
	*path = completed
	return nil
}

// Rcpt adds the recipient that the guard has read, or those that an alias makes
// of it.
func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	r := s.conn.rcpt
	tx := s.current()
	if tx == nil {
		return s.refuse("RCPT", r.recipient.Path, errNoTransaction)
	}
	if r.err == nil {
		r.err = s.complete(&r.recipient.Path, r.unqualified, errForwardPath)
	}
	o := &s.srv.options
	switch {
	case r.err != nil:
		// One of our own may have a long list with bad addresses in it.
		tx.refused++
		s.conn.isForgiven = s.conn.client != "" && tx.refused <= o.MaxRecipients
		return s.refuse("RCPT", r.recipient.Path, r.err)
	case r.hasUTF8 && !tx.mail.flags.SMTPUTF8:
		return s.refuse("RCPT", r.recipient.Path, errNeedsUTF8)
	case o.isBounce(r.recipient.Path):
		if err := s.bounceRcpt(tx, r.recipient.Path); err != nil {
			return s.refuse("RCPT", r.recipient.Path, err)
		}
		return nil
	case s.conn.client == "":
		return s.refuse("RCPT", r.recipient.Path, errRelaying)
	case tx.isIncoming:
		return s.refuse("RCPT", r.recipient.Path, errBouncesApart)
	case isRouted(r.recipient.Path):
		return s.refuse("RCPT", r.recipient.Path, errRouted)
	case len(tx.recipients) >= o.MaxRecipients || tx.octets > maxRecipientOctets:
		return s.tooMany(tx, r.recipient.Path)
	}
	expanded, err := o.Rewriter.Expand(r.recipient)
	if err != nil {
		return s.refuse("RCPT", r.recipient.Path, err)
	}
	octets := 0
	for i := range expanded {
		if !o.Policy.Allows(expanded[i].Path) {
			return s.refuse("RCPT", r.recipient.Path, errRecipient)
		}
		octets += len(expanded[i].Path.Local) + len(expanded[i].Path.Domain) + len(expanded[i].ORCPT)
	}
	if tx.octets+octets > maxRecipientOctets || len(tx.recipients) > 0 && len(tx.recipients)+len(expanded) > o.MaxRecipients {
		return s.tooMany(tx, r.recipient.Path)
	}
	s.mu.Lock()
	tx.recipients = append(tx.recipients, expanded...)
	tx.octets += octets
	s.mu.Unlock()
	return nil
}

// tooMany refuses one recipient and leaves the others as they are (RFC 5321
// §4.5.3.1.10).
func (s *session) tooMany(tx *transaction, path address.Path) error {
	if tx.refused++; tx.refused > s.srv.options.MaxRecipients {
		s.conn.errors++ // somebody who does not listen
	}
	return s.refuse("RCPT", path, errTooManyRecipients)
}

// refuse logs the refusal of a command and makes its reply.
func (s *session) refuse(command string, path address.Path, err error) error {
	r := refusalOf(err)
	s.srv.options.Logger.Info("command refused", "command", command, "path", path.String(), "client", s.conn.client,
		"remote", s.conn.remote.String(), "code", r.code, "enhanced", r.status(), "reason", r.text)
	return smtpError(r)
}

func (s *session) current() *transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx
}

// snapshot is a transaction that no other command changes any more.
func (s *session) snapshot() (transaction, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tx == nil || len(s.tx.recipients) == 0 {
		return transaction{}, false
	}
	tx := *s.tx
	tx.recipients = slices.Clone(tx.recipients)
	return tx, true
}

// Data receives the content. For DATA it reads past go-smtp, straight from the
// guard; for BDAT it reads go-smtp's pipe, on a goroutine of its own.
func (s *session) Data(r io.Reader) error {
	if !s.srv.messages.enter() {
		return smtpError(errShutdown)
	}
	defer s.srv.messages.leave()

	m := &reception{srv: s.srv, conn: s.conn, started: time.Now()}
	var isOpen bool
	m.tx, isOpen = s.snapshot()
	m.tx.recipients = rewrite.Merge(m.tx.recipients)

	pipe, isChunked := r.(*io.PipeReader)
	if isChunked {
		if !isOpen {
			return smtpError(errAborted)
		}
		m.body = s.conn.chunks(pipe)
		return s.finish(m, m.receive())
	}
	content := s.conn.content()
	m.body = content
	err := error(errNoTransaction)
	if isOpen {
		err = m.receive()
	}
	if err != nil {
		if drainErr := content.drain(); drainErr != nil {
			err = drainErr
		}
	}
	return s.finish(m, err)
}

// finish makes the reply to a message.
func (s *session) finish(m *reception, err error) error {
	if err == nil {
		s.conn.accepted()
		s.srv.metrics.messages.WithLabelValues("accepted").Inc()
		return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: textQueued + string(m.id)}
	}
	r := refusalOf(err)
	if r.hangup {
		s.conn.hangupFor(r)
	}
	s.srv.metrics.messages.WithLabelValues(outcome(r)).Inc()
	s.srv.options.Logger.Info("message refused", "msg_id", string(m.id), "client", s.conn.client, "remote", s.conn.remote.String(),
		"code", r.code, "enhanced", r.status(), "reason", r.text, "error", err.Error())
	return smtpError(r)
}
