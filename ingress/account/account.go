// Package account knows the clients that may log in, and checks that they are
// who they say.
//
// A Client is a host, a service or a person with its passwords' verifiers and
// what it may do. Source is where records of clients come from; Dir implements
// it, and Store for the commands that change records, over a directory of
// files. Any implementation must pass accounttest.Run. Authenticator does the
// SASL mechanisms and keeps an attacker from burning the machine:
//
//	dir, err := account.NewDir(account.DirOptions{Path: "/etc/postroad/secrets"})
//	auth, err := account.New(account.Options{Source: dir})
//
//	words := auth.Mechanisms(peer)           // for the EHLO reply
//	x, err := auth.Begin("PLAIN", peer)      // AUTH PLAIN
//	challenge, done, err := x.Next(ctx, response) // until done
//	client := x.Client()
//
// Whoever serves a client for long asks auth.Current at each message: the record
// may have been disabled meanwhile, and the answer costs nothing.
package account

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"postroad/queue/address"
)

// Source finds clients. Implementations keep records in memory, show changes
// within seconds to half a minute, and are safe for concurrent use. Names come
// from outside: an implementation bounds what it remembers of them, and answers
// ErrUnknown for what is no name.
type Source interface {
	// Client returns a client, as it was seen a moment ago. It is shared: callers
	// do not change it. The error is
	//
	//   - ErrUnknown: the source has answered, and there is no such client.
	//   - ErrUnavailable: nothing is known of this client. The source is out of
	//     reach, its record has never been readable, or ctx has ended.
	//
	// Sentinels may be wrapped. A record that was read once stays in force while
	// the stored one is broken, and for a bounded time while the source is out
	// of reach.
	Client(ctx context.Context, name string) (*Client, error)
	// Latest is Client by a new look at what is stored: a password that was set
	// a moment ago must not be refused. An implementation that pays for a look
	// may bound how many it takes.
	Latest(ctx context.Context, name string) (*Client, error)
}

// Store is a Source that can be changed.
type Store interface {
	Source
	// List returns all clients, ordered by name. The error tells of records that
	// cannot be read; the others are returned even then.
	List(ctx context.Context) ([]*Client, error)
	// Put stores a client. It must be one that this store returned, or a copy of
	// it, or a new one; when somebody else has stored or removed it meanwhile,
	// the error is ErrChanged and nothing happened.
	Put(ctx context.Context, c *Client) error
	// Remove removes a client; ErrUnknown says that it was not there.
	Remove(ctx context.Context, name string) error
}

var (
	// ErrUnknown says that there is no such client.
	ErrUnknown = errors.New("no such client")
	// ErrUnavailable says that nothing can be said now: 454 4.7.0, never 535.
	ErrUnavailable = errors.New("accounts are unavailable")
	// ErrChanged says that somebody else changed a record at the same time.
	ErrChanged = errors.New("the record was changed by somebody else meanwhile")
)

// Client is the record of a client. Its name is that of its file or secret.
type Client struct {
	Name         string
	Class        string         // free word: host, user, service; limits go by it
	Disabled     bool           // no password and no certificate is good
	Networks     []netip.Prefix // where it may log in from; empty: anywhere. No v4-mapped ones
	Senders      []Sender       // reverse-paths that it may use; empty: any
	Certificates []Certificate  // client certificates that are as good as a password
	Passwords    []Password     // newest first, at most two; or the one that stands in the record itself

	revision string // of the record as it was stored; empty: never was
}

// Revision tells versions of a record apart; it is empty for a client that was
// never stored. It may be a hash of the record: not for a log when that is InClear.
func (c *Client) Revision() string { return c.revision }

// Clone is a copy that may be changed.
func (c *Client) Clone() *Client {
	copied := *c
	copied.Networks = slices.Clone(c.Networks)
	copied.Senders = slices.Clone(c.Senders)
	copied.Certificates = slices.Clone(c.Certificates)
	copied.Passwords = slices.Clone(c.Passwords)
	return &copied
}

// MaySend tells whether the client may use this address as reverse-path, or as
// author. The null path belongs to nobody and is anybody's: a host that returns
// mail must be able to say so (RFC 5321 §6.1).
func (c *Client) MaySend(path address.Path) bool {
	if len(c.Senders) == 0 || path.IsNull() {
		return true
	}
	return slices.ContainsFunc(c.Senders, func(s Sender) bool { return s.matches(path) })
}

// MayConnect tells whether the client may log in from this address.
func (c *Client) MayConnect(addr netip.Addr) bool {
	if len(c.Networks) == 0 {
		return true
	}
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(c.Networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

const maxNameOctets = 128

// CleanName returns the form under which a client is kept: lower case. It
// reports false for what is no name. Names are letters, digits and any of
// . - _ + @ between them: short and full host names, words, mail addresses.
func CleanName(name string) (string, bool) {
	if len(name) == 0 || len(name) > maxNameOctets {
		return "", false
	}
	clean := strings.ToLower(name)
	for i := range len(clean) {
		switch c := clean[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case strings.IndexByte(".-_+@", c) >= 0 && i > 0 && i < len(clean)-1 && clean[i-1] != '.':
		default:
			return "", false
		}
	}
	return clean, true
}
