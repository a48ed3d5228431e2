package ingress

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postroad/ingress/account"
	"postroad/ingress/proxy"
)

const (
	inputBytes  = 16 << 10 // input buffer of a connection
	outputBytes = 16 << 10 // replies gathered before they are written in any case
	lingerBytes = 4 << 20  // input thrown away while the last reply is read
	lineBytes   = 64 << 10 // for go-smtp: never reached, commands are bounded before
)

var (
	pastTime  = time.Unix(1, 0)
	endOfData = []byte(".\r\n")
)

// mode says what the next octets from the client are.
type mode int

const (
	modeCommand mode = iota
	modeContent      // of DATA: the session reads it past go-smtp
	modeChunk        // of BDAT: go-smtp reads it, exactly as long as announced
)

// conn is the guard: the net.Conn that go-smtp gets. One goroutine, go-smtp's
// for this connection, does all reading and writing; fields under mu and the
// atomic are for the others (Stop, and Data of a BDAT).
type conn struct {
	srv      *Server
	listener *listener
	raw      net.Conn       // TCP; deadlines are set here also under TLS
	stream   net.Conn       // raw, or TLS over it
	remote   netip.AddrPort // of the client, also behind a load balancer
	client   string         // name of the account or of the trusted network, or ""
	class    string         // of the client
	account  *account.Client
	// isCounted says that the address is counted in; under Server.mu.
	isCounted bool

	input    *[inputBytes]byte
	in       []byte // of input; in[r:w] is unread
	r, w     int
	out      []byte // replies not written yet
	feed     []byte // what go-smtp reads next
	feedLine []byte // room for it
	next     string // a command to feed after this one
	swallow  bool   // the reply to what is fed is not for the client
	mode     mode
	chunk    int64 // octets of the chunk still to come
	started  bool
	broken   bool // writing failed, or the client is gone
	isEnding bool // the reason for hanging up was said

	helo     string
	isESMTP  bool
	chunking bool        // a BDAT came in this transaction
	mail     mailCommand // the MAIL that go-smtp is about to hand to the session
	rcpt     rcptCommand // likewise RCPT
	failures int         // logins that failed
	errors   int         // 5xx replies since the last accepted message
	idle     int         // commands without mail since then
	// isForgiven says that the next 5xx is not to be counted.
	isForgiven bool
	tlsState   *tls.ConnectionState

	hungUp  atomic.Bool
	cause   atomic.Pointer[refusal] // why, when a message was it
	givenUp atomic.Bool             // the chunks that end now are no message
	// wasUseful says that the client brought mail or logged in.
	wasUseful atomic.Bool

	mu            sync.Mutex
	isWaiting     bool // for a command, outside of a transaction
	inTransaction bool
	isDraining    bool // the server stops: no new transaction
	isCut         bool // the server stops now: no further input
	isClosed      bool
}

var _ net.Conn = (*conn)(nil)

// Read gives go-smtp its next command, in the plain form that interpret made,
// or a piece of a chunk. Never more than that: go-smtp's own buffer is empty
// when a session hangs up, so that nothing behind it is ever parsed.
func (c *conn) Read(p []byte) (int, error) {
	if !c.started && !c.start() {
		return 0, io.EOF
	}
	if c.hungUp.Load() {
		if c.mode == modeChunk {
			// EOF would pass for the end of the chunk.
			return 0, smtpError(cmp.Or(c.cause.Load(), errVanished))
		}
		if r := c.cause.Load(); r != nil && c.mode == modeCommand && c.chunking && !c.isEnding && c.hasTransaction() {
			// A chunk was answered before its fault was seen.
			c.isEnding = true
			c.reply(r)
		}
		return 0, io.EOF
	}
	switch {
	case len(c.feed) > 0:
	case c.mode == modeChunk:
		return c.readChunk(p)
	case c.next != "":
		c.setFeed(c.next, nil)
		c.next = ""
	case c.mode == modeContent:
		// Data has read all of it; go-smtp wants to see the end.
		c.feed = endOfData
		c.mode = modeCommand
	case !c.nextCommand():
		return 0, io.EOF
	}
	n := copy(p, c.feed)
	c.feed = c.feed[n:]
	return n, nil
}

// start does what comes before the greeting, which waits in the buffer: the
// header of a load balancer, then the handshake of implicit TLS.
func (c *conn) start() bool {
	c.started = true
	if len(c.listener.balancers) > 0 {
		if !c.readProxyHeader() {
			return false
		}
		c.srv.mu.Lock()
		r := c.srv.countAddress(c)
		c.srv.mu.Unlock()
		if r != nil {
			c.srv.refused(c.remote, r)
			c.out = c.out[:0] // in the place of the greeting
			return c.end(r)
		}
	}
	if c.listener.Implicit {
		return c.handshake()
	}
	if c.r < c.w || hasInput(c.raw) {
		c.out = c.out[:0]
		return c.end(errSpokeFirst)
	}
	return true
}

// readProxyHeader learns from the load balancer who the client is. Without a
// header the connection ends without a word: nobody knows who is there.
func (c *conn) readProxyHeader() bool {
	h, rest, err := proxy.Read(c.raw, time.Now().Add(c.srv.options.HandshakeTimeout), c.in)
	if err != nil {
		c.srv.metrics.connectionsTotal.WithLabelValues("no proxy header").Inc()
		level := slog.LevelWarn
		if errors.Is(err, io.EOF) {
			level = slog.LevelDebug // a bare check whether the port is open
		}
		c.srv.options.Logger.Log(c.srv.ctx, level, "load balancer did not say who the client is", "remote", c.remote.String(), "error", err.Error())
		c.broken = true
		c.hangup()
		return false
	}
	if !h.Local {
		c.remote = h.Source
	}
	if balanced, isBalanced := c.raw.(*prefixed); isBalanced && c.listener.Implicit {
		balanced.rest = bytes.Clone(rest) // the client's handshake may have come with the header
		return true
	}
	c.w = copy(c.in, rest)
	return true
}

// prefixed is a connection of which something was read already. Only the
// goroutine that reads it touches rest.
type prefixed struct {
	net.Conn
	rest []byte
}

// CloseWrite is for linger.
func (p *prefixed) CloseWrite() error {
	if half, isHalf := p.Conn.(interface{ CloseWrite() error }); isHalf {
		return half.CloseWrite()
	}
	return nil
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// hasInput reports that the client has sent something already; it does not wait.
func hasInput(raw net.Conn) bool {
	if balanced, isBalanced := raw.(*prefixed); isBalanced {
		raw = balanced.Conn
	}
	socket, isSocket := raw.(syscall.Conn)
	if !isSocket {
		return false
	}
	control, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = control.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, _ = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return n > 0
}

// nextCommand reads lines until one is for go-smtp.
func (c *conn) nextCommand() bool {
	for {
		if c.errors > c.srv.options.MaxErrors {
			return c.end(errTooManyErrors)
		}
		line, err := c.readLine()
		if err == nil {
			err = c.interpret(line)
		}
		if err == nil {
			if len(c.feed) > 0 {
				return true
			}
			continue
		}
		r, isRefusal := errors.AsType[*refusal](err)
		if !isRefusal || r.hangup {
			return c.end(r)
		}
		c.reply(r)
	}
}

// end hangs up, with a last reply if there is one.
func (c *conn) end(r *refusal) bool {
	if r != nil {
		c.reply(r)
		c.hangupFor(r)
		c.isEnding = true
	}
	c.hangup()
	return false
}

// readLine returns the next line without its CRLF. It is valid until the next
// read.
func (c *conn) readLine() ([]byte, error) { return c.readLineOf(c.srv.options.MaxCommandLength) }

func (c *conn) readLineOf(limit int) ([]byte, error) {
	var deadline time.Time
	for {
		if i := bytes.IndexByte(c.in[c.r:c.w], '\n'); i >= 0 {
			if c.mustEnd() {
				return nil, errShutdown
			}
			line := c.in[c.r : c.r+i+1]
			c.r += i + 1
			return checkLine(line, limit)
		}
		if c.w-c.r >= limit {
			return nil, errTooLongCommand
		}
		if deadline.IsZero() {
			// One deadline for the whole line, however it trickles in.
			deadline = time.Now().Add(c.srv.options.IdleTimeout)
		}
		if err := c.fill(deadline, true); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if c.mustEnd() {
					return nil, errShutdown
				}
				return nil, errIdle
			}
			return nil, err
		}
	}
}

// checkLine refuses what is no CRLF-ended line of text (RFC 5321 §2.3.8).
func checkLine(line []byte, limit int) ([]byte, error) {
	text, hasCRLF := bytes.CutSuffix(line, []byte("\r\n"))
	switch {
	case len(line) > limit:
		return nil, errTooLongCommand
	case !hasCRLF, bytes.IndexByte(text, '\r') >= 0, bytes.IndexByte(text, 0) >= 0:
		return nil, errCommandLine
	}
	return text, nil
}

// mustEnd reports that the server stops and no transaction is open.
func (c *conn) mustEnd() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isCut || c.isDraining && !c.inTransaction
}

// fill writes what there is to say, then reads more input. Reading commands
// outside of a transaction is what Stop interrupts.
func (c *conn) fill(deadline time.Time, isCommand bool) error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	c.mu.Lock()
	if c.isCut || isCommand && c.isDraining && !c.inTransaction {
		c.mu.Unlock()
		return errShutdown
	}
	c.isWaiting = isCommand && !c.inTransaction
	err := c.raw.SetReadDeadline(deadline)
	c.mu.Unlock()
	if err != nil {
		return err
	}

	n, err := c.stream.Read(c.in[c.w:])
	c.w += n

	c.mu.Lock()
	c.isWaiting = false
	c.mu.Unlock()
	if n > 0 {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.broken = true
	}
	return err
}

// fillContent is fill inside a message, with errors that say so.
func (c *conn) fillContent(until time.Time) error {
	deadline := time.Now().Add(c.srv.options.IdleTimeout)
	if until.Before(deadline) {
		deadline = until
	}
	switch err := c.fill(deadline, false); {
	case err == nil, errors.Is(err, errShutdown):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		if c.mustEnd() {
			return errShutdown
		}
		return errStalled
	default:
		return errVanished
	}
}

// readChunk gives go-smtp a piece of the announced chunk. Its errors are
// replies: go-smtp passes them on as they are.
func (c *conn) readChunk(p []byte) (int, error) {
	if c.r == c.w {
		if err := c.fillContent(time.Now().Add(c.srv.options.MessageTimeout)); err != nil {
			c.hangupFor(refusalOf(err))
			return 0, smtpError(err)
		}
	}
	n := int(min(int64(len(p)), int64(c.w-c.r), c.chunk))
	copy(p, c.in[c.r:c.r+n])
	c.r += n
	if c.chunk -= int64(n); c.chunk == 0 {
		c.mode = modeCommand
	}
	return n, nil
}

// Write takes one reply line of go-smtp.
func (c *conn) Write(p []byte) (int, error) {
	if c.hungUp.Load() {
		c.mode = modeCommand // this was the reply to a chunk that broke off
	}
	if c.swallow {
		c.swallow = false
		c.givenUp.Store(false)
		return len(p), nil
	}
	start := len(c.out)
	c.out = c.appendLibrary(c.out, p)
	c.count(c.out[start:])
	if len(c.out) >= outputBytes {
		// A client that does not read its replies does not get more of them.
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// reply says something that go-smtp knows nothing of.
func (c *conn) reply(r *refusal) {
	start := len(c.out)
	c.out = appendReply(c.out, r)
	c.count(c.out[start:])
}

func (c *conn) count(line []byte) {
	switch line[0] {
	case '5':
		if !c.isForgiven {
			c.errors++
		}
		c.isForgiven = false
		fallthrough
	case '4':
		c.srv.metrics.rejections.WithLabelValues(string(line[:3])).Inc()
	}
}

// flush writes the gathered replies at once.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if c.broken {
		c.out = c.out[:0]
		return net.ErrClosed
	}
	err := c.raw.SetWriteDeadline(time.Now().Add(c.srv.options.WriteTimeout))
	if err == nil {
		_, err = c.stream.Write(c.out)
	}
	c.out = c.out[:0]
	if err != nil {
		c.broken = true
	}
	return err
}

// hangup ends the connection: what was said is still written, nothing more is
// read. Safe from any goroutine.
func (c *conn) hangup() { c.hungUp.Store(true) }

// hangupFor hangs up with a reason that the client still gets to hear.
func (c *conn) hangupFor(r *refusal) {
	c.cause.CompareAndSwap(nil, r)
	c.hangup()
}

// lingers reports that unread input may follow our last reply.
func (c *conn) lingers() bool {
	switch c.cause.Load() {
	case nil, errIdle, errShutdown, errVanished:
		return false
	}
	return !c.broken
}

// wasThrownOut reports a stranger whom we sent away.
func (c *conn) wasThrownOut() bool {
	switch c.cause.Load() {
	case errTooManyErrors, errTooManyIdle, errTooManyAuth, errPipelined, errSpokeFirst:
		return c.client == ""
	}
	return false
}

// Close ends the connection for go-smtp, which may call it twice.
func (c *conn) Close() error {
	c.mu.Lock()
	wasClosed := c.isClosed
	c.isClosed = true
	c.mu.Unlock()
	if wasClosed {
		return nil
	}
	c.hangup()
	if c.listener.Implicit && !c.isTLS() {
		c.broken = true // no banner in clear
	}
	_ = c.flush() // nobody is left to tell
	if c.lingers() {
		c.linger()
	}
	err := c.stream.Close()
	if c.input != nil {
		inputs.Put(c.input)
		c.input, c.in = nil, nil
	}
	c.srv.leave(c)
	return err
}

// linger lets the client read our last reply: closing over unread input would
// reset the connection and could take the reply with it.
func (c *conn) linger() {
	if half, isHalf := c.stream.(interface{ CloseWrite() error }); isHalf {
		_ = half.CloseWrite()
	}
	if half, isHalf := c.raw.(interface{ CloseWrite() error }); isHalf && c.isTLS() {
		_ = half.CloseWrite()
	}
	c.mu.Lock()
	err := c.raw.SetReadDeadline(time.Now().Add(c.srv.options.LingerTimeout))
	if c.isCut {
		err = net.ErrClosed
	}
	c.mu.Unlock()
	for left := lingerBytes; err == nil && left > 0; {
		var n int
		n, err = c.raw.Read(c.in)
		left -= n
	}
}

// drain tells the connection that the server stops; cut, that it stops now.
func (c *conn) drain(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isDraining = true
	c.isCut = c.isCut || cut
	if c.isWaiting || cut {
		_ = c.raw.SetReadDeadline(pastTime) // fails only when it is closed
	}
}

func (c *conn) setTransaction(isOpen bool) {
	c.mu.Lock()
	c.inTransaction = isOpen
	c.mu.Unlock()
}

func (c *conn) hasTransaction() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inTransaction
}

// accepted forgives errors: this client brings mail.
func (c *conn) accepted() {
	c.errors, c.idle = 0, 0
	c.wasUseful.Store(true)
}

func (c *conn) isTLS() bool { return c.tlsState != nil }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline does nothing: go-smtp sets no deadlines here, the guard does.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, see SetDeadline.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, see SetDeadline.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
