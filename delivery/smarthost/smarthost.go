// Package smarthost keeps at hand what we prove ourselves by to next hops: logins (secrets smarthosts/NAME) and client
// certificates (secrets tls/NAME).
//
//	k, err := smarthost.New(smarthost.Options{Source: source, Logger: log})
//	login, err := k.Login(ctx, "provider")
//	cert, err := k.Certificate(ctx, "client-relay")
//	err = k.Stop(ctx)
//
// An answer is at most 25 s old while its source can be reached. What was read once stays in force for a day when it
// cannot be read any more, or when what is there now cannot be used; a secret that is gone is gone at once. Every error
// is temporary: mail waits for what it needs, and never leaves without.
package smarthost

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

// Source is where the secrets are.
type Source interface {
	// Login reads the fields of smarthosts/<name>, and what tells this version from others. The error wraps ErrMissing when
	// there is no such secret, ErrAway when nobody knows.
	Login(ctx context.Context, name string) (fields map[string]any, revision string, err error)
	// Certificate reads tls/<name>: the chain and its key, both in PEM. Errors are those of Login.
	Certificate(ctx context.Context, name string) (chain, key []byte, err error)
}

// Causes of an error, for errors.Is.
var (
	ErrMissing = errors.New("there is no such secret")
	ErrAway    = errors.New("the secret cannot be read now")
	ErrBad     = errors.New("the secret cannot be used")
)

// Login is a user name and a password as they are in force.
type Login struct {
	Username, Password string
	Mechanisms         []string // empty: those that are usual
	Revision           string   // differs from that of any other version
}

// Certificate is a client certificate as it is in force.
type Certificate struct {
	TLS      *tls.Certificate
	Revision string
}

// Options configure a Keeper.
type Options struct {
	Source   Source        // required
	Refresh  time.Duration // age at which an answer is looked up anew; default 12 s
	MaxStale time.Duration // how long what was read once stays in force when it cannot be read; default 24 h
	Logger   *slog.Logger  // gets a line for each change; default: discards
}

const (
	defaultRefresh  = 12 * time.Second
	defaultMaxStale = 24 * time.Hour
	// afterAway is how long an answer stands that is none.
	afterAway = 5 * time.Second
	// lookTimeout bounds one look, hurryTimeout one for which there is an older answer.
	lookTimeout  = 10 * time.Second
	hurryTimeout = 2 * time.Second
	// endSoon is how near the end of a certificate is told.
	endSoon = 14 * 24 * time.Hour
	// maxNames bounds what is remembered; those used last stay.
	maxNames = 1000
	// toldFor is how long a fault is told of a secret that nobody asks for, unusedFor how long it is remembered at all.
	toldFor   = time.Hour
	unusedFor = 25 * time.Hour
)

// Keeper has logins and certificates. It is safe for concurrent use.
type Keeper struct {
	logins *shelf[Login]
	certs  *shelf[Certificate]
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// New makes a keeper. It reads nothing yet.
func New(o Options) (*Keeper, error) {
	if o.Source == nil {
		return nil, errors.New("smart hosts: no source of secrets given")
	}
	if o.Refresh <= 0 {
		o.Refresh = defaultRefresh
	}
	if o.MaxStale <= 0 {
		o.MaxStale = defaultMaxStale
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{}
	k.ctx, k.stop = context.WithCancel(context.Background())
	k.logins = newShelf(k, o, "smarthosts/", func(ctx context.Context, name string) (Login, string, error) {
		fields, revision, err := o.Source.Login(ctx, name)
		if err != nil {
			return Login{}, "", err
		}
		l, err := decodeLogin(fields)
		l.Revision = revision
		return l, revision, err
	})
	k.certs = newShelf(k, o, "tls/", func(ctx context.Context, name string) (Certificate, string, error) {
		chain, key, err := o.Source.Certificate(ctx, name)
		if err != nil {
			return Certificate{}, "", err
		}
		defer clear(key)
		c, err := decodeCertificate(chain, key)
		return c, c.Revision, err
	})
	return k, nil
}

// Login is the one of this name.
func (k *Keeper) Login(ctx context.Context, name string) (Login, error) {
	return k.logins.get(ctx, name)
}

// LoginAfter is Login past what is remembered: for one whose version a host has refused. It looks at most once a second.
func (k *Keeper) LoginAfter(ctx context.Context, name string) (Login, error) {
	return k.logins.getNew(ctx, name)
}

// Certificate is the one of this name.
func (k *Keeper) Certificate(ctx context.Context, name string) (Certificate, error) {
	return k.certs.get(ctx, name)
}

// Changed says that somebody has changed the secrets of this name: they are looked up when they are asked for next.
func (k *Keeper) Changed(name string) {
	k.logins.age(name)
	k.certs.age(name)
}

// Stop waits for looks that are under way.
func (k *Keeper) Stop(ctx context.Context) error {
	k.stop()
	done := make(chan struct{})
	go func() {
		k.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop reading secrets of smart hosts: %w", ctx.Err())
	}
}

// Conditions are what is wrong with secrets that mail needs.
func (k *Keeper) Conditions() []queue.Condition {
	list := append(k.logins.conditions(), k.certs.conditions()...)
	certs := k.certs.inForce()
	for _, name := range slices.Sorted(maps.Keys(certs)) {
		c := certs[name]
		leaf, err := x509.ParseCertificate(c.TLS.Certificate[0])
		if err != nil || time.Until(leaf.NotAfter) > endSoon {
			continue
		}
		text := "ends on "
		if time.Now().After(leaf.NotAfter) {
			text = "has ended on "
		}
		list = append(list, queue.Condition{Part: "smart hosts", Since: leaf.NotAfter.Add(-endSoon), Do: "put a new one in its place; no restart is needed",
			Text: "the certificate tls/" + name + ", which we show to next hops, " + text + leaf.NotAfter.UTC().Format(time.DateOnly)})
	}
	return list
}

// decodeLogin takes username, password and mechanisms (a list, or words) from the fields of a secret.
func decodeLogin(fields map[string]any) (Login, error) {
	var l Login
	for field, to := range map[string]*string{"username": &l.Username, "password": &l.Password} {
		text, is := fields[field].(string)
		if !is || text == "" || strings.ContainsRune(text, 0) {
			return Login{}, fmt.Errorf("%w: the field %s is missing, or is no text", ErrBad, field)
		}
		*to = text
	}
	switch m := fields["mechanisms"].(type) {
	case nil:
	case string:
		l.Mechanisms = strings.FieldsFunc(m, func(r rune) bool { return r == ' ' || r == ',' })
	case []any:
		for _, one := range m {
			word, _ := one.(string)
			l.Mechanisms = append(l.Mechanisms, word)
		}
	default:
		return Login{}, fmt.Errorf("%w: mechanisms is no list of words", ErrBad)
	}
	for i, m := range l.Mechanisms {
		if l.Mechanisms[i] = strings.ToUpper(m); !slices.Contains(smtpc.DefaultMechanisms(), l.Mechanisms[i]) {
			return Login{}, fmt.Errorf("%w: mechanism %.40q is none of %s", ErrBad, m, strings.Join(smtpc.DefaultMechanisms(), ", "))
		}
	}
	return l, nil
}

func decodeCertificate(chain, key []byte) (Certificate, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return Certificate{}, fmt.Errorf("%w: %w", ErrBad, err)
	}
	keySum := sha256.Sum256(key)
	sum := sha256.Sum256(append(slices.Clone(chain), keySum[:]...))
	return Certificate{TLS: &pair, Revision: hex.EncodeToString(sum[:12])}, nil
}
