package keyring

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrExists says that a selector is in use. Selectors are never used again: a
// verifier may still know the old key under the name.
var ErrExists = errors.New("this selector has a key already")

// Make makes a key that is stored nowhere yet. RSA keys have 2048 bits.
func Make(domain, selector string, algorithm Algorithm) (Key, error) {
	name, ok := CleanDomain(domain)
	if !ok {
		return Key{}, fmt.Errorf("generate key: %q is no domain name in A-label form", domain)
	}
	if !isName(selector) {
		return Key{}, fmt.Errorf("generate key for %s: %q is no selector: want lower-case letters, digits and hyphens", name, selector)
	}
	var signer crypto.Signer
	var err error
	switch algorithm {
	case RSA:
		signer, err = rsa.GenerateKey(rand.Reader, advisedRSABits)
	case Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("unknown algorithm %q: want %q or %q", algorithm, RSA, Ed25519)
	}
	if err != nil {
		return Key{}, fmt.Errorf("generate key for %s: %w", name, err)
	}
	return Key{name, selector, algorithm, signer}, nil
}

// Generate makes a key for a domain and stores it below the directory of
// secrets, where a Dir with that Path finds it. It signs at once, as a key does
// that was put there by hand. The file appears whole or not at all.
func Generate(secrets, domain, selector string, algorithm Algorithm) (Key, error) {
	k, err := Make(domain, selector, algorithm)
	if err != nil {
		return Key{}, err
	}
	if err := store(filepath.Join(secrets, subdirectory, k.Domain), k); err != nil {
		return Key{}, fmt.Errorf("store key %s of %s: %w", selector, k.Domain, err)
	}
	return k, nil
}

// store writes a key file under a passing name and links it to its own, which
// fails when that is taken.
func store(dir string, k Key) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.Signer)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(data)
	defer clear(der)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	passing, err := writePassing(dir, k.Selector, data)
	if err != nil {
		return err
	}
	defer os.Remove(passing)
	err = os.Link(passing, filepath.Join(dir, k.Selector+extension))
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// writePassing writes a file with mode 0600 under a name that nobody reads, and
// returns its path.
func writePassing(dir, selector string, data []byte) (string, error) {
	f, err := os.CreateTemp(dir, "."+selector+"-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
