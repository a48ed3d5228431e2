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
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// target is the server that is looked at.
type target struct {
	address string // STARTTLS and accounts
	roots   *x509.CertPool
}

func newTarget(address, ca string) (*target, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", ca)
	}
	return &target{address, roots}, nil
}

// login connects from a local address, makes TLS and logs in.
func (t *target) login(ctx context.Context, from net.IP, user, password string) (*smtp.Client, error) {
	dialer := net.Dialer{Timeout: time.Minute}
	if from != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: from}
	}
	conn, err := dialer.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c, err := smtp.NewClient(conn, "relay.sender.example")
	if err == nil {
		err = c.StartTLS(&tls.Config{RootCAs: t.roots, ServerName: "relay.sender.example"})
	}
	if err == nil {
		err = c.Auth(smtp.PlainAuth("", user, password, "relay.sender.example"))
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// message is what is sent; n makes each one another.
func message(n int64) string {
	return fmt.Sprintf("From: rider@sender.example\r\nTo: you@box.example\r\nSubject: fleet %d\r\nMessage-ID: <%d.%d@sender.example>\r\n\r\n%s",
		n, n, os.Getpid(), "Horses are changed at every station.\r\n")
}

var counter atomic.Int64

// send sends one message over a session.
func send(c *smtp.Client) error {
	if err := c.Mail("rider@sender.example"); err != nil {
		return err
	}
	if err := c.Rcpt("you@box.example"); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(message(counter.Add(1)))); err != nil {
		return err
	}
	return w.Close()
}

// times collects durations from many goroutines.
type times struct {
	mu  sync.Mutex
	all []time.Duration
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d)
}

// quantile of what was collected, 0 when nothing was.
func (t *times) quantile(q float64) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) == 0 {
		return 0
	}
	slices.Sort(t.all)
	return t.all[min(len(t.all)-1, int(q*float64(len(t.all))))]
}

func (t *times) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
