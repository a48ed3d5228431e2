package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"postroad/signer/keyring"
)

// transit finds keys in the transit engine.
type transit struct {
	client  *Client
	mount   string
	batches *batcher
}

// key reads the public half of one version of a transit key. ErrBadKey: there is
// none that can be used; the error reads as the rest of a sentence about the
// secret that names it.
func (t *transit) key(ctx context.Context, name string, version int) (*transitKey, error) {
	bad := func(format string, args ...any) (*transitKey, error) {
		return nil, fmt.Errorf(format+": %w", append(args, keyring.ErrBadKey)...)
	}
	if strings.Contains(name, "/") || checkPath(name) != nil {
		return bad("has a transit_key that is no name of a key (%s)", brief(name))
	}
	if version < 1 {
		return bad("names transit key %s without a transit_version: a selector stands for one version, from 1", name)
	}
	path := t.mount + "/keys/" + name
	got, err := t.client.do(ctx, "read public half of", call{method: http.MethodGet, path: path})
	if isNotFound(err) {
		return bad("names transit key %s, which does not exist", name)
	}
	if errors.Is(err, ErrDenied) && !t.client.isLoginTrouble() {
		return bad("names transit key %s, which is not for us: %v", name, err)
	}
	if err != nil {
		return nil, err
	}
	var data struct {
		Type    string `json:"type"`
		Derived bool   `json:"derived"`
		Keys    map[string]struct {
			Public string `json:"public_key"`
		} `json:"keys"`
	}
	if err := decode(got.Data, &data); err != nil {
		return nil, explain(ctx, "read public half of", path, err)
	}
	public, err := parsePublic(data.Type, data.Keys[strconv.Itoa(version)].Public)
	if err != nil || data.Derived {
		return bad("names version %d of transit key %s, of type %s: want one that exists, of type rsa-2048 or ed25519, not derived", version, name, brief(data.Type))
	}
	_, isRSA := public.(*rsa.PublicKey)
	return &transitKey{batches: t.batches, id: lineID{t.mount + "/sign/" + name, version, isRSA}, public: public}, nil
}

func parsePublic(kind, text string) (crypto.PublicKey, error) {
	if kind == "ed25519" {
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, errors.New("no Ed25519 key")
		}
		return ed25519.PublicKey(raw), nil
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if _, is := public.(*rsa.PublicKey); err != nil || !is {
		return nil, errors.New("no RSA key")
	}
	return public, nil
}

// ContextSigner is a crypto.Signer that may have to wait for its signature.
// Transit keys are such.
type ContextSigner interface {
	crypto.Signer
	// SignContext is Sign, and gives up when ctx ends; the error wraps that of ctx.
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// transitKey signs through Vault.
type transitKey struct {
	batches *batcher
	id      lineID
	public  crypto.PublicKey
}

var _ ContextSigner = (*transitKey)(nil)

// Public implements crypto.Signer.
func (t *transitKey) Public() crypto.PublicKey { return t.public }

// Sign implements crypto.Signer for what DKIM needs: PKCS #1 v1.5 over a SHA-256
// digest, and Ed25519 over any octets. It waits for Vault, three times the
// Timeout of the client at most; the errors are those of this package.
func (t *transitKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return t.SignContext(context.Background(), rand, digest, opts)
}

// SignContext implements ContextSigner; ErrUnavailable is among the errors when
// ctx has ended, or the wait has.
func (t *transitKey) SignContext(ctx context.Context, _ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	switch {
	case t.id.rsa && (hash != crypto.SHA256 || len(digest) != hash.Size()):
		return nil, errors.New("transit signs a SHA-256 digest only")
	case !t.id.rsa && hash != 0:
		return nil, errors.New("transit makes Ed25519 signatures over octets that are not hashed")
	}
	if _, is := opts.(*rsa.PSSOptions); is {
		return nil, errors.New("transit makes no PSS signatures here")
	}
	ctx, cancel := context.WithTimeout(ctx, t.batches.patience())
	defer cancel()
	signature, err := t.batches.sign(ctx, t.id, digest)
	if err != nil {
		return nil, err
	}
	if !verifies(t.public, digest, signature) {
		return nil, fmt.Errorf("sign with %s: what came back is no signature by this key", t.id.path)
	}
	return signature, nil
}

// verifies costs little beside the request; a signature that no receiver takes
// costs the mail.
func verifies(public crypto.PublicKey, input, signature []byte) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, input, signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(public, input, signature)
	}
	return false
}
