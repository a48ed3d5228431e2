package daemon

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// dialer connects to the queue outside this process. Files are read at each call, so that a restart is not needed to see new ones.
func (d *Daemon) dialer() func(extra ...nats.Option) (*nats.Conn, error) {
	q := d.c.Queue
	return func(extra ...nats.Option) (*nats.Conn, error) {
		options := []nats.Option{nats.CustomInboxPrefix(q.Inbox)}
		if q.Credentials != "" {
			login, err := login(q.Credentials)
			if err != nil {
				return nil, err
			}
			options = append(options, login)
		}
		if q.TLS.CA != "" || q.TLS.Cert != "" {
			c, err := clientTLS(q.TLS.CA, q.TLS.Cert, q.TLS.Key)
			if err != nil {
				return nil, err
			}
			options = append(options, nats.Secure(c))
		}
		nc, err := nats.Connect(strings.Join(q.URLs, ","), append(options, extra...)...)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", strings.Join(q.URLs, ", "), err)
		}
		return nc, nil
	}
}

// login reads a credentials file of either kind. A bare seed is for users that stand in the servers' own configuration.
func login(file string) (nats.Option, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read queue.credentials: %w", err)
	}
	if bytes.Contains(text, []byte("BEGIN NATS USER JWT")) {
		return nats.UserCredentials(file), nil
	}
	option, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		return nil, fmt.Errorf("read queue.credentials: %s holds neither NATS credentials nor the seed of an nkey: %w", file, err)
	}
	return option, nil
}

func clientTLS(ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read queue.tls.ca: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("read queue.tls.ca: there is no certificate in " + ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read queue.tls.cert: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
