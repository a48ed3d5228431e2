package vault

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a Vault with a KV v2 engine at secret/, a transit engine at transit/
// and some ways to log in, whose faults the tests turn on and off.
type fake struct {
	*httptest.Server

	mu          sync.Mutex
	sealed      bool
	slow        time.Duration
	deny        string        // paths that have this in them
	spoil       func() string // what is answered instead
	ttl         int           // of tokens, in seconds
	maxTTL      int           // of renewals: 0 is ttl
	fixed       bool          // tokens cannot be renewed
	noPatch     bool          // of metadata
	tokens      map[string]bool
	wrapped     map[string]string // secret ids by the token they are wrapped in
	logins      int
	seen        map[string]int // requests by method and path
	secrets     map[string]*fakeSecret
	transits    map[string]*fakeTransit
	batches     []int             // sizes of the requests to sign
	gate        chan struct{}     // each request to sign takes one of it before it goes on
	signing     int               // requests that wait for that
	mostSigning int               // ever
	answer      func([]any) []any // changes results
}

type fakeSecret struct {
	custom   map[string]string
	versions []*fakeVersion
}

type fakeVersion struct {
	data      map[string]any
	created   time.Time
	deleted   bool
	destroyed bool
}

type fakeTransit struct {
	versions []crypto.Signer
}

const (
	fakeRole    = "role-1"
	fakeSecret1 = "secret-1"
)

func newFake(t testing.TB) *fake {
	f := &fake{ttl: 3600, tokens: map[string]bool{"static": true}, wrapped: map[string]string{}, seen: map[string]int{},
		secrets: map[string]*fakeSecret{}, transits: map[string]*fakeTransit{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// with changes the fake.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) count(request string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[request]
}

func (f *fake) loginCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logins
}

// revoke ends all tokens.
func (f *fake) revoke() { f.with(func() { clear(f.tokens) }) }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body) // only then the server sees that the client has gone
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(content))
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil && strings.Contains(r.URL.Path, "/sign/") {
		f.with(func() { f.signing++; f.mostSigning = max(f.mostSigning, f.signing) })
		select {
		case <-gate:
		case <-r.Context().Done():
		}
		f.with(func() { f.signing-- })
	}
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	f.seen[r.Method+" "+path]++
	token := r.Header.Get("X-Vault-Token")
	login := strings.HasPrefix(path, "auth/") && strings.HasSuffix(path, "/login")
	switch {
	case f.spoil != nil:
		fmt.Fprint(w, f.spoil())
	case f.sealed:
		refuse(w, http.StatusServiceUnavailable, "Vault is sealed\nand says so in two lines")
	case login:
		f.login(w, r, path)
	case path == "sys/wrapping/unwrap":
		secret, is := f.wrapped[token]
		delete(f.wrapped, token)
		if !is {
			refuse(w, http.StatusBadRequest, "wrapping token is not valid or does not exist")
			return
		}
		reply(w, map[string]any{"secret_id": secret})
	case !f.tokens[token] || f.deny != "" && strings.Contains(path, f.deny):
		refuse(w, http.StatusForbidden, "permission denied")
	case strings.HasPrefix(path, "auth/token/"):
		f.token(w, token, path)
	case strings.HasPrefix(path, "secret/"):
		f.kv(w, r, strings.TrimPrefix(path, "secret/"))
	case strings.HasPrefix(path, "transit/"):
		f.transit(w, r, path)
	default:
		refuse(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
	}
}

func refuse(w http.ResponseWriter, status int, texts ...string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, texts...)})
}

func reply(w http.ResponseWriter, data any) { json.NewEncoder(w).Encode(map[string]any{"data": data}) }

func body(r *http.Request) map[string]any {
	var m map[string]any
	d := json.NewDecoder(r.Body)
	d.UseNumber()
	if d.Decode(&m) != nil {
		return map[string]any{}
	}
	return m
}

func (f *fake) grant(w http.ResponseWriter, token string, ttl int) {
	json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": ttl, "renewable": !f.fixed}})
}

func (f *fake) login(w http.ResponseWriter, r *http.Request, path string) {
	b := body(r)
	ok := false
	switch path {
	case "auth/approle/login":
		ok = b["role_id"] == fakeRole && b["secret_id"] == fakeSecret1
	case "auth/kubernetes/login":
		ok = b["role"] == "signer" && b["jwt"] == "service-account"
	}
	if !ok {
		refuse(w, http.StatusBadRequest, "invalid role or secret ID")
		return
	}
	f.logins++
	token := fmt.Sprintf("token-%d", f.logins)
	f.tokens[token] = true
	f.grant(w, token, f.ttl)
}

func (f *fake) token(w http.ResponseWriter, token, path string) {
	switch path {
	case "auth/token/renew-self":
		ttl := f.ttl
		if f.maxTTL > 0 {
			ttl = f.maxTTL
		}
		f.grant(w, token, ttl)
	case "auth/token/lookup-self":
		reply(w, map[string]any{"ttl": f.ttl, "renewable": !f.fixed})
	case "auth/token/revoke-self":
		delete(f.tokens, token)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fake) kv(w http.ResponseWriter, r *http.Request, path string) {
	what, path, _ := strings.Cut(path, "/")
	s := f.secrets[path]
	switch {
	case what == "metadata" && r.URL.Query().Get("list") == "true":
		f.list(w, path)
	case what == "metadata" && r.Method == http.MethodGet && s != nil:
		reply(w, s.metadata())
	case what == "metadata" && (r.Method == http.MethodPut || r.Method == http.MethodPatch):
		f.writeMetadata(w, r, path)
	case what == "metadata" && r.Method == http.MethodDelete:
		delete(f.secrets, path)
		w.WriteHeader(http.StatusNoContent)
	case what == "data" && r.Method == http.MethodGet && s != nil && len(s.versions) > 0:
		s.read(w)
	case what == "data" && (r.Method == http.MethodPut || r.Method == http.MethodPatch):
		f.write(w, r, path)
	case what == "destroy" && s != nil:
		for _, n := range body(r)["versions"].([]any) {
			number, _ := n.(json.Number).Int64()
			if number >= 1 && int(number) <= len(s.versions) {
				v := s.versions[number-1]
				v.data, v.destroyed = nil, true
			}
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusNotFound)
	}
}

func (f *fake) writeMetadata(w http.ResponseWriter, r *http.Request, path string) {
	s := f.secrets[path]
	patch := r.Method == http.MethodPatch
	switch {
	case patch && f.noPatch:
		refuse(w, http.StatusForbidden, "permission denied")
		return
	case patch && s == nil:
		w.WriteHeader(http.StatusNotFound)
		return
	case s == nil:
		s = &fakeSecret{}
		f.secrets[path] = s
	}
	custom := map[string]string{}
	if patch {
		maps.Copy(custom, s.custom)
	}
	for name, v := range body(r)["custom_metadata"].(map[string]any) {
		if v == nil && patch {
			delete(custom, name)
			continue
		}
		if text := v.(string); text == "" || len(text) > 512 || len(name) > 128 {
			refuse(w, http.StatusBadRequest, "invalid custom metadata")
			return
		}
		custom[name] = v.(string)
	}
	s.custom = custom
	w.WriteHeader(http.StatusNoContent)
}

func (f *fake) list(w http.ResponseWriter, path string) {
	names := map[string]bool{}
	for p := range f.secrets {
		if rest, is := strings.CutPrefix(p, strings.TrimSuffix(path, "/")+"/"); is {
			name, _, folder := strings.Cut(rest, "/")
			if folder {
				name += "/"
			}
			names[name] = true
		}
	}
	if len(names) == 0 {
		refuse(w, http.StatusNotFound)
		return
	}
	reply(w, map[string]any{"keys": slices.Sorted(maps.Keys(names))})
}

func (v *fakeVersion) describe() map[string]any {
	deletion := ""
	if v.deleted {
		deletion = v.created.Format(time.RFC3339Nano)
	}
	return map[string]any{"created_time": v.created, "deletion_time": deletion, "destroyed": v.destroyed}
}

func (s *fakeSecret) metadata() map[string]any {
	versions := map[string]any{}
	for i, v := range s.versions {
		versions[fmt.Sprint(i+1)] = v.describe()
	}
	return map[string]any{"current_version": len(s.versions), "custom_metadata": s.custom, "versions": versions}
}

func (s *fakeSecret) read(w http.ResponseWriter) {
	v := s.versions[len(s.versions)-1]
	metadata := v.describe()
	metadata["version"], metadata["custom_metadata"] = len(s.versions), s.custom
	answer := map[string]any{"data": v.data, "metadata": metadata}
	if v.deleted || v.destroyed {
		answer["data"] = nil
		w.WriteHeader(http.StatusNotFound)
	}
	reply(w, answer)
}

func (f *fake) write(w http.ResponseWriter, r *http.Request, path string) {
	b := body(r)
	s := f.secrets[path]
	current := 0
	if s != nil {
		current = len(s.versions)
	}
	data := map[string]any{}
	if r.Method == http.MethodPatch {
		if r.Header.Get("Content-Type") != "application/merge-patch+json" {
			refuse(w, http.StatusUnsupportedMediaType, "wrong content type")
			return
		}
		if current == 0 || s.versions[current-1].data == nil || s.versions[current-1].deleted {
			w.WriteHeader(http.StatusNotFound) // with nothing, unlike others
			return
		}
		data = maps.Clone(s.versions[current-1].data)
	}
	options, _ := b["options"].(map[string]any)
	if cas, is := options["cas"].(json.Number); is && cas.String() != fmt.Sprint(current) {
		refuse(w, http.StatusBadRequest, "check-and-set parameter did not match the current version")
		return
	}
	for name, v := range b["data"].(map[string]any) {
		if data[name] = v; v == nil {
			delete(data, name)
		}
	}
	f.put(path, data)
	reply(w, map[string]any{"version": current + 1})
}

// put adds a version. f.mu is held.
func (f *fake) put(path string, data map[string]any) {
	s := f.secrets[path]
	if s == nil {
		s = &fakeSecret{}
		f.secrets[path] = s
	}
	s.versions = append(s.versions, &fakeVersion{data: data, created: time.Now()})
}

func (f *fake) transit(w http.ResponseWriter, r *http.Request, path string) {
	parts := strings.Split(path, "/")
	key := f.transits[parts[2]]
	switch {
	case key == nil && parts[1] == "sign":
		refuse(w, http.StatusBadRequest, "signing key not found")
	case key == nil:
		refuse(w, http.StatusNotFound)
	case parts[1] == "keys":
		reply(w, key.describe())
	case parts[1] == "sign":
		b := body(r)
		n, _ := b["key_version"].(json.Number).Int64()
		inputs := b["batch_input"].([]any)
		f.batches = append(f.batches, len(inputs))
		var results []any
		for _, input := range inputs {
			item := input.(map[string]any)
			raw, _ := base64.StdEncoding.DecodeString(item["input"].(string))
			signature, err := key.sign(raw, int(n), b, len(parts) == 4 && parts[3] == "sha2-256")
			if err != nil {
				results = append(results, map[string]any{"error": err.Error(), "reference": item["reference"]})
				continue
			}
			text := fmt.Sprintf("vault:v%d:%s", n, base64.StdEncoding.EncodeToString(signature))
			results = append(results, map[string]any{"signature": text, "key_version": n, "reference": item["reference"]})
		}
		if f.answer != nil {
			results = f.answer(results)
		}
		reply(w, map[string]any{"batch_results": results})
	}
}

func (k *fakeTransit) describe() map[string]any {
	keys := map[string]any{}
	kind := "ed25519"
	for i, s := range k.versions {
		text := ""
		switch public := s.Public().(type) {
		case ed25519.PublicKey:
			text = base64.StdEncoding.EncodeToString(public)
		case *rsa.PublicKey:
			kind = "rsa-2048"
			der, _ := x509.MarshalPKIXPublicKey(public)
			text = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		}
		keys[fmt.Sprint(i+1)] = map[string]any{"public_key": text}
	}
	return map[string]any{"type": kind, "keys": keys, "derived": false}
}

func (k *fakeTransit) sign(input []byte, version int, b map[string]any, sha bool) ([]byte, error) {
	if version < 1 || version > len(k.versions) {
		return nil, fmt.Errorf("no version %d", version)
	}
	switch s := k.versions[version-1].(type) {
	case *rsa.PrivateKey:
		if !sha || b["prehashed"] != true || b["signature_algorithm"] != "pkcs1v15" {
			return nil, fmt.Errorf("want pkcs1v15 over a digest by sha2-256, got %v", b)
		}
		return s.Sign(rand.Reader, input, crypto.SHA256)
	case ed25519.PrivateKey:
		return s.Sign(rand.Reader, input, crypto.Hash(0))
	}
	return nil, fmt.Errorf("no key")
}
