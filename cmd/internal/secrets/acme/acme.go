// Package acme has certificates issued by an authority that speaks ACME (RFC 8555). Names are proved by records in the DNS (dns-01), which
// asks for no open port on any machine.
//
//	c, err := acme.New(acme.Options{Directory: url, Key: key, DNS: proofs, Note: tell})
//	defer c.Close()
//	err = c.Login(ctx, acme.Account{AcceptTerms: true}) // makes the account if the key has none
//	pair, err := c.Issue(ctx, []string{"relay.example.com"})
//
// Nothing is kept here: what was interrupted is begun anew, and the authority remembers what was proved. Errors say what to do.
package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"postroad/cmd/internal/secrets/authority"
)

const (
	method          = "dns-01"
	defaultPatience = 5 * time.Minute
)

// DNS publishes records.
type DNS interface {
	// Publish makes value the one TXT record of a name, and returns when all name servers of its zone show that. remove takes it away again,
	// also when ctx has ended. After an error there is nothing to remove.
	Publish(ctx context.Context, name, value string) (remove func() error, err error)
}

// Options say who issues, to whom.
type Options struct {
	Directory string        // URL of the authority's directory; https
	CAFile    string        // roots to trust for it beside those of the system, in PEM
	Key       crypto.Signer // of the account; required for all but Terms
	DNS       DNS           // required for Issue
	// Note is told what happens. Default: nobody is.
	Note func(format string, args ...any)
	// Patience is how long the authority may take for one step. Default: 5 min.
	Patience time.Duration
}

// Account says what an account is to be like if there is none.
type Account struct {
	Email       string // "": the authority knows of nobody to write to
	AcceptTerms bool
	// KID and MAC bind it to an account that the authority has made by other means (RFC 8555 §7.3.4). Both are empty if it wants no such thing.
	KID string
	MAC []byte
}

// Client is an account at an authority.
type Client struct {
	o    Options
	http *http.Client
	acme *acme.Client
}

// New makes a Client; nobody is asked yet.
func New(o Options) (*Client, error) {
	if !strings.HasPrefix(o.Directory, "https://") {
		return nil, fmt.Errorf("the directory %q of the authority is no URL that begins with https://", o.Directory)
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	h, err := newHTTP(o.CAFile)
	if err != nil {
		return nil, err
	}
	return &Client{o, h, &acme.Client{Key: o.Key, HTTPClient: h, DirectoryURL: o.Directory, RetryBackoff: pause, UserAgent: "postroad"}}, nil
}

// Close ends the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// step bounds a step.
func (c *Client) step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.o.Patience, fmt.Errorf("the authority has not done it within %v: give the command again later, it goes on from there", c.o.Patience))
}

// Terms are what the authority wants agreed to: an URL, or nothing.
func (c *Client) Terms(ctx context.Context) (string, error) {
	ctx, cancel := c.step(ctx)
	defer cancel()
	d, err := c.acme.Discover(ctx)
	if err != nil {
		return "", explain(ctx, err, "read the directory %s of the authority", c.o.Directory)
	}
	return d.Terms, nil
}

// Login finds the account of the key, or makes it.
func (c *Client) Login(ctx context.Context, a Account) error {
	terms, err := c.Terms(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := c.step(ctx)
	defer cancel()
	known, err := c.acme.GetReg(ctx, "")
	switch {
	case err == nil && known.Status != acme.StatusValid:
		return fmt.Errorf("the account %s is %s at the authority: give --account NAME for another one", known.URI, clean(known.Status))
	case err == nil:
		c.acme.KID = acme.KeyID(known.URI)
		return nil
	case !errors.Is(err, acme.ErrNoAccount):
		return explain(ctx, err, "find the account at %s", c.o.Directory)
	case terms != "" && !a.AcceptTerms:
		return fmt.Errorf("there is no account yet, and the authority has terms: read %s, then give --accept-terms", clean(terms))
	}
	want := &acme.Account{}
	if a.Email != "" {
		want.Contact = []string{"mailto:" + a.Email}
	}
	if a.KID != "" {
		want.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: a.KID, Key: a.MAC}
	}
	made, err := c.acme.Register(ctx, want, acme.AcceptTOS)
	if err != nil {
		return explain(ctx, err, "make an account at %s", c.o.Directory)
	}
	c.o.Note("made the account %s", clean(made.URI))
	return nil
}

// Issue has a new key certified for all names, which are in the form of authority.CheckName and no addresses.
func (c *Client) Issue(ctx context.Context, names []string) (*authority.Pair, error) {
	what := strings.Join(names, ", ")
	begin, cancel := c.step(ctx)
	defer cancel()
	order, err := c.acme.AuthorizeOrder(begin, acme.DomainIDs(names...))
	if err != nil {
		return nil, explain(begin, err, "order a certificate for %s", what)
	}
	if len(order.AuthzURLs) > len(names) {
		return nil, fmt.Errorf("order a certificate for %s: the authority wants %d proofs for %d names", what, len(order.AuthzURLs), len(names))
	}
	for _, url := range order.AuthzURLs {
		if err := c.prove(ctx, url, names); err != nil {
			return nil, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request for %s: %w", what, err)
	}
	end, cancel := c.step(ctx)
	defer cancel()
	c.o.Note("all names are proved; the authority issues the certificate")
	var chain [][]byte
	if order, err = c.acme.WaitOrder(end, order.URI); err == nil {
		chain, _, err = c.acme.CreateCertFromOrder(end, order, csr, true)
	}
	if err != nil {
		return nil, explain(end, err, "have the certificate for %s issued", what)
	}
	pair, err := pairOf(chain, key, names)
	if err != nil {
		return nil, fmt.Errorf("the certificate that the authority has issued %w: nothing is done with it", err)
	}
	return pair, nil
}

func pairOf(chain [][]byte, key crypto.Signer, names []string) (*authority.Pair, error) {
	var list []*x509.Certificate
	for _, der := range chain {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("cannot be read: %w", err)
		}
		list = append(list, one)
	}
	return authority.NewPair(list, key, names, time.Now())
}

// prove shows the authority that a name is ours.
func (c *Client) prove(ctx context.Context, url string, names []string) error {
	begin, cancel := c.step(ctx)
	defer cancel()
	z, err := c.acme.GetAuthorization(begin, url)
	if err != nil {
		return explain(begin, err, "ask what the authority wants proved")
	}
	name := z.Identifier.Value
	if !slices.Contains(names, name) && !slices.Contains(names, "*."+name) {
		return fmt.Errorf("the authority wants %s proved, which was not ordered", clean(name))
	}
	at := slices.IndexFunc(z.Challenges, func(ch *acme.Challenge) bool { return ch.Type == method })
	switch {
	case z.Status == acme.StatusValid:
		c.o.Note("%s: the authority remembers that it was proved", name)
		return nil
	case z.Status != acme.StatusPending:
		return fmt.Errorf("prove %s: what the authority wants proved is %s already: give the command again", name, clean(z.Status))
	case at < 0:
		return fmt.Errorf("prove %s: the authority does not offer %s for it: ask another one", name, method)
	}
	value, err := c.acme.DNS01ChallengeRecord(z.Challenges[at].Token)
	if err != nil {
		return fmt.Errorf("prove %s: %w", name, err)
	}
	record := "_acme-challenge." + name // RFC 8555 §8.4
	c.o.Note("%s: publishes the TXT record of %s", name, record)
	remove, err := c.o.DNS.Publish(ctx, record, value)
	if err != nil {
		return fmt.Errorf("publish the TXT record of %s: %w", record, err)
	}
	defer func() {
		if err := remove(); err != nil {
			c.o.Note("%v", err)
		}
	}()
	c.o.Note("%s: all name servers show it; the authority looks", name)
	end, cancel := c.step(ctx)
	defer cancel()
	if _, err = c.acme.Accept(end, z.Challenges[at]); err == nil {
		_, err = c.acme.WaitAuthorization(end, url)
	}
	if err != nil {
		return explain(end, err, "prove %s", name)
	}
	return nil
}
