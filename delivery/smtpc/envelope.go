package smtpc

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// weigh holds the message against what the host offers, before anything is
// said. What the hop cannot keep is refused for good, the whole message or single recipients.
func (t *transaction) weigh() *Error {
	c, m := t.c, &t.m
	if m.Flags.RequireTLS && (c.tls == nil || c.o.TLS != TLSVerify || !c.ext.Has("REQUIRETLS")) { // RFC 8689 §4.2.1
		if !m.From.IsNull() {
			return refuse(550, "5.7.30", ErrNeedRequireTLS, "")
		}
		m.Flags.RequireTLS = false // a notification goes on without it (RFC 8689 §5)
	}
	if limit := c.ext.MaxSize(); limit > 0 && m.Size > limit { // RFC 1870 §6.2
		return refuse(552, "5.3.4", ErrTooLarge, fmt.Sprintf(": %d octets of %d", m.Size, limit))
	}
	if failure := t.weighDeadline(time.Now()); failure != nil {
		return failure
	}
	eightBit := hasEightBit(t.body.piece)
	if eightBit && !c.ext.Has("8BITMIME") { // RFC 6152 §3; later pieces are watched as they go
		return refuse(554, "5.6.3", ErrNeed8BITMIME, "")
	}
	t.eightBit = (eightBit || m.Flags.EightBit) && c.ext.Has("8BITMIME")
	if !safePath(m.From) {
		return refuse(553, "5.1.7", fmt.Errorf("reverse-path %q cannot be sent", m.From), "")
	}
	return t.weighUTF8(eightBit)
}

// maxBy is the largest number of seconds that BY= can say.
const maxBy = 999_999_999

// weighDeadline decides on BY= (RFC 2852 §4.2). A message that is to come back when it is late goes to no host that does not promise that.
func (t *transaction) weighDeadline(now time.Time) *Error {
	d := t.m.Deadline
	if d.IsZero() {
		return nil
	}
	left := max(-maxBy, min(int64(d.At.Sub(now).Seconds()), maxBy))
	param, isOffered := t.c.ext.Param("DELIVERBY")
	least, err := strconv.ParseInt(param, 10, 64)
	switch {
	case d.Return && !isOffered:
		return refuse(550, "5.4.7", ErrNeedDeliverBy, "")
	case d.Return && (left < 1 || err == nil && left < least):
		return refuse(550, "5.4.7", ErrTooLate, fmt.Sprintf(": %d s left, of which it wants %d", left, max(1, least)))
	case !isOffered:
		return nil
	}
	mode := "N"
	if d.Return {
		mode = "R"
	}
	if d.Trace {
		mode += "T"
	}
	t.by = strconv.FormatInt(left, 10) + ";" + mode
	return nil
}

// weighUTF8 decides on SMTPUTF8 (RFC 6531 §3). A message that was accepted with it
// but is plain ASCII throughout can do without, one by one for its recipients.
func (t *transaction) weighUTF8(eightBit bool) *Error {
	c, m := t.c, &t.m
	plain := t.body.last && !eightBit
	offered := c.ext.Has("SMTPUTF8")
	if !offered && (m.From.NeedsSMTPUTF8() || m.Flags.SMTPUTF8 && !plain) {
		return refuse(550, "5.6.7", ErrNeedSMTPUTF8, "")
	}
	t.utf8 = offered && (m.Flags.SMTPUTF8 || m.From.NeedsSMTPUTF8())
	t.todo = make([]int, 0, len(m.Recipients))
	for i, rcpt := range m.Recipients {
		switch {
		case !safePath(rcpt.Path) || rcpt.Path.IsNull():
			t.fates[i] = localReply(PhaseRcpt, 553, "5.1.3", "address cannot be sent")
		case rcpt.Path.NeedsSMTPUTF8() && !offered:
			t.fates[i] = localReply(PhaseRcpt, 550, "5.6.7", ErrNeedSMTPUTF8.Error())
		default:
			t.utf8 = t.utf8 || rcpt.Path.NeedsSMTPUTF8()
			t.todo = append(t.todo, i)
		}
	}
	return nil
}

func refuse(code int, enhanced string, cause error, more string) *Error {
	r := localReply(PhaseMail, code, enhanced, cause.Error()+more)
	return &Error{Phase: PhaseMail, Reply: &r, Err: cause}
}

// command appends the line of a step.
func (t *transaction) command(dst []byte, s step) []byte {
	switch {
	case s == stepReset:
		dst = append(dst, "RSET"...)
	case s == stepMail:
		dst = t.mail(dst)
	case s == t.stepData() && t.chunk.isUsed:
		return t.bdat(dst)
	case s == t.stepData():
		dst = append(dst, "DATA"...)
	default:
		dst = t.rcpt(dst, &t.m.Recipients[t.todo[s]])
	}
	return append(dst, "\r\n"...)
}

// mail appends MAIL with the parameters that the host offers to take.
func (t *transaction) mail(dst []byte) []byte {
	ext, m := t.c.ext, &t.m
	dst = append(dst, "MAIL FROM:<"...)
	dst = append(dst, m.From.String()...)
	dst = append(dst, '>')
	if m.Size > 0 && ext.Has("SIZE") {
		dst = append(dst, " SIZE="...)
		dst = strconv.AppendInt(dst, m.Size, 10)
	}
	if t.eightBit {
		dst = append(dst, " BODY=8BITMIME"...)
	}
	if t.utf8 {
		dst = append(dst, " SMTPUTF8"...)
	}
	if m.Flags.RequireTLS {
		dst = append(dst, " REQUIRETLS"...)
	}
	dst = param(dst, " BY=", t.by)
	if ext.Has("DSN") { // RFC 3461 §4.3, §4.4
		dst = param(dst, " RET=", m.RET)
		dst = param(dst, " ENVID=", m.ENVID)
	}
	return dst
}

// rcpt appends RCPT with its DSN parameters (RFC 3461 §4.1, §4.2).
func (t *transaction) rcpt(dst []byte, r *queue.Recipient) []byte {
	dst = append(dst, "RCPT TO:<"...)
	dst = append(dst, r.Path.String()...)
	dst = append(dst, '>')
	if t.c.ext.Has("DSN") {
		orcpt := r.ORCPT
		if !t.utf8 {
			orcpt = utf8AddrXtext(orcpt)
		}
		dst = param(dst, " NOTIFY=", strings.Join(r.Notify, ","))
		dst = param(dst, " ORCPT=", orcpt)
	}
	return dst
}

// param appends a parameter, unless it is empty or would not stay one word.
func param(dst []byte, name, value string) []byte {
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return dst
	}
	dst = append(dst, name...)
	return append(dst, value...)
}

// utf8AddrXtext writes the non-ASCII characters of an ORCPT in the form that
// any DSN host can take (RFC 6533 §3).
func utf8AddrXtext(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r > 0x7f {
			fmt.Fprintf(&b, `\x{%X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// safePath reports that a path holds nothing that could end its command line.
func safePath(p address.Path) bool {
	return !strings.ContainsFunc(p.Local+p.Domain, func(r rune) bool { return r < ' ' || r == 0x7f })
}
