package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// cert is a certificate to be made.
type cert struct {
	key    crypto.Signer
	serial int64
	names  []string
	after  time.Duration // when it becomes valid
	left   time.Duration // until it ends; 90 days
	age    time.Duration // of the files
}

func (c cert) template() *x509.Certificate {
	if c.left == 0 {
		c.left = 90 * 24 * time.Hour
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: big.NewInt(c.serial), DNSNames: c.names, Subject: pkix.Name{CommonName: "server"},
		NotBefore: now.Add(c.after).Add(-time.Second), NotAfter: now.Add(c.left)}
}

// write makes a certificate that signs itself, in files of a directory.
func write(t *testing.T, dir, name string, c cert) Pair {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c.template(), c.template(), c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	return store(t, dir, name, c, der)
}

// store puts a chain and its key into files. Nothing is written that is there already.
func store(t *testing.T, dir, name string, c cert, chain ...[]byte) Pair {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	p := Pair{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
	var text bytes.Buffer
	for _, der := range chain {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // cannot fail
	}
	put(t, p.Cert, text.Bytes(), c.age)
	put(t, p.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), c.age)
	return p
}

// authority signs certificates by an intermediate one.
type authority struct {
	key              crypto.Signer
	root, middle     []byte
	middleCert       *x509.Certificate
	middlePrivateKey crypto.Signer
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: ecKey(t), middlePrivateKey: ecKey(t)}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	}
	root := template("root", 1)
	var err error
	if a.root, err = x509.CreateCertificate(rand.Reader, root, root, a.key.Public(), a.key); err != nil {
		t.Fatal(err)
	}
	if a.middle, err = x509.CreateCertificate(rand.Reader, template("middle", 2), root, a.middlePrivateKey.Public(), a.key); err != nil {
		t.Fatal(err)
	}
	if a.middleCert, err = x509.ParseCertificate(a.middle); err != nil {
		t.Fatal(err)
	}
	return a
}

// write makes a certificate with its chain, in files of a directory.
func (a *authority) write(t *testing.T, dir, name string, c cert) Pair {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c.template(), a.middleCert, c.key.Public(), a.middlePrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return store(t, dir, name, c, der, a.middle)
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root})
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t *testing.T) crypto.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// put writes a file of an age.
func put(t *testing.T, path string, text []byte, age time.Duration) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-age) // also for none: in a bubble it is another time
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
}
