//go:build realvault

package vault

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/signer/keyring"
)

func (v *realServer) storeTransit(t *testing.T, k keyring.Key) {
	t.Helper()
	v.keys++
	name := fmt.Sprintf("dkim-%d", v.keys)
	var wrapping struct {
		Public string `json:"public_key"`
	}
	if err := decode(v.call(t, call{method: http.MethodGet, path: "transit/wrapping_key"}).Data, &wrapping); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(wrapping.Public))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.Signer)
	if err != nil {
		t.Fatal(err)
	}
	ephemeral := make([]byte, 32)
	rand.Read(ephemeral)
	first, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), ephemeral, nil)
	if err != nil {
		t.Fatal(err)
	}
	kind := "rsa-2048"
	if k.Algorithm == keyring.Ed25519 {
		kind = "ed25519"
	}
	v.call(t, call{method: http.MethodPut, path: "transit/keys/" + name + "/import", body: map[string]any{
		"ciphertext": base64.StdEncoding.EncodeToString(append(first, wrap(t, ephemeral, der)...)), "hash_function": "SHA256", "type": kind,
	}})
	v.put(t, k.Domain, k.Selector, map[string]any{"transit_key": name, "transit_version": 1, "algorithm": string(k.Algorithm)})
}

// testBatch pins what Vault says when it refuses some of a batch.
func (v *realServer) testBatch(t *testing.T) {
	v.call(t, call{method: http.MethodPut, path: "transit/keys/dkim-batch", body: map[string]any{"type": "rsa-2048"}})
	batches := newBatcher(v.client(t, "signer"))
	key, err := (&transit{client: batches.client, mount: "transit", batches: batches}).key(t.Context(), "dkim-batch", 1)
	if err != nil {
		t.Fatal(err)
	}
	send := func(id lineID) []*wish {
		var batch []*wish
		for i := range 4 {
			digest := sha256.Sum256([]byte{byte(i)})
			batch = append(batch, &wish{input: digest[:], done: make(chan struct{})})
		}
		batch[2].input = []byte("no digest")
		batches.send(id, batch)
		return batch
	}
	for i, w := range send(key.id) {
		switch {
		case i == 2 && (w.err == nil || !strings.Contains(w.err.Error(), "vault refuses it (crypto/rsa: input must be hashed message)")):
			t.Errorf("no digest: got %v, want a refusal", w.err)
		case i != 2 && (w.err != nil || !verifies(key.public, w.input, w.signature)):
			t.Errorf("digest %d: got %v, want a signature", i, w.err)
		}
	}
	id := key.id
	id.version = 9
	for i, w := range send(id) {
		if w.err == nil || errors.Is(w.err, ErrUnavailable) {
			t.Errorf("digest %d by a version that is not there: got %v, want a refusal", i, w.err)
		}
	}
	v.seal(t)
	for i, w := range send(key.id) {
		if !errors.Is(w.err, ErrUnavailable) {
			t.Errorf("digest %d while it is sealed: got %v, want %v", i, w.err, ErrUnavailable)
		}
	}
	v.open(t)
	if w := send(key.id)[0]; w.err != nil {
		t.Errorf("unsealed: got %v", w.err)
	}
}

// testMetadata changes custom metadata with and without the right to patch it.
func (v *realServer) testMetadata(t *testing.T) {
	v.call(t, call{method: http.MethodPut, path: "sys/policies/acl/no-patch", body: map[string]any{"policy": `
path "secret/data/postroad/*" { capabilities = ["create", "read", "update"] }
path "secret/metadata/postroad/*" { capabilities = ["create", "read", "update", "list"] }`}})
	got := v.call(t, call{method: http.MethodPut, path: "auth/token/create", body: map[string]any{"policies": []string{"no-patch"}}})
	o := v.options(t, "root")
	o.Login = &TokenFile{Path: secretFile(t, got.Auth.Token)}
	without, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{"with": v.client(t, "admin"), "without": without} {
		path := "dkim/metadata.example/" + name
		if _, err := c.Write(t.Context(), path, map[string]any{"a": "1"}, 0); err != nil {
			t.Fatal(err)
		}
		var gone []string
		for n := range maxPieces {
			gone = append(gone, piece(n))
		}
		for _, err := range []error{
			c.SetCustom(t.Context(), path, map[string]string{"owner": "mail team", "ours": "1", piece(7): "x"}),
			c.SetCustom(t.Context(), path, map[string]string{"ours": "2"}, gone...),
		} {
			if err != nil {
				t.Errorf("%s the right to patch: %v", name, err)
			}
		}
		m, err := c.Metadata(t.Context(), path)
		if err != nil || len(m.Custom) != 2 || m.Custom["owner"] != "mail team" || m.Custom["ours"] != "2" {
			t.Errorf("%s the right to patch: got %v, %v, want owner and ours", name, m.Custom, err)
		}
	}
	v.clean(t)
}

func wrap(t *testing.T, key, text []byte) []byte {
	t.Helper()
	var c cipher.Block
	c, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	head := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(text)))
	padded := append(slices.Clone(text), make([]byte, (8-len(text)%8)%8)...)
	out := append(head, padded...)
	n := len(padded) / 8
	var b [16]byte
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[:8], out[:8])
			copy(b[8:], out[8*i:])
			c.Encrypt(b[:], b[:])
			step := binary.BigEndian.Uint64(b[:8]) ^ uint64(n*j+i)
			binary.BigEndian.PutUint64(out[:8], step)
			copy(out[8*i:8*i+8], b[8:])
		}
	}
	return out
}

// BenchmarkRealTransit is BenchmarkTransit against a server, with a key of each
// kind.
func BenchmarkRealTransit(b *testing.B) {
	v := startReal(b)
	v.enable(b, "transit", "transit", nil)
	for _, kind := range []string{"rsa-2048", "ed25519"} {
		b.Run(kind, func(b *testing.B) {
			v.call(b, call{method: http.MethodPut, path: "transit/keys/dkim-" + kind, body: map[string]any{"type": kind}})
			batches, registry := newBatcher(v.root), prometheus.NewRegistry()
			registry.MustRegister(batches.sizes)
			key, err := (&transit{client: v.root, mount: "transit", batches: batches}).key(b.Context(), "dkim-"+kind, 1)
			if err != nil {
				b.Fatal(err)
			}
			hash := crypto.Hash(0)
			if key.id.rsa {
				hash = crypto.SHA256
			}
			benchmarkTransit(b, key, hash, func() int {
				families, err := registry.Gather()
				if err != nil {
					b.Fatal(err)
				}
				return int(families[0].GetMetric()[0].GetHistogram().GetSampleCount())
			})
		})
	}
}
