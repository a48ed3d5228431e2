package ingress

import (
	"bytes"
	"crypto/tls"
	"strconv"
	"time"
)

// interpret reads one command line and sets c.feed to what go-smtp shall see:
// a plain form of it that cannot be misread, or nothing when the answer was
// given here. MAIL and RCPT are read here alone (params.go); go-smtp gets a
// stand-in and the session takes the real thing from the guard.
func (c *conn) interpret(line []byte) error {
	word, arg, hasArg := bytes.Cut(line, []byte(" "))
	arg = bytes.TrimRight(bytes.TrimLeft(arg, " "), " ")
	var upper [8]byte
	if len(word) > len(upper) {
		return errUnknown
	}
	for i, b := range word {
		if b >= 'a' && b <= 'z' {
			b -= 'a' - 'A'
		}
		upper[i] = b
	}
	switch string(upper[:len(word)]) {
	case "MAIL":
		return c.commandMail(arg)
	case "RCPT":
		c.rcpt = parseRcpt(arg)
		c.setFeed("RCPT TO:<a@b>", nil)
		return nil
	case "DATA":
		return c.commandData(hasArg)
	case "BDAT":
		return c.commandBdat(arg)
	case "EHLO":
		return c.commandHello("EHLO ", arg, true)
	case "HELO":
		return c.commandHello("HELO ", arg, false)
	case "QUIT":
		c.setFeed("QUIT", nil)
		return nil
	case "RSET":
		c.setFeed("RSET", nil)
		c.giveUpChunks()
	case "NOOP":
		c.setFeed("NOOP", nil)
	case "VRFY":
		c.setFeed("VRFY", nil)
	case "HELP":
		c.reply(replyHelp)
	case "STARTTLS":
		if err := c.spend(); err != nil {
			return err
		}
		return c.commandStartTLS(hasArg)
	case "AUTH":
		if err := c.spend(); err != nil {
			return err
		}
		return c.commandAuth(arg)
	case "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML", "LHLO":
		return errNotImplemented
	default:
		return errUnknown
	}
	return c.spend()
}

// spend counts a command that brings no mail.
func (c *conn) spend() error {
	if c.idle++; c.idle > c.srv.options.MaxIdleCommands {
		c.feed = nil
		return errTooManyIdle
	}
	return nil
}

func (c *conn) setFeed(text string, arg []byte) {
	c.feedLine = append(c.feedLine[:0], text...)
	c.feedLine = append(c.feedLine, arg...)
	c.feedLine = append(c.feedLine, "\r\n"...)
	c.feed = c.feedLine
}

func (c *conn) commandMail(arg []byte) error {
	c.mail = parseMail(arg, offer{isESMTP: c.isESMTP, isTLS: c.isTLS(), hasAuth: c.listener.Auth != AuthNone, maxHold: c.maxHold()})
	if !c.hasTransaction() {
		c.chunking = false
	}
	c.setFeed("MAIL FROM:<>", nil)
	if c.mail.err != nil {
		return nil
	}
	return c.spend()
}

func (c *conn) commandHello(verb string, arg []byte, isESMTP bool) error {
	if err := c.spend(); err != nil {
		return err
	}
	if !isHello(arg) {
		return errArguments
	}
	if c.r < c.w {
		return errPipelined // RFC 2920 §3.1: the last of its group
	}
	c.helo = string(arg)
	c.isESMTP = isESMTP
	c.setFeed(verb, arg)
	c.giveUpChunks()
	return nil
}

// giveUpChunks ends an open BDAT transfer before the command in c.feed resets
// it. When go-smtp resets one itself, the result of its old Data can become
// the reply to the next message. So the transfer gets a regular end, at which
// its reader fails, and the reply to that is dropped.
func (c *conn) giveUpChunks() {
	if !c.chunking || !c.hasTransaction() {
		return
	}
	c.next = string(bytes.TrimSuffix(c.feed, []byte("\r\n")))
	c.givenUp.Store(true)
	c.swallow = true
	c.setFeed("BDAT 0 LAST", nil)
}

// isHello takes more than the Domain or literal of RFC 5321 §4.1.1.1, since
// hosts announce odd names, but nothing that would break a Received field.
func isHello(arg []byte) bool {
	if len(arg) == 0 || len(arg) > 255 {
		return false
	}
	for _, b := range arg {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
		case b == '.' || b == '-' || b == '_' || b == ':' || b == '[' || b == ']':
		default:
			return false
		}
	}
	return true
}

// commandData is strict about what follows: RFC 2920 §3.1 lets nothing be sent
// behind DATA before its reply, and a refused DATA with content behind it
// would turn content into commands.
func (c *conn) commandData(hasArg bool) error {
	if c.r < c.w {
		return errPipelined
	}
	if hasArg {
		return errArguments
	}
	c.setFeed("DATA", nil)
	return nil
}

// commandBdat follows RFC 3030 §2. The chunk belongs to the command also when
// it is refused; when its size cannot be read, nobody knows where commands
// begin again.
func (c *conn) commandBdat(arg []byte) error {
	size, last, hasLast := bytes.Cut(arg, []byte(" "))
	n, err := strconv.ParseUint(string(size), 10, 32)
	if err != nil || hasLast && !bytes.EqualFold(last, []byte("LAST")) {
		return errChunkSize
	}
	c.feedLine = append(c.feedLine[:0], "BDAT "...)
	c.feedLine = strconv.AppendUint(c.feedLine, n, 10)
	if hasLast {
		c.feedLine = append(c.feedLine, " LAST"...)
	}
	c.feedLine = append(c.feedLine, "\r\n"...)
	c.feed = c.feedLine
	c.chunking = true
	if n > 0 {
		c.mode, c.chunk = modeChunk, int64(n)
		return nil
	}
	return c.spend()
}

// commandStartTLS follows RFC 3207 §4. What the client sent in clear behind
// the command ends the session (CVE-2011-0411), and so does a handshake that
// fails: nothing goes on in clear.
func (c *conn) commandStartTLS(hasArg bool) error {
	switch {
	case c.r < c.w:
		return errPipelined
	case hasArg:
		return errArguments
	case c.listener.TLS == nil:
		return errNotImplemented
	case c.isTLS():
		return errTLSAlready
	case c.helo == "" || !c.isESMTP:
		return errNoHello
	case c.hasTransaction():
		return errNested
	}
	c.reply(replyReady)
	if err := c.flush(); err != nil {
		return err
	}
	if !c.handshake() {
		return errHandshake
	}
	// RFC 3207 §4.2: what was said in clear is forgotten.
	c.helo, c.isESMTP = "", false
	if c.account != nil {
		c.account, c.client, c.class = nil, "", ""
	}
	return nil
}

// handshake puts TLS under the session; without success the connection is of
// no use any more.
func (c *conn) handshake() bool {
	secure := tls.Server(c.raw, c.listener.TLS)
	deadline := time.Now().Add(c.srv.options.HandshakeTimeout)
	err := c.raw.SetDeadline(deadline)
	if err == nil {
		err = secure.Handshake()
	}
	if err != nil {
		c.srv.metrics.handshakes.WithLabelValues("failed").Inc()
		c.srv.options.Logger.Info("TLS handshake failed", "client", c.remote.String(), "error", err.Error())
		c.broken = true
		c.hangup()
		return false
	}
	state := secure.ConnectionState()
	c.tlsState = &state
	c.stream = secure
	c.srv.metrics.handshakes.WithLabelValues("done").Inc()
	return true
}
