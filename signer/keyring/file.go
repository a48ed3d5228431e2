package keyring

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// maxFileBytes is ample: an RSA key of 4096 bits takes 3.3 KB.
	maxFileBytes = 64 << 10

	minRSABits     = 1024 // RFC 8301 §3.2: signers must not go below
	advisedRSABits = 2048
	maxRSABits     = 4096 // RFC 8301 §3.2: verifiers need not take more

	// unsettled is how young a file may be for its time stamp to tell nothing:
	// a second write within the clock's grain would leave it the same.
	unsettled = 2 * time.Second
)

// file is one key file, with the state file beside it, as last read.
type file struct {
	prints  prints
	settled bool   // equal prints mean equal files
	state   State  // Active when there is no state file
	key     Key    // of an Active one only: others are not kept in memory
	err     error  // wraps ErrBadKey: what is wrong and what to do
	advice  string // for a key that can be used but should be replaced
}

// signs reports that the key may be used.
func (f *file) signs() bool { return f.err == nil && f.state == Active }

// prints are those of a key file and of its state file, zero for one that is
// not there.
type prints struct{ key, state print }

// print tells whether a file has changed.
type print struct {
	size     int64
	modified int64 // Unix time in ns
	mode     fs.FileMode
	id       identity
}

func printOf(info fs.FileInfo) print {
	return print{info.Size(), info.ModTime().UnixNano(), info.Mode(), identify(info)}
}

// readFiles reads the key files of a domain, those that are as they were in old
// not again. No files and no error means that there is no key. Errors are
// those of Source.
func (d *Dir) readFiles(domain string, old *shelf, now time.Time) (map[string]file, error) {
	dir := filepath.Join(d.root, domain)
	list, err := readDir(dir)
	if err != nil {
		return nil, d.classify(dir, err)
	}
	files := make(map[string]file)
	for _, e := range list {
		selector, is := strings.CutSuffix(e.Name(), extension)
		if !is || strings.HasPrefix(selector, ".") {
			continue
		}
		seen, young, err := glance(dir, selector, now)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone in this moment, or a link to nothing
		}
		if err != nil {
			return nil, fmt.Errorf("look at key file: %w", err)
		}
		if old != nil {
			if before, was := old.files[selector]; was && before.settled && before.prints == seen {
				files[selector] = before
				continue
			}
		}
		f, err := readKey(dir, domain, selector)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.prints, f.settled = seen, !young
		files[selector] = f
	}
	return files, nil
}

// glance looks at a key file and at its state file, which need not be there.
// A young print, or one that could not be had, may hide a change.
func glance(dir, selector string, now time.Time) (seen prints, young bool, err error) {
	one := func(name string) (print, error) {
		info, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrPermission) {
			young = true
			return print{}, nil
		}
		if err != nil {
			return print{}, err
		}
		young = young || now.Sub(info.ModTime()).Abs() <= unsettled
		return printOf(info), nil
	}
	if seen.key, err = one(selector + extension); err != nil {
		return prints{}, false, err
	}
	seen.state, err = one(selector + stateExtension)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return prints{}, false, err
	}
	return seen, young, nil
}

// readDir lists a directory of keys, up to a bound. State files have one of
// their own: they stay for ever.
func readDir(dir string) ([]fs.DirEntry, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.ReadDir(maxEntries + maxStates + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	states := 0
	for _, e := range list {
		if strings.HasSuffix(e.Name(), stateExtension) {
			states++
		}
	}
	if len(list)-states > maxEntries {
		return nil, fmt.Errorf("%s has more than %d files: leave only the keys in use: %w", dir, maxEntries, ErrBadKey)
	}
	if states > maxStates {
		return nil, fmt.Errorf("%s has more than %d state files: move those of the oldest keys that are removed to another place, "+
			"and never use their selectors again: %w", dir, maxStates, ErrBadKey)
	}
	return list, nil
}

// classify tells what concerns one domain from what concerns them all.
func (d *Dir) classify(dir string, err error) error {
	if errors.Is(err, ErrBadKey) {
		return err
	}
	info, rootErr := os.Stat(d.root)
	if rootErr == nil && !info.IsDir() {
		rootErr = errors.New("it is not a directory")
	}
	if rootErr != nil {
		return d.outOfReach(rootErr)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	info, statErr := os.Stat(dir) // needs permission for the root only
	switch {
	case statErr != nil:
		return d.outOfReach(statErr)
	case !info.IsDir():
		return fmt.Errorf("%s is a file, want a directory with <selector>%s in it: %w", dir, extension, ErrBadKey)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("directory %s cannot be read by this user: chown it and set mode 0700: %w", dir, ErrBadKey)
	}
	return d.outOfReach(err)
}

// readKey reads a key file in the light of its state file. What is wrong with
// either is in file.err; fs.ErrNotExist says that there is no key file, other
// errors may pass.
func readKey(dir, domain, selector string) (file, error) {
	entry, err := readState(dir, domain, selector) // first: a private half is destroyed after its state has changed
	switch {
	case errors.Is(err, ErrBadKey):
		return file{err: err}, nil
	case errors.Is(err, fs.ErrNotExist):
		f, err := readFile(dir, domain, selector)
		f.state = Active
		return f, err
	case err != nil:
		return file{}, err
	case entry.State.Gone():
		return file{state: entry.State}, nil
	}
	f, err := readFile(dir, domain, selector)
	f.state = entry.State
	if err == nil && f.err == nil && Record(f.key) != entry.Record {
		f.err = fmt.Errorf("key file %s is not the key that %s speaks of, whose public half is in the DNS: "+
			"put the right one back, or store this one under another selector: %w",
			filepath.Join(dir, selector+extension), selector+stateExtension, ErrBadKey)
	}
	if !f.signs() {
		f.key = Key{}
	}
	return f, err
}

// readFile reads and checks one key file. What is wrong with the file itself is
// in file.err; the error is for what may pass by itself.
func readFile(dir, domain, selector string) (file, error) {
	path := filepath.Join(dir, selector+extension)
	bad := func(fault error) (file, error) {
		return file{err: fmt.Errorf("key file %s %w: %w", path, fault, ErrBadKey)}, nil
	}
	if !isName(selector) {
		return bad(fmt.Errorf("is not named after a selector: want lower-case letters, digits and hyphens before %s", extension))
	}
	data, fault, err := readPrivate(path)
	if err != nil {
		return file{}, fmt.Errorf("read key file: %w", err)
	}
	if fault != nil {
		return bad(fault)
	}
	signer, algorithm, advice, err := ParseKey(data)
	clear(data)
	if err != nil {
		return bad(err)
	}
	return file{key: Key{domain, selector, algorithm, signer}, advice: advice}, nil
}

// readPrivate reads a file that nobody else may read. The fault is what is
// wrong with the file, as the rest of a sentence; the error may pass by itself.
func readPrivate(path string) (data []byte, fault, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil, errors.New("cannot be read by this user: make it the owner with chown, and chmod 0600"), nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file: replace it with one"), nil
	}
	if mode := info.Mode().Perm(); checksMode && mode&^0o600 != 0 {
		return nil, fmt.Errorf("has mode %04o, others could read or change it: chmod 0600, and replace the key if others had access", mode), nil
	}
	if owner, ok := ownedByUs(info); !ok {
		return nil, fmt.Errorf("belongs to user %d, but this process runs as user %d: chown it", owner, os.Geteuid()), nil
	}
	data, err = io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("is larger than %d octets: leave one private key in it", maxFileBytes), nil
	}
	return data, nil, nil
}

// ParseKey reads the one private key in a PEM text, PKCS #8 or PKCS #1, that can
// sign: RSA of 1024 to 4096 bits, or Ed25519. The text is advice for a key that
// should be replaced. Errors read as the rest of a sentence about the text.
func ParseKey(data []byte) (crypto.Signer, Algorithm, string, error) {
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, "", "", errors.New(`is not PEM: want "-----BEGIN PRIVATE KEY-----"`)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, "", "", errors.New("holds more than one PEM block: leave one private key in it")
	}
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY", block.Headers["DEK-Info"] != "":
		return nil, "", "", errors.New("is encrypted: store the key without a passphrase (openssl pkey -in … -out …)")
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, "", "", fmt.Errorf("holds a %q: want a private key, PKCS #8 or PKCS #1", block.Type)
	}
	if err != nil {
		return nil, "", "", fmt.Errorf("holds a damaged key: %w", err)
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		bits := k.N.BitLen()
		advice := ""
		switch {
		case bits < minRSABits:
			return nil, "", "", fmt.Errorf("holds an RSA key of %d bits, verifiers refuse it: make one of %d", bits, advisedRSABits)
		case bits > maxRSABits:
			return nil, "", "", fmt.Errorf("holds an RSA key of %d bits, verifiers need not take more than %d: make one of %d", bits, maxRSABits, advisedRSABits)
		case bits < advisedRSABits:
			advice = fmt.Sprintf("it has %d bits: replace it with one of %d", bits, advisedRSABits)
		}
		return k, RSA, advice, nil
	case ed25519.PrivateKey:
		return k, Ed25519, "", nil
	}
	return nil, "", "", fmt.Errorf("holds a key of type %T: DKIM knows RSA and Ed25519", key)
}
