// Package fakevault is a Vault for tests: a KV v2 engine at secret/ and one token.
//
//	v := fakevault.New(t)
//	secrets.Open(secrets.Options{Config: c, TokenFile: v.TokenFile}) // with secrets.vault.address: v.URL
//
// What it does of the API is what Postroad uses; signer/vault is held against a real one.
package fakevault

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const token = "test-token"

// Server is the Vault.
type Server struct {
	URL       string
	TokenFile string // of who gives commands

	mu      sync.Mutex
	secrets map[string]*secret // by path, with the prefix
	reads   map[string]int     // of data, by path
	lose    func(method, path string) bool

	sealed atomic.Bool
}

type secret struct {
	custom   map[string]string
	versions []version
}

type version struct {
	data      map[string]any // nil: destroyed
	created   time.Time
	isDeleted bool
}

// New starts a Vault for a test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{secrets: make(map[string]*secret), reads: make(map[string]int), TokenFile: filepath.Join(t.TempDir(), "token")}
	if err := os.WriteFile(s.TokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.URL = h.URL
	return s
}

// LoseAnswers lets requests happen whose answers are lost, while fn says so. It may call Seal, and sees all requests.
func (s *Server) LoseAnswers(fn func(method, path string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = fn
}

// Seal makes it answer nothing, or again.
func (s *Server) Seal(sealed bool) {
	s.sealed.Store(sealed)
}

// Reads is how often what is in a secret was read: postroad/tls/relay.
func (s *Server) Reads(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[path]
}

// Put writes a secret as somebody does by hand: without metadata.
func (s *Server) Put(path string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(path, data)
}

// Data is what the versions of a secret hold, oldest first; nil for a destroyed one.
func (s *Server) Data(path string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []map[string]any
	if found := s.secrets[path]; found != nil {
		for _, v := range found.versions {
			all = append(all, maps.Clone(v.data))
		}
	}
	return all
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body) // there may be none
	s.mu.Lock()
	defer s.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	var out http.ResponseWriter = w
	if s.lose != nil && s.lose(r.Method, path) {
		out = httptest.NewRecorder()
		defer refuse(w, http.StatusBadGateway, "the answer is lost")
	}
	if s.sealed.Load() {
		refuse(out, http.StatusServiceUnavailable, "Vault is sealed")
		return
	}
	switch {
	case r.Header.Get("X-Vault-Token") != token:
		refuse(out, http.StatusForbidden, "permission denied")
	case path == "auth/token/lookup-self":
		answer(out, map[string]any{"ttl": 3600, "renewable": false})
	case strings.HasPrefix(path, "secret/"):
		what, rest, _ := strings.Cut(strings.TrimPrefix(path, "secret/"), "/")
		s.kv(out, r, what, rest, body)
	default:
		refuse(out, http.StatusNotFound, fmt.Sprintf("no handler for route %q", path))
	}
}

func refuse(w http.ResponseWriter, status int, texts ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, texts...)})
}

func answer(w http.ResponseWriter, data any) {
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func (s *Server) kv(w http.ResponseWriter, r *http.Request, what, path string, body map[string]any) {
	found := s.secrets[path]
	switch {
	case what == "metadata" && r.URL.Query().Get("list") == "true":
		s.list(w, path)
	case what == "metadata" && r.Method == http.MethodGet && found != nil:
		versions := map[string]any{}
		for i, v := range found.versions {
			versions[fmt.Sprint(i+1)] = v.describe()
		}
		answer(w, map[string]any{"current_version": len(found.versions), "custom_metadata": found.custom, "versions": versions})
	case what == "metadata" && r.Method == http.MethodPut && found != nil:
		found.custom = map[string]string{}
		custom, _ := body["custom_metadata"].(map[string]any)
		for name, text := range custom {
			found.custom[name] = fmt.Sprint(text)
		}
		w.WriteHeader(http.StatusNoContent)
	case what == "metadata" && r.Method == http.MethodDelete:
		delete(s.secrets, path)
		w.WriteHeader(http.StatusNoContent)
	case what == "data" && r.Method == http.MethodGet && found != nil:
		s.reads[path]++
		found.read(w)
	case what == "data" && r.Method == http.MethodPut:
		s.write(w, path, body)
	case what == "destroy" && found != nil:
		list, _ := body["versions"].([]any)
		for _, n := range list {
			if i, is := n.(float64); is && int(i) >= 1 && int(i) <= len(found.versions) {
				found.versions[int(i)-1].data = nil
			}
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusNotFound)
	}
}

func (s *Server) list(w http.ResponseWriter, path string) {
	names := map[string]bool{}
	for p := range s.secrets {
		if rest, is := strings.CutPrefix(p, strings.TrimSuffix(path, "/")+"/"); is {
			name, _, isFolder := strings.Cut(rest, "/")
			if isFolder {
				name += "/"
			}
			names[name] = true
		}
	}
	if len(names) == 0 {
		refuse(w, http.StatusNotFound)
		return
	}
	answer(w, map[string]any{"keys": slices.Sorted(maps.Keys(names))})
}

func (v *version) describe() map[string]any {
	deletion := ""
	if v.isDeleted {
		deletion = v.created.Format(time.RFC3339Nano)
	}
	return map[string]any{"created_time": v.created, "deletion_time": deletion, "destroyed": v.data == nil}
}

func (s *secret) read(w http.ResponseWriter) {
	v := &s.versions[len(s.versions)-1]
	metadata := v.describe()
	metadata["version"], metadata["custom_metadata"] = len(s.versions), s.custom
	if v.isDeleted || v.data == nil {
		w.WriteHeader(http.StatusNotFound)
		answer(w, map[string]any{"data": nil, "metadata": metadata})
		return
	}
	answer(w, map[string]any{"data": v.data, "metadata": metadata})
}

func (s *Server) write(w http.ResponseWriter, path string, body map[string]any) {
	current := 0
	if found := s.secrets[path]; found != nil {
		current = len(found.versions)
	}
	options, _ := body["options"].(map[string]any)
	if cas, is := options["cas"].(float64); is && int(cas) != current {
		refuse(w, http.StatusBadRequest, "check-and-set parameter did not match the current version")
		return
	}
	data, _ := body["data"].(map[string]any)
	s.put(path, data)
	answer(w, map[string]any{"version": current + 1})
}

func (s *Server) put(path string, data map[string]any) {
	found := s.secrets[path]
	if found == nil {
		found = &secret{}
		s.secrets[path] = found
	}
	found.versions = append(found.versions, version{data: data, created: time.Now()})
}

// Delete deletes the current version of a secret, as vault kv delete does.
func (s *Server) Delete(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.secrets[path]; found != nil {
		found.versions[len(found.versions)-1].isDeleted = true
	}
}
