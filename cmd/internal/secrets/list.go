package secrets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/account"
	"postroad/signer/keyring"
)

// Entry is a secret without what is secret of it.
type Entry struct {
	Kind string `json:"kind"`
	Name string `json:"name"` // domain/selector of a DKIM key
	Version
	Since   time.Time `json:"since,omitzero"`   // of what it holds now: the making of a key, a certificate or the newest password
	Expires time.Time `json:"expires,omitzero"` // of a certificate, or the grace of an old password; zero: nothing does
	State   string    `json:"state"`            // one or a few words

	Fingerprint string     `json:"fingerprint,omitempty"` // of a certificate
	Names       []string   `json:"names,omitempty"`       // that it is for
	Issuer      string     `json:"issuer,omitempty"`
	Passwords   []Password `json:"passwords,omitempty"` // of a client, newest first
	Problem     string     `json:"problem,omitempty"`   // why nothing more can be said
}

// Password is one without what verifies it.
type Password struct {
	ID       string    `json:"id"`
	Created  time.Time `json:"created,omitzero"` // zero: not known
	NotAfter time.Time `json:"not_after,omitzero"`
	Good     bool      `json:"good"`
}

// Entries lists secrets of a kind, or all for "", by kind and name. Private keys are not read where something beside them says what is to be
// known. What cannot be read is listed with its problem; an error tells of what cannot be listed.
func (s *Secrets) Entries(ctx context.Context, kind string, now time.Time) ([]Entry, error) {
	lists := []struct {
		kind string
		list func(context.Context, time.Time) ([]Entry, error)
	}{
		{KindDKIM, s.dkimEntries},
		{KindClients, s.clientEntries},
		{KindTLS, func(ctx context.Context, _ time.Time) ([]Entry, error) { return s.entriesOf(ctx, KindTLS) }},
		{KindSmarthosts, func(ctx context.Context, _ time.Time) ([]Entry, error) { return s.entriesOf(ctx, KindSmarthosts) }},
		{KindAuthority, func(ctx context.Context, _ time.Time) ([]Entry, error) { return s.entriesOf(ctx, KindAuthority) }},
		{KindACME, func(ctx context.Context, _ time.Time) ([]Entry, error) { return s.entriesOf(ctx, KindACME) }},
	}
	var all []Entry
	var errs []error
	for _, l := range lists {
		if kind != "" && kind != l.kind {
			continue
		}
		some, err := l.list(ctx, now)
		slices.SortFunc(some, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
		all = append(all, some...)
		if err != nil {
			errs = append(errs, fmt.Errorf("list %s/: %w", l.kind, err))
		}
	}
	return all, errors.Join(errs...)
}

// atOnce is how many secrets are asked for at the same time.
const atOnce = 8

// each calls fn for all names.
func each(names []string, fn func(i int, name string)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(atOnce, len(names)) {
		wg.Go(func() {
			for i := range next {
				fn(i, names[i])
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	wg.Wait()
}

// entriesOf lists secrets of one kind that lie in the tree.
func (s *Secrets) entriesOf(ctx context.Context, kind string) ([]Entry, error) {
	names, err := s.tree().list(ctx, kind)
	if err != nil {
		return nil, err
	}
	found := make([]Entry, len(names))
	each(names, func(i int, name string) { found[i] = s.entry(ctx, kind, name) })
	return slices.DeleteFunc(found, func(e Entry) bool { return e.Name == "" }), nil // gone meanwhile
}

func (s *Secrets) entry(ctx context.Context, kind, name string) Entry {
	e := Entry{Kind: kind, Name: name}
	t := s.tree()
	i, err := t.look(ctx, kind, name)
	if err == nil {
		e.Version, e.Since = i.Version, i.Modified
		if kind == KindACME {
			e.State = "account"
		} else if kind != KindSmarthosts && !e.bySaying(i.about) {
			err = e.byReading(ctx, t)
		}
	}
	switch {
	case errors.Is(err, ErrNotThere) && e.Version == Version{} && s.vault != nil:
		return Entry{}
	case err != nil:
		e.State, e.Problem = "unreadable", err.Error()
	}
	return e
}

// bySaying takes what was said when the secret was written.
func (e *Entry) bySaying(about map[string]string) bool {
	end, err := time.Parse(time.RFC3339, about[aboutNotAfter])
	if err != nil || about[aboutFingerprint] == "" {
		return false
	}
	e.Expires, e.Fingerprint, e.Issuer, e.Names = end, about[aboutFingerprint], about[aboutIssuer], strings.Fields(about[aboutNames])
	if roots, err := strconv.Atoi(about[aboutRoots]); err == nil {
		e.State = rootState(roots)
	}
	return true
}

func rootState(previous int) string {
	if previous == 0 {
		return "root"
	}
	return fmt.Sprintf("root, %d before it", previous)
}

// byReading reads the certificate. From a directory it is read alone; of a secret in Vault that somebody has written by hand, the key comes with it.
func (e *Entry) byReading(ctx context.Context, t tree) error {
	i, err := t.read(ctx, e.Kind, e.Name, fieldCertificate, authority.FieldPrevious)
	if err != nil {
		return err
	}
	chain, err := authority.ParseCertificates([]byte(i.fields[fieldCertificate]))
	if err == nil && len(chain) == 0 {
		err = errors.New("is none")
	}
	if err != nil {
		return fmt.Errorf("its certificate %w", err)
	}
	e.bySaying(aboutOf(chain[0]))
	if e.Kind == KindAuthority {
		previous, _ := authority.ParseCertificates([]byte(i.fields[authority.FieldPrevious]))
		e.State = rootState(len(previous))
	}
	return nil
}

// dkimEntries lists DKIM keys, removed ones not.
func (s *Secrets) dkimEntries(ctx context.Context, _ time.Time) ([]Entry, error) {
	keys, err := s.Keys()
	if err != nil {
		return nil, err
	}
	list, err := keys.Entries(ctx, "")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // nobody has made one
	}
	var found []Entry
	for _, k := range list {
		if k.State == keyring.Removed {
			continue
		}
		e := Entry{Kind: KindDKIM, Name: k.Domain + "/" + k.Selector, State: string(k.State)}
		if len(k.History) > 0 {
			e.Since, e.Modified = k.History[0].At, k.Since()
		}
		if s.vault != nil {
			e.Number, _ = strconv.Atoi(k.Revision) // 0 says that there is none
		} else if info, err := os.Stat(filepath.Join(s.o.Config.SecretsDir(), KindDKIM, k.Domain, k.Selector+".pem")); err == nil && e.Since.IsZero() {
			e.Since, e.Modified = info.ModTime(), info.ModTime()
		}
		found = append(found, e)
	}
	return found, err
}

// clientEntries lists accounts.
func (s *Secrets) clientEntries(ctx context.Context, now time.Time) ([]Entry, error) {
	if s.vault == nil {
		return s.clientFiles(ctx, now)
	}
	names, err := vaultTree{s.vault}.list(ctx, KindClients)
	if err != nil {
		return nil, err
	}
	found := make([]Entry, len(names))
	each(names, func(i int, name string) {
		e, err := s.Client(ctx, name, now)
		if errors.Is(err, account.ErrUnknown) {
			return
		}
		if err != nil {
			e.State, e.Problem = "unreadable", err.Error()
		}
		found[i] = e
	})
	return slices.DeleteFunc(found, func(e Entry) bool { return e.Name == "" }), nil
}

// Client is the entry of an account as it is stored now. account.ErrUnknown: there is none.
func (s *Secrets) Client(ctx context.Context, name string, now time.Time) (Entry, error) {
	e := Entry{Kind: KindClients, Name: name}
	var c *account.Client
	if s.vault != nil {
		secret, err := s.vault.Read(ctx, clientPath(name)) // verifiers; what is to be known stands beside them
		if err != nil {
			return e, known(err)
		}
		e.Version = versionOf(secret.Version, secret.Created)
		if c, err = account.Decode(name, "", secret.Data); err != nil {
			return e, fmt.Errorf("record of client %s %w", name, err)
		}
	} else {
		store, err := s.Clients()
		if err != nil {
			return e, err
		}
		if c, err = store.Latest(ctx, name); err != nil {
			return e, err
		}
		e.Modified = s.clientModified(name)
	}
	e.ofClient(c, now)
	return e, nil
}

func (s *Secrets) clientModified(name string) time.Time {
	info, err := os.Stat(filepath.Join(s.o.Config.SecretsDir(), KindClients, name+".json"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func (s *Secrets) clientFiles(ctx context.Context, now time.Time) ([]Entry, error) {
	store, err := s.Clients()
	if err != nil {
		return nil, err
	}
	list, err := store.List(ctx)
	if errors.Is(err, fs.ErrNotExist) && list == nil {
		return nil, nil // nobody has added one
	}
	var found []Entry
	for _, c := range list {
		e := Entry{Kind: KindClients, Name: c.Name, Version: Version{Modified: s.clientModified(c.Name)}}
		e.ofClient(c, now)
		found = append(found, e)
	}
	return found, err
}

// ofClient fills in what a record says.
func (e *Entry) ofClient(c *account.Client, now time.Time) {
	e.Since = e.Modified
	for i := range c.Passwords {
		p := &c.Passwords[i]
		e.Passwords = append(e.Passwords, Password{ID: p.ID, Created: p.Created, NotAfter: p.NotAfter, Good: p.ValidAt(now)})
		if i > 0 && p.ValidAt(now) {
			e.Expires = p.NotAfter
		}
	}
	switch {
	case c.Disabled:
		e.State = "disabled"
	case c.InClear():
		e.State = "password in clear"
	case len(c.Passwords) == 0 && len(c.Certificates) > 0:
		e.State = "certificate only"
	case len(c.Passwords) == 0:
		e.State = "no password"
	case !c.Passwords[0].ValidAt(now):
		e.State = "passwords ended"
	default:
		e.State = "enabled"
	}
	if len(c.Passwords) > 0 && !c.Passwords[0].Created.IsZero() {
		e.Since = c.Passwords[0].Created
	}
	if len(c.Passwords) > 0 && !c.Passwords[0].NotAfter.IsZero() {
		e.Expires = c.Passwords[0].NotAfter
	}
}
