// Package certs holds the certificates of a listener: several at a time, read
// again when their files change, without a restart.
//
//	store, err := certs.New(ctx, certs.Options{Pairs: []certs.Pair{{Cert: "rsa.pem", Key: "rsa.key"}, {Cert: "ec.pem", Key: "ec.key"}}})
//	config := &tls.Config{GetCertificate: store.GetCertificate}
//	store.Start()
//	defer store.Stop(ctx)
//
// A client gets a certificate for the name that it asks for (RFC 6066 §3), an
// ECDSA one if it can verify that; see GetCertificate. A pair of files that
// cannot be used leaves the one before in force, and says so once. Whoever
// replaces files does it in any order and at leisure: a pair that does not
// belong together yet is looked at again before anything is said.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Pair is a certificate chain and its private key: two files, PEM, or what a
// Source has.
type Pair struct {
	Cert, Key string
	Source    Source // in place of files; Cert is its name then, for people
	Renews    bool   // the source renews it by itself, at two thirds of its life
}

// Source has a pair that lies elsewhere, in a Vault say.
type Source interface {
	// Pair reads it, both in PEM. It is asked as often as files are looked at. The
	// error wraps ErrAway when that may pass by itself.
	Pair(ctx context.Context) (chain, key []byte, err error)
}

// ErrAway says that a Source is out of reach.
var ErrAway = errors.New("the source of the certificate is out of reach")

// ErrDenied says that a Source does not let us have the certificate. It wraps
// ErrAway: somebody may allow it meanwhile.
var ErrDenied = fmt.Errorf("%w: it does not allow it", ErrAway)

// Options configure a Store.
type Options struct {
	Pairs      []Pair                // at least one; the first is for clients that ask for no name of ours
	Hostname   string                // what clients call us: a warning says when no certificate is for it. Empty: none
	Refresh    time.Duration         // how often the files are looked at; 10 s
	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // stores of several listeners may share one. Default: metrics are not registered
}

const (
	defaultRefresh = 10 * time.Second
	soon           = 14 * 24 * time.Hour // an end that is so near is said
)

// soonFor is how near the end of a pair's certificate must be to be said: of one
// that renews itself the last fifth, when it should be another by then.
func (p Pair) soonFor(leaf *x509.Certificate) time.Duration {
	if !p.Renews {
		return soon
	}
	return min(soon, leaf.NotAfter.Sub(leaf.NotBefore)/5)
}

// Store holds certificates. Handshakes take what was read last and never wait
// for a file.
type Store struct {
	pairs    []Pair
	hostname string
	refresh  time.Duration
	log      *slog.Logger
	notAfter *prometheus.GaugeVec

	now   atomic.Pointer[[]*tls.Certificate] // one for each pair
	files []files                            // of each pair, for the one who looks

	faults atomic.Pointer[[]fault] // of pairs that cannot be used

	asked chan struct{} // full when somebody wants a look now
	stop  context.CancelFunc
	done  chan struct{}
}

// New reads all pairs; one that cannot be used is an error, which wraps ErrAway
// when its source is out of reach. It waits for sources until ctx ends.
func New(ctx context.Context, o Options) (*Store, error) {
	if len(o.Pairs) == 0 {
		return nil, errors.New("certificates: none given")
	}
	s := &Store{pairs: o.Pairs, hostname: o.Hostname, refresh: o.Refresh, log: o.Logger, files: make([]files, len(o.Pairs)), asked: make(chan struct{}, 1)}
	if s.refresh <= 0 {
		s.refresh = defaultRefresh
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.notAfter, err = newGauge(o.Registerer); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	all := make([]*tls.Certificate, len(s.pairs))
	for i, p := range s.pairs {
		if all[i], err = s.files[i].read(ctx, p); err != nil {
			return nil, err
		}
	}
	s.now.Store(&all)
	for i := range s.pairs {
		s.tellNew(i, all[i])
	}
	s.tellHostname(all)
	return s, nil
}

// newGauge registers the gauge, or finds the one of another store.
func newGauge(r prometheus.Registerer) (*prometheus.GaugeVec, error) {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "relay", Subsystem: "ingress", Name: "certificate_not_after_seconds",
		Help: "When a certificate that is in force ends, in Unix time; name is its file."}, []string{"name"})
	if r == nil {
		return g, nil
	}
	err := r.Register(g)
	if before, is := errors.AsType[prometheus.AlreadyRegisteredError](err); is {
		if shared, is := before.ExistingCollector.(*prometheus.GaugeVec); is {
			return shared, nil
		}
	}
	return g, err
}

// Start begins to look at the files, once.
func (s *Store) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop, s.done = cancel, make(chan struct{})
	go func() {
		defer close(s.done)
		for {
			// Not all nodes at the same moment.
			wait := time.NewTimer(s.refresh*3/4 + rand.N(s.refresh/2+1))
			select {
			case <-ctx.Done():
				wait.Stop()
				return
			case <-s.asked:
				wait.Stop()
			case <-wait.C:
			}
			s.look(ctx)
		}
	}()
}

// Look says that something has changed: after Start it is looked at now.
func (s *Store) Look() {
	select {
	case s.asked <- struct{}{}:
	default: // somebody has said so already
	}
}

// Stop ends that. It waits for files that are being read, until ctx ends.
func (s *Store) Stop(ctx context.Context) error {
	if s.stop == nil {
		return nil
	}
	s.stop()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop reading certificates: %w", ctx.Err())
	}
}

// look reads what has changed and takes what can be used.
func (s *Store) look(ctx context.Context) {
	all := slices.Clone(*s.now.Load())
	isNew := false
	for i, p := range s.pairs {
		f := &s.files[i]
		c, err := f.read(ctx, p)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.complain(f, p, all[i], err)
		case c != nil:
			all[i], f.said, isNew = c, "", true
			s.setFault(p.Cert, nil)
			s.tellNew(i, c)
		case f.said != "":
			f.said = ""
			s.setFault(p.Cert, nil)
			s.log.Info("certificate files are as they were, and good", "cert", p.Cert)
		}
		s.tellEnd(i, all[i])
	}
	if isNew {
		s.now.Store(&all)
		s.tellHostname(all)
	}
}

// complain says what is wrong with files, once for each state of theirs.
func (s *Store) complain(f *files, p Pair, before *tls.Certificate, err error) {
	said := fmt.Sprint(err, f.cert.modified, f.key.modified)
	if !f.isSettled() || f.said == said {
		return
	}
	f.said = said
	s.setFault(p.Cert, err)
	s.log.Error("certificate cannot be used, the one before stays in force", "cert", p.Cert, "not_after", before.Leaf.NotAfter, "error", err.Error())
}

// tellNew says what is in force, and what clients will think of it.
func (s *Store) tellNew(i int, c *tls.Certificate) {
	leaf, p := c.Leaf, s.pairs[i]
	s.notAfter.WithLabelValues(p.Cert).Set(float64(leaf.NotAfter.Unix()))
	s.log.Info("certificate in force", "cert", p.Cert, "names", names(leaf), "algorithm", leaf.PublicKeyAlgorithm.String(),
		"issuer", leaf.Issuer.String(), "not_after", leaf.NotAfter)
	if isSelfSigned(leaf) {
		s.log.Warn("certificate is signed by itself: clients that verify refuse it", "cert", p.Cert, "names", names(leaf))
	}
	if time.Now().Before(leaf.NotBefore) {
		s.log.Warn("certificate is not valid yet: clients that verify refuse it", "cert", p.Cert, "not_before", leaf.NotBefore)
	}
	s.files[i].end = 0
	s.tellEnd(i, c)
}

// How near the end of a certificate is.
const (
	endSoon = 1 + iota
	ended
)

// tellEnd says once that a certificate will end soon, and once that it has.
func (s *Store) tellEnd(i int, c *tls.Certificate) {
	end, left := 0, time.Until(c.Leaf.NotAfter)
	switch {
	case left <= 0:
		end = ended
	case left < s.pairs[i].soonFor(c.Leaf):
		end = endSoon
	}
	if end <= s.files[i].end {
		return
	}
	s.files[i].end = end
	attrs := []any{"cert", s.pairs[i].Cert, "names", names(c.Leaf), "not_after", c.Leaf.NotAfter}
	if end == ended {
		s.log.Warn("certificate has ended: clients that verify refuse it", attrs...)
	} else {
		s.log.Warn("certificate ends soon", attrs...)
	}
}

func (s *Store) tellHostname(all []*tls.Certificate) {
	isForIt := func(c *tls.Certificate) bool { return c.Leaf.VerifyHostname(s.hostname) == nil }
	if s.hostname != "" && !slices.ContainsFunc(all, isForIt) {
		s.log.Warn("no certificate is for our hostname: clients that know us by it refuse them", "hostname", s.hostname)
	}
}

// names are all that a certificate is for.
func names(leaf *x509.Certificate) []string {
	all := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// GetCertificate is for tls.Config. Of the certificates for the name that the
// client asks for it takes the first ECDSA one that the client can verify, since
// that is cheaper, otherwise the first of another algorithm that it can. If
// there is none, or no name, the same goes for the names of the first pair, then
// for all: a client that does not look at names still gets its encryption.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := *s.now.Load()
	able := *hello
	able.ServerName = "" // the name is looked at here; SupportsCertificate says what the client can verify
	for _, name := range []string{strings.TrimSuffix(hello.ServerName, "."), firstName(all[0].Leaf)} {
		if name == "" {
			continue
		}
		var fit []*tls.Certificate
		for _, c := range all {
			if c.Leaf.VerifyHostname(name) == nil {
				fit = append(fit, c)
			}
		}
		if c := pick(&able, fit); c != nil {
			return c, nil
		}
	}
	if c := pick(&able, all); c != nil {
		return c, nil
	}
	return all[0], nil // the handshake says what does not fit
}

// firstName is a name to find certificates for the same host by.
func firstName(leaf *x509.Certificate) string {
	name := names(leaf)[0]
	return strings.Replace(name, "*", "any", 1) // a host that a wildcard is for
}

// pick takes an ECDSA certificate if the client can verify one, otherwise the
// first that it can, otherwise nil.
func pick(hello *tls.ClientHelloInfo, list []*tls.Certificate) *tls.Certificate {
	var first *tls.Certificate
	for _, c := range list {
		if hello.SupportsCertificate(c) != nil {
			continue
		}
		if c.Leaf.PublicKeyAlgorithm == x509.ECDSA {
			return c
		}
		if first == nil {
			first = c
		}
	}
	return first
}
