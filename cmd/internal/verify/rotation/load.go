package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// serverName is what clients know the relay by.
const serverName = "relay.sender.example"

// stepLimit bounds each step of a session: the machine may be busy.
const stepLimit = time.Minute

// load is a fleet of clients of one account.
type load struct {
	o     *options
	t     *tally
	roots *x509.CertPool
	begun time.Time
	next  atomic.Int64 // messages begun

	mu       sync.Mutex
	password string // the newest
	old      string // the one before; empty: none
	changed  time.Time
	number   int // of the newest, from 1
}

func newLoad(o *options, t *tally) (*load, error) {
	pem, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	l := &load{o: o, t: t, roots: x509.NewCertPool()}
	if !l.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", o.ca)
	}
	return l, nil
}

// run sends until ctx ends. Sessions are not cut off: what they have begun they finish.
func (l *load) run(ctx context.Context) {
	l.begun = time.Now()
	var wg sync.WaitGroup
	for n := range l.o.clients {
		wg.Go(func() {
			for l.turn(ctx) {
				if err := l.session(ctx, n); err != nil {
					l.t.failed(err)
				}
			}
		})
	}
	wg.Wait()
}

// turn waits until a message is due; false when ctx has ended.
func (l *load) turn(ctx context.Context) bool {
	n := l.next.Add(1)
	due := l.begun.Add(time.Duration(float64(n) / l.o.rate * float64(time.Second)))
	wait := time.NewTimer(time.Until(due))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wait.C:
		return ctx.Err() == nil
	}
}

// pick gives a client the password that it holds: every second one is told of a new one later.
func (l *load) pick(n int) (password string, number int, err error) {
	text, err := os.ReadFile(l.o.passwordFile)
	if err != nil {
		return "", 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := strings.TrimSpace(string(text)); now != l.password {
		l.old, l.password, l.changed = l.password, now, time.Now()
		l.number++
	}
	if n%2 == 0 && l.old != "" && time.Since(l.changed) < l.o.oldFor {
		l.t.inGrace()
		return l.old, l.number - 1, nil
	}
	return l.password, l.number, nil
}

// session logs in and sends some messages; the first one is due already.
func (l *load) session(ctx context.Context, n int) error {
	l.t.sessionBegun()
	password, number, err := l.pick(n)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", l.o.address, stepLimit)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	step := func(what string, do func() error) error {
		if err := conn.SetDeadline(time.Now().Add(stepLimit)); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	var c *smtp.Client
	if err := step("greeting", func() (err error) { c, err = smtp.NewClient(conn, serverName); return err }); err != nil {
		return err
	}
	if err := step("STARTTLS", func() error { return c.StartTLS(&tls.Config{RootCAs: l.roots, ServerName: serverName}) }); err != nil {
		return err
	}
	state, ok := c.TLSConnectionState()
	if !ok || len(state.PeerCertificates) == 0 {
		return errors.New("no certificate was shown")
	}
	l.t.certificate(state.PeerCertificates[0].SerialNumber.Text(16))
	if err := step(fmt.Sprintf("log in with password %d", number), func() error {
		return c.Auth(smtp.PlainAuth("", l.o.user, password, serverName))
	}); err != nil {
		return err
	}
	l.t.loggedIn(number)
	for sent := 0; ; {
		id := l.t.newID()
		if err := step("message", func() error { return message(c, l.o.domain, id) }); err != nil {
			return err
		}
		l.t.accepted(id)
		if sent++; sent == l.o.each || !l.turn(ctx) {
			break
		}
	}
	return step("QUIT", c.Quit)
}

// message sends one with an id of its own.
func message(c *smtp.Client, domain string, id int64) error {
	if err := c.Mail("rider@" + domain); err != nil {
		return err
	}
	if err := c.Rcpt("you@box.example"); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "From: rider@%s\r\nTo: you@box.example\r\nSubject: load\r\n%s: <%d@load.%s>\r\n\r\nHorses are changed at every station, this is number %d.\r\n",
		domain, idField, id, domain, id)
	if err != nil {
		return err
	}
	return w.Close()
}
