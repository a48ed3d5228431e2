package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	maxFileBytes = 1 << 20 // chains are a few KB

	// unsettled is how young a file may be for its time stamp to tell nothing,
	// since a second write within the clock's grain would leave it the same; and
	// how long a file may be in the making before it is called bad.
	unsettled = 2 * time.Second
)

// print tells whether a file has changed.
type print struct {
	info     fs.FileInfo // nil: it could not be looked at
	size     int64
	modified time.Time
	mode     fs.FileMode
}

func printOf(path string) print {
	info, err := os.Stat(path)
	if err != nil {
		return print{}
	}
	return print{info, info.Size(), info.ModTime(), info.Mode()}
}

func (p print) same(q print) bool {
	return p.info != nil && q.info != nil && os.SameFile(p.info, q.info) && p.size == q.size && p.modified.Equal(q.modified) && p.mode == q.mode
}

func (p print) isSettled() bool { return p.info == nil || time.Since(p.modified).Abs() > unsettled }

// files are what is known of a pair of files.
type files struct {
	cert, key print    // as they were when they were read last
	wasRead   bool     // and they were settled then, and good
	sum       [32]byte // of the content that is in force
	said      string   // what was complained of, and of which files, until it is mended
	end       int      // what was said of the end: endSoon, ended
}

// isSettled reports that nobody is just writing.
func (f *files) isSettled() bool { return f.cert.isSettled() && f.key.isSettled() }

// read reads a pair if it has changed and makes sure that it can be used. No
// certificate and no error means that it is the one that was returned last.
func (f *files) read(ctx context.Context, p Pair) (*tls.Certificate, error) {
	if p.Source != nil {
		return f.ask(ctx, p)
	}
	cert, key := printOf(p.Cert), printOf(p.Key) // before reading: what changes meanwhile is seen next time
	if f.wasRead && f.cert.same(cert) && f.key.same(key) {
		return nil, nil
	}
	f.cert, f.key, f.wasRead = cert, key, false
	c, sum, err := load(p)
	if err != nil {
		return nil, err
	}
	f.wasRead = f.isSettled()
	return f.take(c, sum)
}

// sourceTimeout bounds a question to a Source.
const sourceTimeout = 10 * time.Second

// ask is read for a pair that lies elsewhere.
func (f *files) ask(ctx context.Context, p Pair) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	chain, key, err := p.Source.Pair(ctx)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", p.Cert, err)
	}
	defer clear(key)
	c, sum, err := parse(p, chain, key)
	if err != nil {
		return nil, err
	}
	return f.take(c, sum)
}

// take returns what is new.
func (f *files) take(c *tls.Certificate, sum [32]byte) (*tls.Certificate, error) {
	if sum == f.sum {
		return nil, nil
	}
	f.sum = sum
	return c, nil
}

// load reads a pair and checks all that can be wrong with it.
func load(p Pair) (c *tls.Certificate, sum [32]byte, err error) {
	chain, err := readFile(p.Cert, false)
	if err != nil {
		return nil, sum, fmt.Errorf("read certificate: %w", err)
	}
	key, err := readFile(p.Key, true)
	if err != nil {
		return nil, sum, fmt.Errorf("read key: %w", err)
	}
	defer clear(key)
	return parse(p, chain, key)
}

// parse checks a pair whose content is at hand.
func parse(p Pair, chain, key []byte) (c *tls.Certificate, sum [32]byte, err error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		name := p.Cert
		if p.Key != "" {
			name += " with key " + p.Key
		}
		return nil, sum, fmt.Errorf("certificate %s: %w", name, err)
	}
	if err := checkChain(pair); err != nil {
		return nil, sum, fmt.Errorf("certificate %s: %w", p.Cert, err)
	}
	keySum := sha256.Sum256(key)
	return &pair, sha256.Sum256(append(chain, keySum[:]...)), nil
}

func readFile(path string, isSecret bool) ([]byte, error) {
	info, err := os.Stat(path) // before it is opened: that would wait for the writer of a FIFO
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); isSecret && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so others can read it: chmod 0600 it", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d octets", path, maxFileBytes)
	}
	return data, err
}

// checkChain finds what clients would refuse whatever they trust.
func checkChain(pair tls.Certificate) error {
	if len(pair.Leaf.DNSNames)+len(pair.Leaf.IPAddresses) == 0 {
		return errors.New("it names no host in its subjectAltName: clients refuse it")
	}
	before := pair.Leaf
	for i, der := range pair.Certificate[1:] {
		next, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("number %d of the chain: %w", i+2, err)
		}
		if !bytes.Equal(before.RawIssuer, next.RawSubject) {
			return fmt.Errorf("number %d of the chain is %q, but %q has issued the one before: put the server's certificate first, then each one's issuer",
				i+2, next.Subject, before.Issuer)
		}
		before = next
	}
	return nil
}

// isSelfSigned reports a certificate that nobody else vouches for.
func isSelfSigned(leaf *x509.Certificate) bool {
	return bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil
}
