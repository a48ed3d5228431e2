package secrets

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/config"
	"postroad/ingress/certs"
	"postroad/queue"
	"postroad/queue/address"
	"postroad/signer/vault"
)

const (
	issueTimeout = 30 * time.Second
	// firstRest and longestRest bound the pauses after failures.
	firstRest   = time.Second
	longestRest = time.Minute
	// noticeRest is the least time between a certificate and the next because of a notice.
	noticeRest = 10 * time.Second
	// clockEvery is how often the clock is looked at: a machine that slept wakes up with old certificates.
	clockEvery = time.Minute
	// sayEndedEvery is how often it is said that a certificate has ended.
	sayEndedEvery = 10 * time.Minute

	maxCommonName = 64 // octets, the upper bound of X.520
)

// authorityOfIssued is what issued needs of Vault.
type authorityOfIssued interface {
	SignCertificate(ctx context.Context, r vault.CertificateRequest) ([]byte, error)
}

var _ authorityOfIssued = (*vault.Client)(nil)

// issued is a certificate that Vault issues to this process for a key that it has made, and that is renewed at two thirds of its life.
// Both are in memory only. While Vault is away the one before is in force.
type issued struct {
	name    string // pki/<role>, for people
	vault   authorityOfIssued
	request vault.CertificateRequest // but for the CSR
	names   []string
	log     *slog.Logger
	changed func() // there is a new one

	tried chan struct{} // closed after the first try
	wake  chan struct{} // full when somebody wants a new one

	mu         sync.Mutex
	chain, key []byte // PEM; nil: none yet
	leaf       *x509.Certificate
	err        error     // of the last try
	since      time.Time // of the first of the failures in a row
}

var _ certs.Source = (*issued)(nil)

// Issued is a certificate that Vault issues to this process until Stop, for hostname unless c has other names. It is asked for at once;
// the same role, names and lifetime give the same certificate.
func (s *Secrets) Issued(c config.Certificate, hostname string) (certs.Pair, error) {
	if s.vault == nil {
		return certs.Pair{}, errors.New("pki: certificates are issued by Vault, and there is none: set secrets.vault.address")
	}
	names := make([]string, 0, max(1, len(c.Names)))
	for _, name := range c.Names {
		host, isWildcard := strings.CutPrefix(name, "*.")
		clean, err := address.Normalize(host)
		if err != nil {
			return certs.Pair{}, fmt.Errorf("pki: name %q: %w", name, err)
		}
		if isWildcard {
			clean = "*." + clean
		}
		names = append(names, clean)
	}
	if len(names) == 0 {
		names = append(names, hostname)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := "pki/" + c.PKI
	for _, i := range s.issued {
		if i.request.Role == c.PKI && i.request.TTL == c.TTL && slices.Equal(i.names, names) {
			return i.pair(), nil
		}
		if i.name == name {
			name = fmt.Sprintf("pki/%s for %s, %s", c.PKI, strings.Join(names, " "), c.TTL)
		}
	}
	i := &issued{
		name: name, vault: s.authority, names: names, changed: s.tellIssued,
		request: vault.CertificateRequest{Mount: s.o.Config.Secrets.Vault.PKI, Role: c.PKI, TTL: c.TTL},
		log:     s.o.Logger.With("part", "certificates", "cert", name),
		tried:   make(chan struct{}), wake: make(chan struct{}, 1),
	}
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancel(context.Background())
	}
	ctx := s.ctx
	if ctx.Err() != nil {
		return certs.Pair{}, errors.New("pki: secrets were stopped")
	}
	s.issued = append(s.issued, i)
	s.wg.Go(func() { i.run(ctx) })
	return i.pair(), nil
}

func (i *issued) pair() certs.Pair { return certs.Pair{Cert: i.name, Source: i, Renews: true} }

// Renew has new certificates issued now that go by this name, pki/<role>: somebody says that the authority or the role has changed.
func (s *Secrets) Renew(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.issued {
		if "pki/"+i.request.Role != name {
			continue
		}
		select {
		case i.wake <- struct{}{}:
		default: // somebody has said so already
		}
	}
}

// OnIssued calls fn whenever there is a new certificate. It must not block.
func (s *Secrets) OnIssued(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onIssued = append(s.onIssued, fn)
}

func (s *Secrets) tellIssued() {
	s.mu.Lock()
	all := slices.Clone(s.onIssued)
	s.mu.Unlock()
	for _, fn := range all {
		fn()
	}
}

// stopIssued ends what Issued has begun.
func (s *Secrets) stopIssued(ctx context.Context) error {
	s.mu.Lock()
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { s.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop renewing certificates: %w", ctx.Err())
	}
}

// Pair implements certs.Source from memory; before the first try has ended it waits for that.
func (i *issued) Pair(ctx context.Context) (chain, key []byte, err error) {
	select {
	case <-i.tried:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("%w: %w", certs.ErrAway, ctx.Err())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.chain != nil:
		return slices.Clone(i.chain), slices.Clone(i.key), nil // the caller overwrites the key
	case i.err == nil:
		return nil, nil, fmt.Errorf("%w: no more are issued", certs.ErrAway)
	}
	return nil, nil, awayOrNot(i.err)
}

// run gets certificates until ctx ends.
func (i *issued) run(ctx context.Context) {
	failures := 0
	var said time.Time // that it has ended
	for {
		err := i.issue(ctx)
		if ctx.Err() != nil {
			i.first()
			return
		}
		failures, said = i.note(err, failures, said)
		i.first()
		if err == nil {
			i.changed()
		}
		if !i.rest(ctx, time.Now(), failures) {
			return
		}
	}
}

// first ends the first try.
func (i *issued) first() {
	select {
	case <-i.tried:
	default:
		close(i.tried)
	}
}

// rest waits until a new certificate is due, or ctx ends (false).
func (i *issued) rest(ctx context.Context, began time.Time, failures int) bool {
	due := i.due(began, failures)
	for {
		timer := time.NewTimer(max(0, min(time.Until(due), clockEvery)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wake:
			timer.Stop()
			// Not all nodes at the same moment.
			if at := began.Add(noticeRest + mathrand.N(noticeRest/5)); at.Before(due) {
				due = later(at, time.Now().Add(mathrand.N(noticeRest/5)))
			}
		case <-timer.C:
			if !time.Now().Round(0).Before(due.Round(0)) { // by the wall: a machine may have slept
				return true
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// due is when the next one is to be asked for.
func (i *issued) due(now time.Time, failures int) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	left := longestRest
	if i.leaf != nil {
		left = max(0, i.leaf.NotAfter.Sub(now))
	}
	if failures == 0 {
		return now.Add(left*2/3 - mathrand.N(left/20+1))
	}
	pause := min(firstRest<<min(failures-1, 10), longestRest)
	if i.leaf != nil && left > 0 {
		pause = min(pause, max(firstRest, left/4)) // a short life leaves no time for long pauses
	}
	return now.Add(pause/2 + mathrand.N(pause/2+1))
}

// note remembers how a try has ended, and says it: the first failure in a row, and again and again that the certificate has ended.
func (i *issued) note(err error, failures int, said time.Time) (int, time.Time) {
	now := time.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.err
	i.err = err
	if err == nil {
		if failures > 0 {
			i.log.Info("certificate is issued again", "failures", failures)
		}
		return 0, time.Time{}
	}
	if failures == 0 {
		i.since = now
	}
	var end time.Time
	if i.leaf != nil {
		end = i.leaf.NotAfter
	}
	isNew := failures == 0 || before == nil || before.Error() != err.Error() && !errors.Is(err, vault.ErrUnavailable)
	switch {
	case end.IsZero() && isNew:
		i.log.Error("there is no certificate yet, it is tried again", "err", err)
	case !end.IsZero() && !now.Before(end) && now.Sub(said) >= sayEndedEvery:
		i.log.Error("certificate has ended and no other is issued: clients that verify refuse it", "not_after", end, "err", err)
		said = now
	case !end.IsZero() && now.Before(end) && isNew:
		i.log.Warn("certificate is not renewed, it is tried again; the one before stays in force", "not_after", end, "err", err)
	}
	return failures + 1, said
}

// condition is what is wrong with it.
func (i *issued) condition() (queue.Condition, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err == nil {
		return queue.Condition{}, false
	}
	c := queue.Condition{Part: "certificates", Since: i.since, Text: fmt.Sprintf("Vault issues no certificate %s: %v", i.name, i.err),
		Do: fmt.Sprintf("see that Vault is there, and that role %s of its engine %s allows %s", i.request.Role, i.request.Mount, strings.Join(i.names, ", "))}
	if i.leaf != nil {
		c.Text = fmt.Sprintf("the certificate %s is not renewed, it ends at %s: %v", i.name, i.leaf.NotAfter.UTC().Format(time.RFC3339), i.err)
	}
	return c, true
}

// issue gets a new certificate for a new key.
func (i *issued) issue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	template := &x509.CertificateRequest{DNSNames: i.names}
	if n := slices.IndexFunc(i.names, func(name string) bool { return len(name) <= maxCommonName }); n >= 0 {
		template.Subject = pkix.Name{CommonName: i.names[n]}
	}
	r := i.request
	if r.CSR, err = x509.CreateCertificateRequest(rand.Reader, template, private); err != nil {
		return fmt.Errorf("make certificate request for %s: %w", strings.Join(i.names, ", "), err)
	}
	chain, err := i.vault.SignCertificate(ctx, r)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	defer clear(der)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	leaf, err := i.check(chain, key)
	if err != nil {
		return fmt.Errorf("role %s of %s issues what is of no use: %w", r.Role, r.Mount, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.key)
	i.chain, i.key, i.leaf = chain, key, leaf
	return nil
}

// check makes sure that the certificate is the one that was asked for.
func (i *issued) check(chain, key []byte) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	for _, name := range i.names {
		if !slices.Contains(pair.Leaf.DNSNames, name) {
			return nil, fmt.Errorf("it is not for %s", name)
		}
	}
	if left := time.Until(pair.Leaf.NotAfter); left <= 0 {
		return nil, fmt.Errorf("it has ended at %s by the clock of this machine", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return pair.Leaf, nil
}
