package smtpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	flightBytes = 16 << 10        // commands in one flight: replies to them must fit the peer's window (RFC 2920 §3.1)
	minRate     = 500             // octets of content a second at least, on the average
	earlyReply  = 2 * time.Second // for a reply that must be there already: of a peer that hung up while the content was written, or that was not asked
)

// transaction is one run of MAIL, RCPT, DATA and the content.
type transaction struct {
	c    *Conn
	m    Message
	body content
	out  []byte

	todo     []int   // recipients that the host is asked about
	fates    []Reply // of all recipients; Code 0: not known yet
	accepted []int   // recipients that the host took
	utf8     bool    // SMTPUTF8 is asked for
	eightBit bool    // BODY=8BITMIME is asked for
	by       string  // value of BY=, if that is asked for
	chunk    chunk
	ready    bool // the host waits for content
	replies  int  // read so far
}

// buffers are those of one transaction.
type buffers struct{ in, out []byte }

var bufferPool = sync.Pool{New: func() any {
	return &buffers{in: make([]byte, pieceBytes), out: make([]byte, 0, pieceBytes+pieceBytes/8)}
}}

// Send runs one transaction. The Result is complete whatever the error; an
// error is an *Error, and tells why the message as a whole, or the
// connection, failed. ctx must outlive the answer to the final dot: ending it
// there leaves the message in doubt.
func (c *Conn) Send(ctx context.Context, m Message) (Result, error) {
	b := bufferPool.Get().(*buffers)
	t := &transaction{
		c: c, m: m, out: b.out[:0],
		body:  content{r: m.Body, size: m.Size, buf: b.in},
		fates: make([]Reply, len(m.Recipients)),
	}
	failure := t.run(ctx)
	b.out = t.out
	bufferPool.Put(b)

	res := Result{Recipients: t.fates, DSN: c.ext.Has("DSN"), Deadline: t.by != ""}
	if failure == nil {
		return res, nil
	}
	fate := failure.Fate()
	fate.InDoubt = failure.InDoubt
	for i := range t.fates {
		if t.fates[i].Code == 0 {
			t.fates[i] = fate
			res.InDoubt = fate.InDoubt
		}
	}
	failure.InDoubt = res.InDoubt // of those who were refused before nothing is in doubt
	return res, failure
}

func (t *transaction) run(ctx context.Context) *Error {
	c := t.c
	if !c.Reusable() {
		return &Error{Phase: PhaseMail, Err: ErrNotReusable}
	}
	if err := t.body.next(); err != nil { // before MAIL: a body that cannot be read costs the host nothing
		return &Error{Phase: PhaseMail, Err: err}
	}
	c.tap = t.m.Tap
	if failure := t.weigh(); failure != nil || len(t.todo) == 0 {
		if failure != nil {
			c.tap.note("not sent: ", failure.Error())
		}
		return failure
	}
	if failure := t.prepareChunk(); failure != nil {
		return failure
	}
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	reused := c.transactions > 0
	failure := t.dialogue()
	if !stop() {
		c.broken = true
	}
	if failure == nil {
		return nil
	}
	c.broken = true
	c.raw.Close() // never a dot behind a content that broke off
	if reused && t.idleClosed(failure) {
		failure.Err = errors.Join(ErrStale, failure.Err)
	}
	failure = withCause(ctx, failure)
	c.tap.note("closed: ", failure.Error())
	return failure
}

// idleClosed reports that the host hung up between two transactions.
func (t *transaction) idleClosed(failure *Error) bool {
	if failure.Reply != nil {
		return failure.Reply.Closing() && t.replies == 1
	}
	return t.replies == 0 && !errors.Is(failure.Err, os.ErrDeadlineExceeded) && !errors.Is(failure.Err, ErrProtocol)
}

func (t *transaction) dialogue() *Error {
	if failure := t.envelope(); failure != nil {
		return failure
	}
	if !t.ready {
		return nil
	}
	if len(t.accepted) == 0 {
		return t.loneDot()
	}
	if failure := t.content(); failure != nil {
		return failure
	}
	return t.dot()
}

// step is a command of the envelope: a recipient's place in todo, or one of these.
type step int

const (
	stepReset step = -2
	stepMail  step = -1
)

func (t *transaction) phase(s step) Phase {
	switch {
	case s < 0:
		return PhaseMail
	case s == t.stepData() && t.chunk.isUsed:
		return PhaseDot
	case s == t.stepData():
		return PhaseData
	}
	return PhaseRcpt
}

func (t *transaction) stepData() step { return step(len(t.todo)) }

// envelope says everything up to DATA: in one flight with PIPELINING (RFC
// 2920), else step by step. Afterwards every recipient was taken or has a fate.
func (t *transaction) envelope() *Error {
	c := t.c
	s := stepMail
	if c.needReset {
		s = stepReset
	}
	c.needReset = true // until a clean 250 to the dot
	c.transactions++
	pipelining := c.ext.Has("PIPELINING")
	for s <= t.stepData() {
		if s > stepMail && t.settled() {
			return nil
		}
		first := s
		if c.r.Buffered() > 0 {
			return t.outOfTurn(t.phase(first), Reply.Closing)
		}
		t.out = t.out[:0]
		for s <= t.stepData() && (s == first || pipelining && len(t.out) < flightBytes) {
			t.out = t.command(t.out, s)
			s++
		}
		t.tell(s > t.stepData())
		if t.chunk.isUsed && s > t.stepData() {
			t.sent()
		}
		if err := c.write(t.out, c.timeout(t.phase(first))); err != nil {
			return &Error{Phase: t.phase(first), Err: err}
		}
		t.chunk.isSent = t.chunk.isUsed && s > t.stepData()
		for r := first; r < s; r++ {
			if failure := t.answer(r); failure != nil {
				return failure
			}
		}
	}
	return nil
}

// tell lets a tap hear the flight; the content only by its length.
func (t *transaction) tell(isLast bool) {
	tap := t.c.tap
	switch {
	case tap == nil:
	case isLast && t.chunk.isUsed:
		tap.commands(string(t.out[:t.chunk.at]))
		tap.content(t.body.read)
	default:
		tap.commands(string(t.out))
	}
}

// outOfTurn is the failure that a reply makes which came before it was asked for.
func (t *transaction) outOfTurn(phase Phase, counts func(Reply) bool) *Error {
	r, err := t.c.unasked(phase, counts)
	if err != nil {
		return &Error{Phase: phase, Err: err}
	}
	return &Error{Phase: phase, Reply: &r}
}

// settled reports that nobody is left to deliver to, so that the rest need not be said.
func (t *transaction) settled() bool {
	for _, i := range t.todo {
		if t.fates[i].Code == 0 {
			return false
		}
	}
	return true
}

// answer reads the reply to a step and files it.
func (t *transaction) answer(s step) *Error {
	phase := t.phase(s)
	timeout := t.c.timeout(phase)
	if t.chunk.isSent { // its replies may come all together, once the content has been seen to
		timeout = t.c.o.Timeouts.Dot
	}
	r, err := t.c.reply(phase, timeout)
	if err != nil {
		return &Error{Phase: phase, Err: err, InDoubt: t.chunk.isSent}
	}
	t.replies++
	refused := r.Code >= 400
	switch {
	case r.Closing():
		return &Error{Phase: phase, Reply: &r}
	case s == t.stepData() && t.chunk.isUsed:
		return t.taken(r)
	case s == stepReset && !r.OK(), !refused && r.OK() == (s == t.stepData()):
		t.forget()
		return &Error{Phase: phase, Err: fmt.Errorf("%w: %s in answer to %s", ErrProtocol, r, phase), InDoubt: t.chunk.isSent}
	case s == stepReset:
	case s == stepMail && refused:
		t.settle(t.todo, r)
	case s == stepMail:
	case s == t.stepData() && refused:
		t.settle(t.accepted, r)
		t.accepted = nil
	case s == t.stepData():
		t.ready = true
	case t.fates[t.todo[s]].Code != 0: // MAIL was refused already: this only follows from it
	case refused:
		t.fates[t.todo[s]] = fullIsLater(r)
	default:
		t.accepted = append(t.accepted, t.todo[s])
	}
	return nil
}

// forget takes back what was made of earlier replies: where one answers something else, they may belong to other recipients than it seemed.
func (t *transaction) forget() {
	t.settle(t.todo, Reply{})
	t.accepted = nil
}

// settle gives the recipients their fate.
func (t *transaction) settle(rcpts []int, r Reply) {
	for _, i := range rcpts {
		t.fates[i] = r
	}
}

// fullIsLater turns 552 into 452: at RCPT it once meant "too many recipients" (RFC 5321 §4.5.3.1.10).
func fullIsLater(r Reply) Reply {
	if r.Code == 552 {
		r.Code = 452
		if detail, ok := strings.CutPrefix(r.Enhanced, "5."); ok {
			r.Enhanced = "4." + detail
		}
	}
	return r
}

// loneDot ends a DATA that was pipelined behind recipients who were all
// refused and was answered 354 all the same (RFC 2920 §3.1). Whatever the host says to it, nobody gets anything.
func (t *transaction) loneDot() *Error {
	c := t.c
	c.tap.line(Client, ".")
	if err := c.write([]byte(".\r\n"), c.o.Timeouts.Data); err != nil {
		return &Error{Phase: PhaseData, Err: err}
	}
	r, err := c.reply(PhaseData, c.o.Timeouts.Data)
	if err != nil {
		return &Error{Phase: PhaseData, Err: err}
	}
	if r.Closing() {
		return &Error{Phase: PhaseData, Reply: &r}
	}
	return nil
}

// content writes the body; its last piece carries the dot. A failure before
// that ends the connection, so that the host cannot take half a message for a whole one.
func (t *transaction) content() *Error {
	c := t.c
	if c.r.Buffered() > 0 { // a refusal may come early, a verdict on what was not said yet may not
		return t.outOfTurn(PhaseBody, func(r Reply) bool { return r.Code >= 400 })
	}
	var s stuffer
	watch := !c.ext.Has("8BITMIME")
	start := time.Now()
	for {
		if watch && hasEightBit(t.body.piece) {
			r := localReply(PhaseBody, 554, "5.6.3", ErrNeed8BITMIME.Error())
			return &Error{Phase: PhaseBody, Reply: &r, Err: ErrNeed8BITMIME}
		}
		var err error
		t.out, err = s.append(t.out[:0], t.body.piece)
		if err == nil && t.body.last {
			t.out, err = s.end(t.out)
		}
		if err != nil {
			r := localReply(PhaseBody, 554, "5.6.0", err.Error())
			return &Error{Phase: PhaseBody, Reply: &r, Err: err}
		}
		if t.body.last {
			t.sent()
		}
		// A host that takes little at a time is waited for as long as a slow line needs, not for ever.
		pace := time.Duration(t.body.read/minRate) * time.Second
		if err := c.write(t.out, min(c.o.Timeouts.Block, c.o.Timeouts.Block+pace-time.Since(start))); err != nil {
			return t.cutShort(err)
		}
		if t.body.last {
			c.tap.content(t.body.read)
			c.tap.line(Client, ".")
			return nil
		}
		if err := t.body.next(); err != nil {
			return &Error{Phase: PhaseBody, Err: err}
		}
	}
}

// sent tells the caller that from now on the host may have the whole message.
func (t *transaction) sent() {
	if t.m.Sent != nil {
		t.m.Sent()
	}
}

// cutShort looks for the reply of a host that refused and hung up while content was still on its way.
func (t *transaction) cutShort(cause error) *Error {
	failure := &Error{Phase: PhaseBody, Err: cause, InDoubt: t.body.last}
	if errors.Is(cause, os.ErrDeadlineExceeded) {
		return failure
	}
	if r, err := t.c.reply(PhaseBody, earlyReply); err == nil && r.Code >= 400 {
		failure.Reply, failure.InDoubt = &r, false
	}
	return failure
}

// dot reads the verdict on the content. Without one the message is in doubt (RFC 1047).
func (t *transaction) dot() *Error {
	c := t.c
	r, err := c.reply(PhaseDot, c.o.Timeouts.Dot)
	if err == nil && r.Code/100 == 3 {
		err = fmt.Errorf("%w: %s in answer to the dot", ErrProtocol, r)
	}
	if err != nil {
		return &Error{Phase: PhaseDot, Err: err, InDoubt: true}
	}
	t.settle(t.accepted, r)
	if r.Closing() {
		return &Error{Phase: PhaseDot, Reply: &r}
	}
	c.needReset = !r.OK()
	return nil
}

func (c *Conn) timeout(p Phase) time.Duration {
	switch p {
	case PhaseMail:
		return c.o.Timeouts.Mail
	case PhaseRcpt:
		return c.o.Timeouts.Rcpt
	}
	return c.o.Timeouts.Data
}
