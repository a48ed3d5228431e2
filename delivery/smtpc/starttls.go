package smtpc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"
)

// startTLS does what the mode wants of STARTTLS (RFC 3207), and says EHLO again inside.
func (c *Conn) startTLS(ctx context.Context) *Error {
	if c.tls != nil {
		return nil
	}
	must := c.o.TLS >= TLSEncrypt
	if c.o.TLS == TLSNone || !c.ext.Has("STARTTLS") {
		if must {
			return &Error{Phase: PhaseStartTLS, Err: ErrTLSRequired}
		}
		return nil
	}
	r, err := c.ask(PhaseStartTLS, "STARTTLS", c.o.Timeouts.StartTLS)
	switch {
	case err != nil:
		return &Error{Phase: PhaseStartTLS, Err: err}
	case r.OK():
	case r.Closing(): // says nothing about TLS
		return &Error{Phase: PhaseStartTLS, Reply: &r}
	case must:
		return &Error{Phase: PhaseStartTLS, Reply: &r, Err: ErrTLSRequired}
	default:
		c.tlsRefused = &r
		return nil
	}
	if c.r.Buffered() > 0 { // clear text that would be taken for the inside (RFC 3207 §6)
		return &Error{Phase: PhaseStartTLS, Err: fmt.Errorf("%w: text behind the reply to STARTTLS", ErrProtocol)}
	}
	if failure := c.handshake(ctx); failure != nil {
		return failure
	}
	return lateAlert(c.hello())
}

// lateAlert is a failure of the first reading after a handshake: in TLS 1.3 the server's verdict comes with its first octets.
func lateAlert(failure *Error) *Error {
	if failure != nil && isAlert(failure.Err) {
		return &Error{Phase: PhaseStartTLS, Err: fmt.Errorf("%w: %w", ErrTLSHandshake, failure.Err)}
	}
	return failure
}

func (c *Conn) handshake(ctx context.Context) *Error {
	err := c.shakeHands(ctx)
	if err == nil {
		return nil
	}
	if _, wrong := errors.AsType[*tls.CertificateVerificationError](err); wrong || errors.Is(err, ErrCertificate) {
		err = fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return &Error{Phase: PhaseStartTLS, Err: fmt.Errorf("%w: %w", ErrTLSHandshake, err)}
}

func (c *Conn) shakeHands(ctx context.Context) error {
	if err := c.raw.SetDeadline(time.Now().Add(c.o.Timeouts.StartTLS)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	conn := tls.Client(c.raw, c.tlsConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	state := conn.ConnectionState()
	c.tls = &state
	c.conn = conn
	c.r.Reset(conn)
	c.tap.note(tls.VersionName(state.Version), " ", tls.CipherSuiteName(state.CipherSuite))
	return nil
}

func (c *Conn) tlsConfig() *tls.Config {
	conf := &tls.Config{}
	if c.o.TLSConfig != nil {
		conf = c.o.TLSConfig.Clone()
	}
	conf.ServerName = cmp.Or(c.o.ServerName, conf.ServerName, c.host)
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12) // RFC 8996
	conf.InsecureSkipVerify = c.o.TLS != TLSVerify || conf.VerifyConnection != nil
	if verify := conf.VerifyConnection; verify != nil {
		conf.VerifyConnection = func(state tls.ConnectionState) error {
			if err := verify(state); err != nil {
				return fmt.Errorf("%w: %w", ErrCertificate, err)
			}
			return nil
		}
	}
	if c.o.ClientCertificate != nil {
		conf.Certificates = []tls.Certificate{*c.o.ClientCertificate}
	}
	if c.o.Sessions != nil {
		conf.ClientSessionCache = keyedSessions{c.o.Sessions, c.sessionKey(conf)}
	}
	return conf
}

// sessionKey is what a session must have in common with this connection, so that resuming it proves no more and no less than a handshake.
func (c *Conn) sessionKey(conf *tls.Config) string {
	certificate := ""
	if own := c.o.ClientCertificate; own != nil && len(own.Certificate) > 0 {
		sum := sha256.Sum256(own.Certificate[0])
		certificate = hex.EncodeToString(sum[:])
	}
	return fmt.Sprintf("%s %s %d %t %s", conf.ServerName, c.addr, c.o.TLS, conf.VerifyConnection != nil, certificate)
}

// keyedSessions is one connection's view of a shared cache.
type keyedSessions struct {
	tls.ClientSessionCache
	key string
}

func (k keyedSessions) Get(string) (*tls.ClientSessionState, bool) {
	return k.ClientSessionCache.Get(k.key)
}

func (k keyedSessions) Put(_ string, s *tls.ClientSessionState) { k.ClientSessionCache.Put(k.key, s) }

// isAlert reports an alert that the peer sent.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
