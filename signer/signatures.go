package signer

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/signer/keyring"
)

const (
	chunkBytes = 32 << 10
	// maxPooledBytes keeps the buffer of one unusual header from staying.
	maxPooledBytes = 256 << 10
)

// keyError says that a key did not sign.
type keyError struct {
	key   keyring.Key
	cause error
}

func (e *keyError) Error() string {
	return fmt.Sprintf("key %s of %s did not sign: %v", e.key.Selector, e.key.Domain, e.cause)
}

func (e *keyError) Unwrap() error { return e.cause }

// buffers are what the reading of one message needs, used again for the next.
type buffers struct{ head, chunk []byte }

// signatures reads the content once and returns one DKIM-Signature field per
// key, folded, with CRLF, to be put before the content, and the keys that made
// them. Keys that have signed the message already, by d= and s=, are left out
// (RFC 6376 §5.6). An unsignableError means that no key ever can. Whatever is
// wrong with the keys of c.relay only costs their own signatures.
func (s *Signer) signatures(ctx context.Context, c choice, content io.Reader) (string, []keyring.Key, error) {
	buf := s.pool.get()
	defer s.pool.put(buf)

	h, body, err := s.readHeader(ctx, content, buf)
	if err != nil {
		return "", nil, err
	}
	keys, relay := unused(c.keys, h.prior), unused(c.relay, h.prior)
	if len(keys)+len(relay) == 0 {
		return "", nil, nil
	}
	list, err := headerList(s.fields, h.count)
	if err != nil {
		return "", nil, err
	}

	p, err := newPass(ctx, keys, relay, list, s.o.Expiry)
	if err != nil {
		return "", nil, err
	}
	// The empty line is ours: the library cannot sign without it.
	err = p.write(h.signed, []byte("\r\n"), body)
	line := h.line
	if err == nil {
		err = line.check(body)
	}
	if err == nil {
		err = copyBody(ctx, p, content, &line, buf.chunk)
	}
	beside := s.endRelay(p)
	text, closeErr := end(p.legs)
	if err == nil {
		err = closeErr
	}
	if err != nil {
		return "", nil, err
	}
	if more := s.awaitRelay(ctx, beside, relay); more != "" {
		return text + more, slices.Concat(keys, relay), nil
	}
	return text, keys, nil
}

// readHeader reads a message up to its body, and returns what it has read of that.
func (s *Signer) readHeader(ctx context.Context, content io.Reader, buf *buffers) (header, []byte, error) {
	head, body, grown, err := readHead(ctx, content, buf.head, chunkBytes)
	buf.head = grown
	if err != nil {
		return header{}, nil, fmt.Errorf("read header: %w", err)
	}
	var line lines
	if err := line.check(head); err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(head, s.fields)
	h.line = line
	return h, body, err
}

// isSigned tells whether the message bears any DKIM-Signature. One that can never
// be signed does not.
func (s *Signer) isSigned(ctx context.Context, content io.Reader) (bool, error) {
	buf := s.pool.get()
	defer s.pool.put(buf)
	h, _, err := s.readHeader(ctx, content, buf)
	if _, is := errors.AsType[unsignableError](err); is {
		return false, nil
	}
	return len(h.prior) > 0, err
}

// unused are the keys whose signatures are not there yet. Without an RSA key of
// theirs the Ed25519 keys of a domain do not sign: nobody has looked whether the
// RSA signature that is there is good.
func unused(keys []keyring.Key, prior []tagged) []keyring.Key {
	if len(prior) == 0 {
		return keys
	}
	isRSA := func(k keyring.Key) bool { return k.Algorithm == keyring.RSA }
	left := slices.DeleteFunc(slices.Clone(keys), func(k keyring.Key) bool {
		return slices.Contains(prior, tagged{strings.ToLower(k.Domain), strings.ToLower(k.Selector)})
	})
	if slices.ContainsFunc(keys, isRSA) && !slices.ContainsFunc(left, isRSA) {
		return nil
	}
	return left
}

// copyBody copies the rest of the content to all signers.
func copyBody(ctx context.Context, p *pass, content io.Reader, line *lines, chunk []byte) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, readErr := content.Read(chunk)
		if err := line.check(chunk[:n]); err != nil {
			return err
		}
		if err := p.write(chunk[:n]); err != nil {
			return err
		}
		if readErr == io.EOF {
			// A reader that is cut short by ctx may look like one at its end;
			// half a message must never be signed.
			if err := ctx.Err(); err != nil {
				return err
			}
			return line.end()
		}
		if readErr != nil {
			return fmt.Errorf("read content: %w", readErr)
		}
	}
}

// pass is one reading of a message by several signers.
type pass struct {
	legs  []leg // whose keys must sign
	relay []leg // of our own domain, beside them
	cause error // not nil: relay cannot sign
	all   io.Writer
}

// leg is the part of one key in a pass.
type leg struct {
	key    keyring.Key
	signer *dkim.Signer
}

// contextSigner is a key elsewhere, which can be given up.
type contextSigner interface {
	crypto.Signer
	// SignContext is Sign, and gives up when ctx ends.
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// bounded is a contextSigner whose signatures are waited for as long as ctx.
type bounded struct {
	contextSigner
	ctx context.Context
}

// Sign implements crypto.Signer.
func (b bounded) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return b.SignContext(b.ctx, rand, digest, opts)
}

// within bounds the wait for the signatures of a key by ctx, if it has such a wait.
func within(ctx context.Context, s crypto.Signer) crypto.Signer {
	if c, is := s.(contextSigner); is {
		return bounded{c, ctx}
	}
	return s
}

// newPass starts a signer per key, until ctx ends. The legs of the pass must be
// ended.
func newPass(ctx context.Context, keys, relay []keyring.Key, list []string, expiry time.Duration) (*pass, error) {
	var expires time.Time
	if expiry > 0 {
		expires = time.Now().Add(expiry)
	}
	p := &pass{}
	var err error
	if p.legs, err = start(ctx, keys, list, expires); err != nil {
		return nil, err
	}
	p.relay, p.cause = start(ctx, relay, list, expires)
	writers := make([]io.Writer, 0, len(p.legs)+len(p.relay))
	for _, l := range slices.Concat(p.legs, p.relay) {
		writers = append(writers, l.signer)
	}
	p.all = io.MultiWriter(writers...)
	return p, nil
}

// start makes the legs of keys, all or none.
func start(ctx context.Context, keys []keyring.Key, list []string, expires time.Time) ([]leg, error) {
	legs := make([]leg, 0, len(keys))
	for _, k := range keys {
		signer, err := dkim.NewSigner(&dkim.SignOptions{
			Domain:   k.Domain,
			Selector: k.Selector,
			Signer:   within(ctx, k.Signer),
			// The library's default is simple, which takes quadratic time over
			// trailing blank lines and breaks where a host folds anew.
			HeaderCanonicalization: dkim.CanonicalizationRelaxed,
			BodyCanonicalization:   dkim.CanonicalizationRelaxed,
			HeaderKeys:             list,
			Expiration:             expires,
		})
		if err != nil {
			_, _ = end(legs) // they had nothing to sign
			return nil, &keyError{k, err}
		}
		legs = append(legs, leg{k, signer})
	}
	return legs, nil
}

func (p *pass) write(parts ...[]byte) error {
	for _, b := range parts {
		if len(b) == 0 {
			continue
		}
		if _, err := p.all.Write(b); err != nil {
			return fmt.Errorf("hash content: %w", err)
		}
	}
	return nil
}

// end ends all signers, waits for their goroutines and returns the fields, or
// the error of the first key that failed.
func end(legs []leg) (string, error) {
	var text strings.Builder
	var first error
	for _, l := range legs {
		err := l.signer.Close()
		switch {
		case err != nil && first == nil:
			first = &keyError{l.key, err}
		case err == nil && first == nil:
			text.WriteString(l.signer.Signature())
		}
	}
	if first != nil {
		return "", first
	}
	return text.String(), nil
}

// ending is what has become of the relay's legs.
type ending struct {
	text string
	err  error
}

// endRelay ends the relay's legs while those of the author end: their keys may be
// elsewhere, and out of reach. Stop waits for that.
func (s *Signer) endRelay(p *pass) <-chan ending {
	done := make(chan ending, 1)
	if len(p.relay) == 0 {
		done <- ending{err: p.cause}
		return done
	}
	s.wg.Go(func() {
		text, err := end(p.relay)
		done <- ending{text, err}
	})
	return done
}

// awaitRelay waits a moment for the relay's fields. Without them the mail goes
// with those of its author.
func (s *Signer) awaitRelay(ctx context.Context, done <-chan ending, relay []keyring.Key) string {
	if len(relay) == 0 {
		return ""
	}
	patience := time.NewTimer(relayPatience)
	defer patience.Stop()
	var e ending
	select {
	case e = <-done:
	case <-patience.C:
		e.err = fmt.Errorf("no signature of %s within %s", relay[0].Domain, relayPatience)
	case <-ctx.Done():
		return ""
	}
	if e.err != nil {
		s.rest.begin(relayPause, causeFailed)
		s.withoutRelay(relay[0].Domain, causeFailed, e.err)
	}
	return e.text
}

// bufferPool keeps buffers between messages.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) get() *buffers {
	if b, ok := p.pool.Get().(*buffers); ok {
		return b
	}
	return &buffers{chunk: make([]byte, chunkBytes)}
}

func (p *bufferPool) put(b *buffers) {
	if cap(b.head) > maxPooledBytes {
		b.head = nil
	}
	p.pool.Put(b)
}
