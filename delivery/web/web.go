// Package web is the HTTPS client for addresses that strangers publish: policies to fetch, reports to deliver.
//
// It finds hosts by the resolver of the relay, never connects to private addresses, follows no redirect, uses no proxy, wants a valid
// certificate for the host, and bounds everything in time. What the answer means is the caller's business.
//
//	client := web.NewClient(web.Options{Lookup: lookup})
//	res, err := client.Do(req) // a 3xx comes back as it is
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Options of a client. Lookup is required.
type Options struct {
	Lookup       func(ctx context.Context, host string) ([]netip.Addr, error)
	Dialable     func(netip.Addr) bool // addresses that may be connected to
	Roots        *x509.CertPool        // default: those of the system
	Timeout      time.Duration         // of a whole exchange; default Timeout
	AllowPrivate bool                  // also addresses that are not Dialable: for tests
	// Dial replaces the connection to an address that Lookup gave: for tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

const (
	// Timeout is the default for a whole exchange (RFC 8461 §3.3).
	Timeout = time.Minute

	maxAddresses   = 4
	connectTimeout = 10 * time.Second
	headerBytes    = 64 << 10
)

// ErrPrivate says that a host has addresses that must not be connected to, and no others.
var ErrPrivate = errors.New("the host has private addresses only")

// NewClient makes a client. Nothing of it stays open between two exchanges.
func NewClient(o Options) *http.Client {
	if o.Timeout == 0 {
		o.Timeout = Timeout
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	return &http.Client{
		Timeout:       o.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            o.dial,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
			TLSHandshakeTimeout:    connectTimeout,
			ResponseHeaderTimeout:  o.Timeout,
			MaxResponseHeaderBytes: headerBytes,
			DisableKeepAlives:      true,
		},
	}
}

// dial connects to the first address of the host that answers.
func (o Options) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", addr, err)
	}
	var addrs []netip.Addr
	if literal, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{literal}
	} else if addrs, err = o.Lookup(ctx, strings.ToLower(host)); err != nil {
		return nil, fmt.Errorf("find %s: %w", host, err)
	}
	last, tries := ErrPrivate, 0
	for _, a := range addrs {
		if !o.AllowPrivate && (o.Dialable == nil || !o.Dialable(a.Unmap())) {
			continue
		}
		if tries++; tries > maxAddresses {
			break
		}
		conn, err := o.Dial(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return conn, nil
		}
		last = err
	}
	if len(addrs) == 0 {
		last = errors.New("it has no address")
	}
	return nil, fmt.Errorf("connect to %s: %w", host, last)
}
