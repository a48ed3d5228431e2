package smtpc

import "fmt"

// chunk sends a small message as one chunk behind its envelope, in one flight (RFC 3030, RFC 2920): without the wait for 354
// it takes one round trip instead of two. The host may take it for those recipients whom it takes, whatever it says to the
// others; as long as no reply has come, everything is in doubt.
type chunk struct {
	isUsed, isSent bool
	needsEnd       bool // the content does not end in CRLF
	at             int  // where it begins in the flight
}

// prepareChunk decides on BDAT. Content that could not be sent is found out before a word is said.
func (t *transaction) prepareChunk() *Error {
	c := t.c
	if !c.o.Chunking || !t.body.last || !c.ext.Has("CHUNKING") || !c.ext.Has("PIPELINING") || namesRecipients(t.body.piece) {
		return nil
	}
	var s stuffer
	var err error
	if t.out, err = s.append(t.out[:0], t.body.piece); err == nil {
		t.chunk.needsEnd = s.inLine
		_, err = s.end(t.out)
	}
	if err != nil {
		r := localReply(PhaseBody, 554, "5.6.0", err.Error())
		return &Error{Phase: PhaseBody, Reply: &r, Err: err}
	}
	t.chunk.isUsed = true
	return nil
}

// namesRecipients reports content that could address somebody if it were taken for commands. There are hosts that read a chunk as
// commands when they have refused everybody before it, and whoever wrote the content must not speak to them in our name.
func namesRecipients(content []byte) bool {
	for rest := content; len(rest) >= 4; rest = rest[1:] {
		if rest[0]|0x20 == 'r' && rest[1]|0x20 == 'c' && rest[2]|0x20 == 'p' && rest[3]|0x20 == 't' {
			return true
		}
	}
	return false
}

// bdat appends the command with its chunk.
func (t *transaction) bdat(dst []byte) []byte {
	n := len(t.body.piece)
	if t.chunk.needsEnd {
		n += len("\r\n")
	}
	dst = fmt.Appendf(dst, "BDAT %d LAST\r\n", n)
	t.chunk.at = len(dst)
	dst = append(dst, t.body.piece...)
	if t.chunk.needsEnd {
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// taken files the reply to the chunk, which is that of the whole message.
func (t *transaction) taken(r Reply) *Error {
	isNotKnown := r.Code >= 500 && r.Code <= 504 // the content may have been taken for commands
	switch {
	case isNotKnown && len(t.accepted) > 0:
		return &Error{Phase: PhaseDot, Err: fmt.Errorf("%w: %w: %s", ErrChunking, ErrProtocol, r)}
	case isNotKnown && r.Code != 503: // some say so when they have taken nobody
		return &Error{Phase: PhaseDot, Err: fmt.Errorf("%w: %s in answer to BDAT", ErrProtocol, r)}
	case r.Code/100 == 3:
		return &Error{Phase: PhaseDot, Err: fmt.Errorf("%w: %s in answer to BDAT", ErrProtocol, r), InDoubt: true}
	}
	t.c.broken = t.c.broken || len(t.accepted) == 0 // it may have read the chunk as commands, and still do so
	t.c.needReset = !r.OK() || len(t.accepted) == 0
	t.settle(t.accepted, r)
	return nil
}
