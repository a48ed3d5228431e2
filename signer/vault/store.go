package vault

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postroad/signer/keyring"
)

// ErrTransitKept says that a key is revoked or removed, but that its private half
// is in the transit engine still: it may serve others, so its owner destroys it.
var ErrTransitKept = errors.New("the transit key is still there")

// domains lists the domains that have secrets.
func (k *Keys) domains(ctx context.Context) ([]string, error) {
	names, err := k.client.List(ctx, directory)
	if err != nil {
		return nil, err
	}
	var domains []string
	for _, name := range names {
		name, folder := strings.CutSuffix(name, "/")
		if clean, ok := keyring.CleanDomain(name); folder && ok && clean == name {
			domains = append(domains, name)
		}
	}
	return domains, nil
}

// Entries implements keyring.Store. A destruction of a private half that was
// interrupted is finished here.
func (k *Keys) Entries(ctx context.Context, domain string) ([]keyring.Entry, error) {
	var domains []string
	if domain != "" {
		name, ok := keyring.CleanDomain(domain)
		if !ok {
			return nil, nil
		}
		domains = []string{name}
	} else {
		var err error
		if domains, err = k.domains(ctx); err != nil {
			return nil, fmt.Errorf("list domains: %w", err)
		}
	}
	var mu sync.Mutex
	var entries []keyring.Entry
	var errs []error
	failed := 0
	next := make(chan string)
	var wg sync.WaitGroup
	for range min(atOnce, len(domains)) {
		wg.Go(func() {
			for name := range next {
				some, err := k.entriesOf(ctx, name)
				mu.Lock()
				entries, errs = append(entries, some...), append(errs, err)
				if errors.Is(err, ErrUnavailable) {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	for _, name := range domains {
		mu.Lock()
		enough := failed >= atOnce // it was sealed meanwhile, say: each further look would fail as slowly
		mu.Unlock()
		if enough || ctx.Err() != nil {
			break
		}
		next <- name
	}
	close(next)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		errs = append(errs, fmt.Errorf("list keys: %w", err))
	}
	slices.SortFunc(entries, func(a, b keyring.Entry) int {
		return strings.Compare(a.Domain+"/"+a.Selector, b.Domain+"/"+b.Selector)
	})
	return entries, errors.Join(errs...)
}

func (k *Keys) entriesOf(ctx context.Context, domain string) ([]keyring.Entry, error) {
	names, err := k.client.List(ctx, directory+"/"+domain)
	if err != nil {
		return nil, fmt.Errorf("list keys of %s: %w", domain, err)
	}
	var entries []keyring.Entry
	var errs []error
	for _, selector := range names {
		if !isSelector(selector) {
			continue
		}
		e, err := k.entry(ctx, domain, selector)
		if isNotFound(err) {
			continue
		}
		if e.State != "" {
			entries = append(entries, e)
		}
		errs = append(errs, err)
		if errors.Is(err, ErrUnavailable) {
			break
		}
	}
	return entries, errors.Join(errs...)
}

// entry reads one entry, from the metadata if that will do. An error beside an
// entry says that the private half could not be destroyed.
func (k *Keys) entry(ctx context.Context, domain, selector string) (keyring.Entry, error) {
	path := secretPath(domain, selector)
	m, err := k.client.Metadata(ctx, path)
	if err != nil {
		return keyring.Entry{}, err
	}
	if m.Deleted {
		return keyring.Entry{}, fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	e, ok := reflected(m, domain, selector)
	if !ok {
		secret, err := k.client.Read(ctx, path)
		if err != nil {
			return keyring.Entry{}, err
		}
		if e, _, err = k.open(ctx, domain, selector, secret); err != nil {
			return keyring.Entry{}, err
		}
	}
	if e.State.Gone() {
		return e, k.destroy(ctx, path, m)
	}
	return e, nil
}

// destroy destroys all versions of a secret but the current one.
func (k *Keys) destroy(ctx context.Context, path string, m Metadata) error {
	old := slices.DeleteFunc(m.Kept, func(n int) bool { return n >= m.Version })
	if err := k.client.Destroy(ctx, path, old...); err != nil {
		return fmt.Errorf("the private half is in old versions of the secret still: %w", err)
	}
	return nil
}

// Create implements keyring.Store.
func (k *Keys) Create(ctx context.Context, key keyring.Key, by string) (keyring.Entry, error) {
	domain, ok := keyring.CleanDomain(key.Domain)
	if !ok {
		return keyring.Entry{}, fmt.Errorf("create key: %q is no domain name in A-label form", brief(key.Domain))
	}
	if !isSelector(key.Selector) {
		return keyring.Entry{}, fmt.Errorf("create key for %s: %q is no selector: want lower-case letters, digits and hyphens", domain, brief(key.Selector))
	}
	fail := func(err error) (keyring.Entry, error) {
		return keyring.Entry{}, fmt.Errorf("create key %s of %s: %w", key.Selector, domain, err)
	}
	switch key.Signer.(type) {
	case *rsa.PrivateKey, ed25519.PrivateKey:
	default:
		return fail(fmt.Errorf("it is a %T: want a private key of RSA or Ed25519", key.Signer))
	}
	e := keyring.Entry{Domain: domain, Selector: key.Selector, By: shorten(by, maxWhy)}
	if err := describe(&e, key.Signer); err != nil {
		return fail(err)
	}
	if e.Algorithm != key.Algorithm {
		return fail(fmt.Errorf("it is a key for %s, not for %s", e.Algorithm, key.Algorithm))
	}
	step(&e, keyring.Generated, "", time.Now().UTC().Round(0))
	data, err := fields(e)
	if err != nil {
		return fail(err)
	}
	if data["private_key"], err = encodeKey(key.Signer); err != nil {
		return fail(err)
	}
	path := secretPath(domain, key.Selector)
	version, err := k.client.Write(ctx, path, data, 0)
	if errors.Is(err, ErrChanged) {
		return fail(keyring.ErrExists)
	}
	if err != nil {
		return fail(err)
	}
	e.Revision = strconv.Itoa(version)
	k.reflect(ctx, path, e, version)
	k.Changed(domain)
	k.log.Info("key made", "domain", domain, "selector", key.Selector, "algorithm", e.Algorithm)
	return e, nil
}

// reflect repeats an entry in the metadata, beside what others have put there.
// When that does not succeed, listing reads the secret instead.
func (k *Keys) reflect(ctx context.Context, path string, e keyring.Entry, version int) {
	custom := mirror(e, version)
	if err := k.client.SetCustom(ctx, path, custom, unused(custom)...); err != nil {
		k.log.Warn("custom metadata of a key was not written, listing it reads its private half", "domain", e.Domain, "selector", e.Selector, "err", err)
	}
}

// Change implements keyring.Store. With an error and an entry, the state has
// changed and the private half could not be destroyed.
func (k *Keys) Change(ctx context.Context, e keyring.Entry, to keyring.State, why string) (keyring.Entry, error) {
	domain, ok := keyring.CleanDomain(e.Domain)
	if !ok || !isSelector(e.Selector) {
		return keyring.Entry{}, fmt.Errorf("change key %q of %q: %w", brief(e.Selector), brief(e.Domain), keyring.ErrNoKey)
	}
	e.Domain = domain
	path := secretPath(domain, e.Selector)
	fail := func(err error) (keyring.Entry, error) {
		if errors.Is(err, ErrChanged) || isNotFound(err) {
			err = fmt.Errorf("%w (%w)", keyring.ErrChanged, err)
		}
		return keyring.Entry{}, fmt.Errorf("change key %s of %s to %s: %w", e.Selector, domain, to, err)
	}
	version, err := strconv.Atoi(e.Revision)
	switch {
	case !isState(to):
		return fail(errors.New("there is no such state"))
	case err != nil || version < 1:
		return fail(fmt.Errorf("%q is no revision of this store: %w", brief(e.Revision), ErrChanged))
	case e.State == to:
		return k.same(ctx, e, path, version, fail)
	case e.State.Gone() && to != keyring.Removed:
		return fail(fmt.Errorf("it is %s, and its private half is destroyed: make a new key", e.State))
	}
	if to == keyring.Active {
		if err := k.ready(ctx, e, version); err != nil {
			return fail(err)
		}
	}
	from := e.State
	step(&e, to, why, time.Now().UTC().Round(0))
	data, err := fields(e)
	if err != nil {
		return fail(err)
	}
	if to.Gone() {
		data["private_key"] = nil
	}
	// A patch, so that the private half is not read for it.
	if version, err = k.client.Patch(ctx, path, data, version); err != nil {
		return fail(err)
	}
	e.Revision = strconv.Itoa(version)
	k.Changed(domain)
	k.log.Info("state of key changed", "domain", domain, "selector", e.Selector, "from", string(from), "to", string(to), "why", brief(why))
	if to.Gone() {
		err = k.bury(ctx, e, path)
	}
	k.reflect(ctx, path, e, version)
	if err != nil {
		return e, fmt.Errorf("key %s of %s is %s now: %w", e.Selector, domain, to, err)
	}
	return e, nil
}

// same answers a change that changes nothing.
func (k *Keys) same(ctx context.Context, e keyring.Entry, path string, version int, fail func(error) (keyring.Entry, error)) (keyring.Entry, error) {
	m, err := k.client.Metadata(ctx, path)
	if err == nil && (m.Version != version || m.Deleted) {
		err = ErrChanged
	}
	if err != nil {
		return fail(err)
	}
	if e.State.Gone() {
		return e, k.destroy(ctx, path, m)
	}
	return e, nil
}

// ready makes sure that a key that is to sign can be used.
func (k *Keys) ready(ctx context.Context, e keyring.Entry, version int) error {
	secret, err := k.client.Read(ctx, secretPath(e.Domain, e.Selector))
	if err != nil {
		return err
	}
	if secret.Version != version {
		return ErrChanged
	}
	_, _, err = k.open(ctx, e.Domain, e.Selector, secret)
	return err
}

// bury destroys the private half of a key whose secret has it no more in its
// current version.
func (k *Keys) bury(ctx context.Context, e keyring.Entry, path string) error {
	m, err := k.client.Metadata(ctx, path)
	if err != nil {
		return fmt.Errorf("the private half is in old versions of the secret still: %w", err)
	}
	if err := k.destroy(ctx, path, m); err != nil {
		return err
	}
	secret, err := k.client.Read(ctx, path)
	if err != nil {
		return fmt.Errorf("look whether it was a transit key: %w", err)
	}
	if name, is := secret.Data["transit_key"].(string); is && name != "" {
		return fmt.Errorf("%w: destroy version %d of %q, when nothing else uses it", ErrTransitKept, number(secret.Data["transit_version"]), brief(name))
	}
	return nil
}

// Load implements keyring.Store.
func (k *Keys) Load(ctx context.Context, domain, selector string) (keyring.Key, error) {
	name, ok := keyring.CleanDomain(domain)
	if !ok || !isSelector(selector) {
		return keyring.Key{}, fmt.Errorf("key %q of %q: %w", brief(selector), brief(domain), keyring.ErrNoKey)
	}
	fail := func(err error) (keyring.Key, error) {
		return keyring.Key{}, fmt.Errorf("load key %s of %s: %w", selector, name, err)
	}
	secret, err := k.client.Read(ctx, secretPath(name, selector))
	if isNotFound(err) {
		return fail(keyring.ErrNoKey)
	}
	if err != nil {
		return fail(err)
	}
	e, signer, err := k.open(ctx, name, selector, secret)
	if err != nil {
		return fail(err)
	}
	if signer == nil {
		return fail(fmt.Errorf("it is %s: %w", e.State, keyring.ErrNoKey))
	}
	return keyring.Key{Domain: name, Selector: selector, Algorithm: e.Algorithm, Signer: signer}, nil
}
