// Package vault is all that speaks to HashiCorp Vault: it logs in, keeps its
// token alive, reads and changes secrets of a KV v2 engine, and keeps the keys
// that the signer signs with.
//
//	client, err := vault.New(vault.Options{
//		Address: "https://vault.example.net:8200",
//		CAFile:  "/etc/postroad/vault-ca.pem",
//		Login:   &vault.AppRole{RoleID: "…", SecretIDFile: "/etc/postroad/secret-id"},
//	})
//	err = client.Start(ctx) // logs in
//	defer client.Stop(ctx)
//
//	secret, err := client.Read(ctx, "clients/host1") // secret/postroad/clients/host1
//
//	keys, err := vault.NewKeys(client, vault.KeysOptions{}) // a keyring.Store
//	keys.Start()
//	defer keys.Stop(ctx)
//
// Nothing is taken from VAULT_* or from proxy variables of the environment: a
// token of an administrator that lies about must not make a role work.
package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/prometheus/client_golang/prometheus"
)

// Options of a Client.
type Options struct {
	// Address is the URL of Vault or of a Vault Agent, without a path. Required.
	// Plain http is for the own machine only, unless AllowPlaintext is set.
	Address        string
	AllowPlaintext bool
	Namespace      string // of Vault Enterprise; default: none
	CAFile         string // PEM file of the authorities that may vouch for Vault; default: those of the system
	ServerName     string // name that Vault's certificate must bear; default: that of the address

	Mount  string // of the KV v2 engine; default: secret
	Prefix string // below which all secrets lie; default: postroad

	Login Login // required

	// Timeout bounds one request. Default: 5 s.
	Timeout time.Duration
	// Logger gets a line when a login or a renewal fails, and when it is well
	// again. Default: discards.
	Logger *slog.Logger
	// Registerer gets the metrics relay_vault_*. Roles that run in one process
	// and have a client each wrap it with a label. Default: none.
	Registerer prometheus.Registerer
}

const (
	defaultMount   = "secret"
	defaultPrefix  = "postroad"
	defaultTimeout = 5 * time.Second

	// maxBodyBytes bounds an answer; a list of 20,000 domains takes 0.6 MB.
	maxBodyBytes = 4 << 20
	// maxIdle is how many connections wait for the next request.
	maxIdle = 32
)

// Client is a connection to Vault that stays logged in. It is safe for
// concurrent use.
type Client struct {
	o         Options
	log       *slog.Logger
	metrics   *metrics
	transport *http.Transport
	api       *api.Client // bears the token
	merging   *api.Client // the same, and its patches are JSON merge patches
	anonymous *api.Client // never bears one

	health health

	turn  chan struct{} // full while somebody logs in
	woken chan struct{} // somebody has logged in, or failed to

	mu      sync.Mutex
	started bool
	stopped bool
	session session
	fault   error     // of the last login, nil once it succeeded
	forced  time.Time // last login because of a 403

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New checks the options and makes a Client; nothing is sent yet.
func New(o Options) (*Client, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("vault options: %w", err)
	}
	transport, err := newTransport(o)
	if err != nil {
		return nil, fmt.Errorf("vault options: %w", err)
	}
	c := &Client{o: o, log: o.Logger, transport: transport, turn: make(chan struct{}, 1), woken: make(chan struct{}, 1)}
	if c.api, err = newAPI(o, transport); err == nil {
		c.anonymous, err = newAPI(o, transport)
	}
	if err != nil {
		return nil, fmt.Errorf("make client for Vault (its library looks at VAULT_* even though nothing of it is used: unset them): %s", brief(err.Error()))
	}
	c.merging = c.api.WithRequestCallbacks(func(r *api.Request) {
		r.Headers.Set("Content-Type", "application/merge-patch+json") // the library's raw patch says another kind
	})
	if c.metrics, err = newMetrics(o.Registerer, c.remaining); err != nil {
		return nil, fmt.Errorf("register vault metrics: %w", err)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func (o Options) withDefaults() (Options, error) {
	o.Mount = strings.Trim(o.Mount, "/")
	o.Prefix = strings.Trim(o.Prefix, "/")
	if o.Mount == "" {
		o.Mount = defaultMount
	}
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(o.Address)
	switch {
	case o.Address == "":
		return o, errors.New("no address given")
	case err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http":
		return o, fmt.Errorf("address %q: want https://host:port", brief(o.Address))
	case u.Scheme == "http" && !o.AllowPlaintext && !isLoopback(u.Hostname()):
		return o, fmt.Errorf("address %q would carry tokens and keys in plain text: use https, or allow it for a test bed", brief(o.Address))
	case o.Timeout < 0:
		return o, errors.New("timeout must not be negative")
	case o.Login == nil:
		return o, errors.New("no way to log in given")
	}
	for what, path := range map[string]string{"mount": o.Mount, "prefix": o.Prefix} {
		if err := checkPath(path); err != nil {
			return o, fmt.Errorf("%s %w", what, err)
		}
	}
	if err := o.Login.check(); err != nil {
		return o, fmt.Errorf("login: %w", err)
	}
	return o, nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// newTransport makes the connections. It uses no proxy.
func newTransport(o Options) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.ServerName}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate: want PEM", o.CAFile)
		}
	}
	if certificate, is := o.Login.(*Certificate); is {
		config.GetClientCertificate = certificate.present
	}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: o.Timeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: o.Timeout,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     time.Minute,
		ForceAttemptHTTP2:   true,
	}, nil
}

// newAPI makes a client of the library that goes by the options alone.
func newAPI(o Options, transport *http.Transport) (*api.Client, error) {
	a, err := api.NewClient(&api.Config{
		Address: o.Address,
		HttpClient: &http.Client{
			Transport: bounded{transport},
			// The library follows redirects to the active node, and only those.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries: 0, // retries are ours, see do
	})
	if err != nil {
		return nil, err
	}
	// What it has taken from the environment.
	a.ClearToken()
	a.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	a.SetWrappingLookupFunc(func(string, string) string { return "" })
	if o.Namespace != "" {
		a.SetNamespace(o.Namespace)
	}
	return a, nil
}

// bounded bounds answers: the library reads them to their end.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.next.RoundTrip(r)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, maxBodyBytes)
	}
	return answer, err
}

// Start logs in, and stays logged in until Stop. A Vault that is out of reach is
// no error: the logins go on, and requests fail with ErrUnavailable until one
// succeeds. Other errors mean that somebody has to do something; the logins go
// on even so, because somebody may do it.
func (c *Client) Start(ctx context.Context) error {
	c.mu.Lock()
	if c.started || c.stopped {
		c.mu.Unlock()
		return errors.New("vault client: it was started before")
	}
	c.started = true
	c.mu.Unlock()
	err := c.login(ctx, 0, false)
	c.mu.Lock()
	if !c.stopped {
		c.wg.Go(func() { c.keep(c.ctx, err) })
	}
	c.mu.Unlock()
	if errors.Is(err, ErrUnavailable) {
		return nil
	}
	return err
}

// Stop gives the token back and waits for all that runs. Requests fail from now
// on. More calls do nothing.
func (c *Client) Stop(ctx context.Context) error {
	c.mu.Lock()
	last := c.session
	first := !c.stopped
	c.stopped = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	c.cancel()
	ended := make(chan struct{})
	go func() { c.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("stop vault client: %w", ctx.Err())
	}
	if last.token != "" && !last.foreign && !last.over(time.Now()) {
		// It ends by itself anyway; soon is better.
		if _, err := c.send(ctx, c.api, call{method: http.MethodPut, path: "auth/token/revoke-self"}); err != nil {
			c.log.Debug("token was not given back, it ends by itself", "err", brief(err.Error()))
		}
	}
	c.setToken("")
	c.transport.CloseIdleConnections()
	return nil
}

func (c *Client) setToken(token string) {
	c.api.SetToken(token)
	c.merging.SetToken(token)
}

// Ready says why requests cannot be made now; nil when they can.
func (c *Client) Ready() error {
	_, err := c.current()
	return err
}
