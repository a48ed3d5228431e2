package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"postroad/cmd/internal/config"
	"postroad/ingress"
	"postroad/ingress/certs"
	"postroad/queue"
)

// certificateRest is the pause between looks for certificates whose source is away.
const certificateRest = 2 * time.Second

// certificates are those of a listener. When their source is away at the start they come later, and the listener opens then.
type certificates struct {
	options certs.Options
	address string
	names   map[string]string // of secrets, by the names of their pairs
	log     *slog.Logger
	store   atomic.Pointer[certs.Store] // nil: they are not there yet
	missing atomic.Pointer[waiting]
}

// waiting is what certificates are waited for because of.
type waiting struct {
	err   error
	since time.Time
}

// pairs are the certificates of a listener.
func (d *Daemon) pairs(l *config.Listener) ([]certs.Pair, error) {
	var pairs []certs.Pair
	if l.Cert != "" {
		pairs = append(pairs, certs.Pair{Cert: l.Cert, Key: l.Key})
	}
	for i := range l.Certificates {
		c := &l.Certificates[i]
		switch {
		case c.Secret != "":
			pairs = append(pairs, d.secrets.Certificate(c.Secret))
		case c.PKI != "":
			pair, err := d.secrets.Issued(*c, d.hostname)
			if err != nil {
				return nil, fmt.Errorf("certificates[%d]: %w", i, err)
			}
			pairs = append(pairs, pair)
		default:
			pairs = append(pairs, certs.Pair{Cert: c.Cert, Key: c.Key})
		}
	}
	return pairs, nil
}

// openTLS gives a listener its TLS, now or when its certificates come.
func (d *Daemon) openTLS(ctx context.Context, l *config.Listener, out *ingress.Listener) error {
	t, err := clientsOf(l)
	if err != nil {
		return err
	}
	pairs, err := d.pairs(l)
	if err != nil {
		return err
	}
	log := d.log.With("part", "certificates", "listener", l.Address)
	c := &certificates{address: l.Address, log: log, names: make(map[string]string),
		options: certs.Options{Pairs: pairs, Hostname: d.hostname, Registerer: d.o.Registry, Logger: log}}
	for _, given := range l.Certificates {
		if given.Secret != "" {
			c.names[d.secrets.Certificate(given.Secret).Cert] = given.Secret
		}
	}
	switch err := c.open(ctx); {
	case errors.Is(err, certs.ErrAway):
		log.Error("certificate cannot be had yet: this listener opens when it is there", "err", err)
		c.missing.Store(&waiting{err, time.Now()})
		out.Await = func(ctx context.Context) (*tls.Config, error) { return c.await(ctx, t) }
	case err != nil:
		return err
	default:
		c.offer(t)
		out.TLS = t
		d.onStart(func() { c.store.Load().Start() })
	}
	d.onStop(stageWork, "certificates", opsLimit, c.stop)
	d.watch(c.conditions)
	d.facts = append(d.facts, c.facts)
	d.secrets.OnIssued(c.look)
	d.certificates = append(d.certificates, c)
	return d.onNotice(topicCertificates, func(name string) {
		d.secrets.Renew(name)
		c.look()
	})
}

// clientsOf is what a listener asks of clients under TLS.
func clientsOf(l *config.Listener) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12} // RFC 8996
	switch {
	case l.ClientCA != "":
		pem, err := os.ReadFile(l.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("client_ca: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("client_ca: %s holds no PEM certificate", l.ClientCA)
		}
		t.ClientAuth = tls.VerifyClientCertIfGiven
	case l.AskCertificate:
		t.ClientAuth = tls.RequestClientCert
	}
	return t, nil
}

// open reads the certificates.
func (c *certificates) open(ctx context.Context) error {
	store, err := certs.New(ctx, c.options)
	if err == nil {
		c.store.Store(store)
	}
	return err
}

// offer lets handshakes take them.
func (c *certificates) offer(t *tls.Config) { t.GetCertificate = c.store.Load().GetCertificate }

// await waits until they are there.
func (c *certificates) await(ctx context.Context, t *tls.Config) (*tls.Config, error) {
	said := ""
	for {
		select {
		case <-time.After(certificateRest/2 + rand.N(certificateRest)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		err := c.open(ctx)
		if err == nil {
			break
		}
		c.missing.Store(&waiting{err, c.missing.Load().since})
		// Vault being away is said once; what somebody must do something about, whenever it is another thing.
		isPassing := errors.Is(err, certs.ErrAway) && !errors.Is(err, certs.ErrDenied)
		if ctx.Err() == nil && !isPassing && err.Error() != said {
			said = err.Error()
			c.log.Error("certificate cannot be used: this listener stays closed", "err", err)
		}
	}
	c.offer(t)
	c.store.Load().Start()
	c.log.Info("certificate is there, the listener opens", "after", time.Since(c.missing.Load().since).Round(time.Second))
	c.missing.Store(nil)
	return t, nil
}

// stop ends the looks for new ones. Nobody awaits them any more: the ingress has stopped.
func (c *certificates) stop(ctx context.Context) error {
	if store := c.store.Load(); store != nil {
		return store.Stop(ctx)
	}
	return nil
}

// look says that something has changed.
func (c *certificates) look() {
	if store := c.store.Load(); store != nil {
		store.Look()
	}
}

// listenersDiffer stands for the certificate of a secret until all listeners have the same one: it is the fingerprint of none.
const listenersDiffer = "several: not all listeners have the new one yet"

// facts tells others which certificates are in force, by secret, file or role.
func (c *certificates) facts(facts map[string]string) {
	store := c.store.Load()
	if store == nil {
		return
	}
	for file, leaf := range store.InForce() {
		name, isSecret := c.names[file]
		if !isSecret {
			name = file
		}
		text := certs.Describe(leaf)
		if before, isThere := facts["certificate "+name]; isThere && before != text {
			text = listenersDiffer
		}
		facts["certificate "+name] = text
	}
}

func (c *certificates) conditions() []queue.Condition {
	if w := c.missing.Load(); w != nil {
		do := "bring back what its certificate comes from; it opens by itself then"
		if errors.Is(w.err, certs.ErrDenied) {
			do = "let the policy of this role (ingress) read it, or issue it, as deploy/vault/setup.sh does; the listener opens by itself then"
		}
		return []queue.Condition{{Part: "ingress", Since: w.since, Text: fmt.Sprintf("the listener %s is closed, it has no certificate yet: %v", c.address, w.err), Do: do}}
	}
	if store := c.store.Load(); store != nil {
		return store.Conditions()
	}
	return nil
}

// listening says why no listener takes mail: all of them wait for their certificates.
func (d *Daemon) listening() error {
	var first *waiting
	closed := 0
	for _, c := range d.certificates {
		if w := c.missing.Load(); w != nil {
			first = w
			closed++
		}
	}
	if d.ingress != nil && closed > 0 && closed == len(d.c.Ingress.Listeners) {
		return fmt.Errorf("no listener is open, there is no certificate yet: %w", first.err)
	}
	return nil
}

// saltKey makes up salts for unknown names. Nodes behind one name must agree on it, outsiders must not know it, and it must stay: so it is
// with a file beside the accounts, or with the role id by which all nodes log in to Vault, which is there also when Vault is away. Without
// these it is the private key of a certificate that they share, until that is renewed.
func (d *Daemon) saltKey(ctx context.Context) ([]byte, error) {
	salt := func(secret []byte) []byte {
		sum := sha256.Sum256(append([]byte("salts of unknown names\n"), secret...))
		return sum[:]
	}
	if v := &d.c.Secrets.Vault; v.Address != "" && v.Login == config.VaultAppRole {
		return salt([]byte(v.Role)), nil
	} else if v.Address == "" {
		if text, err := d.saltOfFile(); text != nil || err != nil {
			return salt(text), err
		}
	}
	for i := range d.c.Ingress.Listeners {
		l := &d.c.Ingress.Listeners[i]
		if l.Auth == config.AuthNone || l.TLS == config.TLSNone {
			continue
		}
		pairs, err := d.pairs(l)
		if err != nil {
			return nil, fmt.Errorf("ingress.listeners[%d]: %w", i, err)
		}
		for _, p := range pairs {
			var key []byte
			switch {
			case p.Renews:
				continue // each node has its own
			case p.Source != nil:
				_, key, err = p.Source.Pair(ctx)
			default:
				key, err = os.ReadFile(p.Key)
			}
			if errors.Is(err, certs.ErrAway) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("ingress.listeners[%d]: %w", i, err)
			}
			return salt(key), nil
		}
		d.log.Warn("nothing is at hand that all nodes share and nobody else knows: to one who compares them, their answers tell names of accounts from others")
	}
	return nil, nil // a random one
}
