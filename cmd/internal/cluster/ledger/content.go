package ledger

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
)

const (
	tokenField = "X-Chaos-Token: "
	bodyField  = "X-Chaos-Body: " // octets and CRC-32 of the body
	lineOctets = 74
)

// Compose makes a message of about size octets, with CRLF line ends and
// without dot-stuffing. Its header holds what Check needs.
func Compose(rng *rand.Rand, token, recipient string, size int) []byte {
	body := composeBody(rng, size)
	var b bytes.Buffer
	b.Grow(len(body) + 512)
	fmt.Fprintf(&b, "From: Chaos <%s>\r\nTo: <%s>\r\nSubject: message %s\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n",
		Sender(token), recipient, token)
	fmt.Fprintf(&b, "%s%s\r\n%s%d %08x\r\n\r\n", tokenField, token, bodyField, len(body), crc32.ChecksumIEEE(body))
	b.Write(body)
	return b.Bytes()
}

func composeBody(rng *rand.Rand, size int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789."
	body := make([]byte, 0, size+lineOctets+2)
	for len(body) < size {
		r := rng.Uint64()
		if r%16 == 0 {
			body = append(body, '.') // a line that must be stuffed
		}
		for range lineOctets / 8 {
			for range 8 {
				body = append(body, letters[r&63])
				r >>= 6
			}
			r = rng.Uint64()
		}
		body = append(body, "x\r\n"...) // no space before the line end
	}
	return body
}

// Checker takes a message line by line and says whether it is what Compose
// made. It keeps nothing but sums.
type Checker struct {
	body    bool
	signed  bool
	token   string
	want    string
	octets  int
	sum     uint32
	about   string   // the last Final-Recipient of a notification
	reports []string // those that failed
}

// Line takes one line, with its CRLF.
func (c *Checker) Line(line []byte) {
	switch {
	case c.body:
		c.octets += len(line)
		c.sum = crc32.Update(c.sum, crc32.IEEETable, line)
		c.report(line)
	case len(bytes.TrimRight(line, "\r\n")) == 0:
		c.body = true
	default:
		c.field(strings.TrimRight(string(line), "\r\n"))
	}
}

func (c *Checker) field(s string) {
	switch {
	case strings.HasPrefix(s, tokenField):
		c.token = s[len(tokenField):]
	case strings.HasPrefix(s, bodyField):
		c.want = s[len(bodyField):]
	case hasPrefixFold(s, "DKIM-Signature:"):
		c.signed = true
	}
}

// report keeps the failed recipients of a message/delivery-status part
// (RFC 3464 §2.3.2 and §2.3.3); delayed and relayed ones do not count.
func (c *Checker) report(line []byte) {
	const recipient, action, most = "Final-Recipient:", "Action:", 1000
	s := string(bytes.TrimSpace(line))
	switch {
	case hasPrefixFold(s, recipient):
		_, c.about, _ = strings.Cut(s, ";")
	case hasPrefixFold(s, action) && c.about != "":
		if strings.EqualFold(strings.TrimSpace(s[len(action):]), "failed") && len(c.reports) < most {
			c.reports = append(c.reports, strings.TrimSpace(c.about))
		}
		c.about = ""
	}
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// Reports are the recipients that a notification says have failed.
func (c *Checker) Reports() []string { return c.reports }

// Damage says what is wrong with the message, or nothing.
func (c *Checker) Damage(token string) string {
	switch got := fmt.Sprintf("%d %08x", c.octets, c.sum); {
	case c.token != token:
		return fmt.Sprintf("token %q, want %q", c.token, token)
	case got != c.want:
		return fmt.Sprintf("body %s, want %s", got, c.want)
	case !c.signed:
		return "no signature"
	default:
		return ""
	}
}
