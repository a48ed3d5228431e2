package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"
)

// A session that could not be opened or broke is opened again after a pause, until that was in vain too often.
const (
	reconnectPause = 100 * time.Millisecond
	maxDials       = 50
)

// session sends messages on one connection after the other until no numbers are left.
func (r *run) session(ctx context.Context) {
	for dials := 0; ctx.Err() == nil && dials < maxDials; dials++ {
		c, err := dial(ctx, r.o)
		if err == nil {
			dials = 0
			var more bool
			if more, err = r.transactions(ctx, c); !more {
				c.quit()
				return
			}
			c.quit()
		}
		if err == nil {
			continue
		}
		r.failed(err)
		select {
		case <-time.After(reconnectPause):
		case <-r.ended:
			return
		case <-ctx.Done():
		}
	}
	for range r.next { // let the sender come to its end
	}
}

// transactions sends until the session is to be closed. more is false when there is nothing left to send.
func (r *run) transactions(ctx context.Context, c *client) (more bool, err error) {
	for n := 0; r.o.PerSession == 0 || n < r.o.PerSession; n++ {
		select {
		case number, ok := <-r.next:
			if !ok {
				return false, nil
			}
			token := r.book.begin(number)
			err := c.transaction(r.o, number, token)
			if err == nil {
				r.book.accepted(number)
				continue
			}
			if _, refused := errors.AsType[*textproto.Error](err); !refused {
				return true, err
			}
			r.failed(err)
			if err := c.reset(); err != nil {
				return true, err
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return true, nil
}

// client is one SMTP connection. MAIL, RCPT and DATA go out as one group when the server takes that (RFC 2920).
type client struct {
	conn      net.Conn
	r         *textproto.Reader
	out       bytes.Buffer
	timeout   time.Duration
	pipelines bool
}

func dial(ctx context.Context, o Options) (*client, error) {
	d := net.Dialer{Timeout: o.Timeout}
	conn, err := d.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, r: textproto.NewReader(bufio.NewReader(conn)), timeout: o.Timeout}
	if err := c.greet(o.Hello); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func (c *client) greet(hello string) error {
	c.extend()
	if _, _, err := c.r.ReadResponse(220); err != nil {
		return err
	}
	fmt.Fprintf(&c.out, "EHLO %s\r\n", hello)
	if err := c.flush(); err != nil {
		return err
	}
	_, text, err := c.r.ReadResponse(250)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if strings.EqualFold(strings.TrimSpace(line), "PIPELINING") {
			c.pipelines = true
		}
	}
	return nil
}

func (c *client) extend() {
	_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
}

func (c *client) flush() error {
	c.extend()
	_, err := c.conn.Write(c.out.Bytes())
	c.out.Reset()
	return err
}

// transaction sends one message. A refusal is a *textproto.Error.
func (c *client) transaction(o Options, number int, token string) error {
	recipient := o.Recipient
	if strings.Contains(recipient, "%d") {
		recipient = strings.ReplaceAll(recipient, "%d", fmt.Sprint(number%o.Domains))
	}
	commands := []struct {
		line string
		code int
	}{
		{"MAIL FROM:<" + o.Sender + ">", 250},
		{"RCPT TO:<" + recipient + ">", 250},
		{"DATA", 354},
	}
	if c.pipelines {
		for _, command := range commands {
			c.out.WriteString(command.line + "\r\n")
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
	for i, command := range commands {
		if !c.pipelines {
			c.out.WriteString(command.line + "\r\n")
			if err := c.flush(); err != nil {
				return err
			}
		}
		if _, _, err := c.r.ReadResponse(command.code); err != nil {
			if c.pipelines {
				return c.skip(err, len(commands)-1-i)
			}
			return err
		}
	}
	writeMessage(&c.out, o, recipient, token)
	c.out.WriteString(".\r\n")
	if err := c.flush(); err != nil {
		return err
	}
	_, _, err := c.r.ReadResponse(250)
	return err
}

// skip reads the replies to what was already sent behind a refused command. When DATA was taken all the same,
// the connection is of no further use.
func (c *client) skip(refusal error, replies int) error {
	for range replies {
		code, _, err := c.r.ReadResponse(0)
		if code == 354 {
			return fmt.Errorf("DATA was taken after a refusal: %v", refusal)
		}
		if _, refused := errors.AsType[*textproto.Error](err); err != nil && !refused {
			return err
		}
	}
	return refusal
}

func (c *client) reset() error {
	c.out.WriteString("RSET\r\n")
	if err := c.flush(); err != nil {
		return err
	}
	_, _, err := c.r.ReadResponse(250)
	return err
}

func (c *client) quit() {
	c.out.WriteString("QUIT\r\n")
	if c.flush() == nil {
		_, _, _ = c.r.ReadResponse(221)
	}
	_ = c.conn.Close()
}
