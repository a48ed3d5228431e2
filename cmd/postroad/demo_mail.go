package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/cmd/internal/sink"
	"postroad/signer/keyring"
)

const demoMessage = "From: A Rider <" + demoSender + ">\r\n" +
	"To: You <" + demoForward + ">\r\n" +
	"Subject: The mail never stops\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Content-Transfer-Encoding: 8bit\r\n" +
	"\r\n" +
	"Horses are changed at every station.\r\n"

// sendMail sends one message and returns the reply to its final dot.
func sendMail(ctx context.Context, address, from, to, message string) (reply string, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	t := textproto.NewConn(conn)
	if _, _, err := t.ReadResponse(220); err != nil {
		return "", fmt.Errorf("send: greeting: %w", err)
	}
	for _, step := range []struct {
		say  string
		want int
	}{
		{"EHLO client." + demoDomain, 250},
		{"MAIL FROM:<" + from + "> BODY=8BITMIME", 250},
		{"RCPT TO:<" + to + ">", 250},
		{"DATA", 354},
		{message + ".", 250},
	} {
		if err := t.PrintfLine("%s", step.say); err != nil {
			return "", fmt.Errorf("send: %w", err)
		}
		if _, reply, err = t.ReadResponse(step.want); err != nil {
			return "", fmt.Errorf("send: answer to %.20q: %w", step.say, err)
		}
	}
	_ = t.PrintfLine("QUIT")
	return "250 " + reply, nil
}

// idOf finds the message id in the reply to the final dot.
func idOf(reply string) string {
	for _, word := range strings.FieldsFunc(reply, func(r rune) bool { return r == ' ' || r == ':' || r == '<' || r == '>' }) {
		if len(word) == 27 {
			return word
		}
	}
	return ""
}

// arrival is a message that the sink got.
type arrival struct {
	at         time.Time
	from       string
	to         []string
	subject    string
	size       int
	signatures []signature
}

// signature is a DKIM signature of a message and what a receiver thinks of it.
type signature struct {
	Domain    string `json:"domain"`
	Algorithm string `json:"algorithm"`
	Fault     string `json:"fault,omitempty"`
}

// take verifies what arrived, as a receiver would, and hands it on to be shown. When nobody looks it is dropped.
func (d *demo) take(m *sink.Message) sink.Reply {
	a := arrival{at: time.Now(), from: m.ReversePath, to: append([]string(nil), m.Recipients...), size: len(m.Data)}
	header, _, _ := bytes.Cut(m.Data, []byte("\r\n\r\n"))
	for line := range strings.SplitSeq(string(header), "\r\n") {
		if len(line) > 8 && strings.EqualFold(line[:8], "subject:") {
			a.subject = strings.TrimSpace(line[8:])
		}
	}
	a.signatures = d.verify(m.Data, string(header))
	select {
	case d.arrived <- a:
	default:
	}
	return ""
}

// verify checks every signature against the records that would be in the DNS.
func (d *demo) verify(message []byte, header string) []signature {
	lookup := func(name string) ([]string, error) {
		if record, ok := d.records[name]; ok {
			return []string{record}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	results, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{LookupTXT: lookup, MaxVerifications: 10})
	if err != nil && len(results) == 0 {
		return []signature{{Fault: err.Error()}}
	}
	algorithms := algorithmsOf(header)
	list := make([]signature, 0, len(results))
	for i, r := range results {
		s := signature{Domain: r.Domain}
		if i < len(algorithms) {
			s.Algorithm = algorithms[i]
		}
		if r.Err != nil {
			s.Fault = r.Err.Error()
		}
		list = append(list, s)
	}
	return list
}

// algorithmsOf lists the a= tags of the DKIM-Signature fields in their order.
func algorithmsOf(header string) []string {
	var list []string
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(header)
	for line := range strings.SplitSeq(unfolded, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "DKIM-Signature") {
			list = append(list, tag(value, "a"))
		}
	}
	return list
}

// mustBeSigned wants a good signature of each kind.
func mustBeSigned(signatures []signature) error {
	good := make(map[string]bool)
	for _, s := range signatures {
		if s.Fault == "" && s.Domain == demoDomain {
			good[s.Algorithm] = true
		}
	}
	for _, algorithm := range []keyring.Algorithm{keyring.RSA, keyring.Ed25519} {
		if !good[string(algorithm)] {
			return errors.New("the message arrived without a good signature by " + string(algorithm))
		}
	}
	return nil
}

// report shows a message that arrived.
func (d *demo) report(m arrival) error {
	if d.a.flags.JSON {
		return d.a.print(map[string]any{
			"arrived": m.at, "from": m.from, "to": m.to, "subject": m.subject, "size": m.size, "signatures": m.signatures,
		})
	}
	d.a.say("%s  arrived: <%s> to <%s>, %s, %q\n", m.at.Format(time.TimeOnly), clean(m.from, 320), clean(strings.Join(m.to, ">, <"), 320), octets(int64(m.size)), clean(m.subject, 80))
	if len(m.signatures) == 0 {
		d.a.say("          not signed: there is no key for its domain\n")
	}
	for _, s := range m.signatures {
		verdict := "good"
		if s.Fault != "" {
			verdict = clean(s.Fault, 200)
		}
		d.a.say("          DKIM d=%s a=%s: %s\n", s.Domain, s.Algorithm, verdict)
	}
	return nil
}
