package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// Login proves to Vault who we are: *AppRole, *Kubernetes, *Certificate or
// *TokenFile. One belongs to one Client, which does one login at a time.
type Login interface {
	// check says what is missing; it looks at no file.
	check() error
	// login gets a token. What it reads of files, it reads each time.
	login(ctx context.Context, c *Client) (grant, error)
	// changed tells that a login now would give another token for good.
	changed() bool
}

var _, _, _, _ Login = (*AppRole)(nil), (*Kubernetes)(nil), (*Certificate)(nil), (*TokenFile)(nil)

// AppRole logs in with a role id and a secret id.
type AppRole struct {
	RoleID string // required
	// SecretIDFile holds the secret id, with mode 0600. Required, unless the role
	// needs none (bind_secret_id=false).
	SecretIDFile string
	// Wrapped says that the file holds a token that the secret id is wrapped in
	// (vault write -wrap-ttl=…). It can be unwrapped once: the secret id stays in
	// memory, and a new start needs a new file.
	Wrapped bool
	Mount   string // default: approle

	wrapping, secret string // what was unwrapped, and what was in it
}

func (a *AppRole) check() error {
	if a.RoleID == "" {
		return errors.New("no role id given")
	}
	if a.Wrapped && a.SecretIDFile == "" {
		return errors.New("a wrapped secret id needs a file")
	}
	return nil
}

func (a *AppRole) changed() bool { return false }

func (a *AppRole) login(ctx context.Context, c *Client) (grant, error) {
	body := map[string]any{"role_id": a.RoleID}
	if a.SecretIDFile != "" {
		secret, err := readSecret(a.SecretIDFile, 0o600)
		if err == nil && a.Wrapped {
			secret, err = a.unwrap(ctx, c, secret)
		}
		if err != nil {
			return grant{}, fmt.Errorf("log in by AppRole: %w", err)
		}
		body["secret_id"] = secret
	}
	return c.logIn(ctx, a.Mount, "approle", body)
}

func (a *AppRole) unwrap(ctx context.Context, c *Client, wrapping string) (string, error) {
	if wrapping == a.wrapping {
		return a.secret, nil
	}
	const path = "sys/wrapping/unwrap"
	bearer := c.anonymous.WithRequestCallbacks(func(r *api.Request) { r.ClientToken = wrapping })
	got, err := c.send(ctx, bearer, call{method: http.MethodPut, path: path, body: map[string]any{}})
	if err != nil {
		err = explain(ctx, "unwrap secret id by", path, err)
		if errors.Is(err, ErrUnavailable) {
			return "", err
		}
		return "", fmt.Errorf("%w; the token in %s is too old or somebody else has used it: find out who, and put a new one there", err, a.SecretIDFile)
	}
	var data struct {
		SecretID string `json:"secret_id"`
	}
	if err := decode(got.Data, &data); err != nil || data.SecretID == "" {
		return "", fmt.Errorf("unwrap secret id: what is wrapped in %s is no secret id: wrap the answer of role/…/secret-id", a.SecretIDFile)
	}
	a.wrapping, a.secret = wrapping, data.SecretID
	return a.secret, nil
}

// Kubernetes logs in with the token of the pod's service account.
type Kubernetes struct {
	Role      string // required
	TokenFile string // default: where Kubernetes puts it
	Mount     string // default: kubernetes
}

const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

func (k *Kubernetes) check() error {
	if k.Role == "" {
		return errors.New("no role given")
	}
	return nil
}

func (k *Kubernetes) changed() bool { return false }

func (k *Kubernetes) login(ctx context.Context, c *Client) (grant, error) {
	file := k.TokenFile
	if file == "" {
		file = serviceAccountToken
	}
	token, err := readSecret(file, 0o777) // Kubernetes chooses the mode
	if err != nil {
		return grant{}, fmt.Errorf("log in by Kubernetes: %w", err)
	}
	return c.logIn(ctx, k.Mount, "kubernetes", map[string]any{"role": k.Role, "jwt": token})
}

// Certificate logs in with a TLS client certificate.
type Certificate struct {
	CertFile string // PEM, with the chain. Required
	KeyFile  string // PEM, mode 0600 or 0640. Required
	Role     string // default: any that the certificate is good for
	Mount    string // default: cert
}

func (l *Certificate) check() error {
	if l.CertFile == "" || l.KeyFile == "" {
		return errors.New("a certificate needs a file and that of its key")
	}
	return nil
}

func (l *Certificate) changed() bool { return false }

// present reads the files at each handshake: certificates are renewed.
func (l *Certificate) present(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	key, err := readSecret(l.KeyFile, 0o640)
	if err != nil {
		return nil, err
	}
	chain, err := os.ReadFile(l.CertFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, []byte(key))
	if err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", l.CertFile, l.KeyFile, err)
	}
	return &pair, nil
}

func (l *Certificate) login(ctx context.Context, c *Client) (grant, error) {
	if _, err := l.present(nil); err != nil {
		return grant{}, fmt.Errorf("log in by certificate: %w", err)
	}
	c.transport.CloseIdleConnections() // they bear the certificate of their time
	body := map[string]any{}
	if l.Role != "" {
		body["name"] = l.Role
	}
	return c.logIn(ctx, l.Mount, "cert", body)
}

// TokenFile takes the token that somebody else, mostly Vault Agent, keeps in a
// file. A file that changes is read again within 5 s.
type TokenFile struct {
	Path string // mode 0600 or 0640. Required

	mu   sync.Mutex
	read stamp // of the file whose token is in use
}

// stamp tells whether a file has changed.
type stamp struct {
	size     int64
	modified time.Time
}

func (f *TokenFile) check() error {
	if f.Path == "" {
		return errors.New("no token file given")
	}
	return nil
}

func (f *TokenFile) changed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stampOf(f.Path)
	return err == nil && now != f.read
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.Size(), info.ModTime()}, nil
}

func (f *TokenFile) login(ctx context.Context, c *Client) (grant, error) {
	const path = "auth/token/lookup-self"
	before, _ := stampOf(f.Path) // readSecret says what is wrong with the file
	token, err := readSecret(f.Path, 0o640)
	if err != nil {
		return grant{}, fmt.Errorf("take token of file: %w", err)
	}
	bearer := c.anonymous.WithRequestCallbacks(func(r *api.Request) { r.ClientToken = token })
	got, err := c.send(ctx, bearer, call{method: http.MethodGet, path: path})
	if err != nil {
		return grant{}, fmt.Errorf("token in %s: %w", f.Path, explain(ctx, "look it up by", path, err))
	}
	var data struct {
		TTL       int64 `json:"ttl"`
		Renewable bool  `json:"renewable"`
	}
	if err := decode(got.Data, &data); err != nil {
		return grant{}, fmt.Errorf("token in %s: %w", f.Path, explain(ctx, "look it up by", path, err))
	}
	f.mu.Lock()
	f.read = before
	f.mu.Unlock()
	return grant{token, time.Duration(data.TTL) * time.Second, data.Renewable, true}, nil
}

// logIn sends a login to an auth method.
func (c *Client) logIn(ctx context.Context, mount, defaultMount string, body map[string]any) (grant, error) {
	if mount = strings.Trim(mount, "/"); mount == "" {
		mount = defaultMount
	}
	path := "auth/" + mount + "/login"
	got, err := c.send(ctx, c.anonymous, call{method: http.MethodPut, path: path, body: body})
	if err == nil && (got.Auth == nil || got.Auth.Token == "" || got.Auth.TTL < 0) {
		err = errNoAnswer
	}
	if err != nil {
		refused, is := errors.AsType[*api.ResponseError](err)
		if is && (refused.StatusCode == http.StatusBadRequest || refused.StatusCode == http.StatusUnauthorized) {
			return grant{}, fmt.Errorf("log in by %s: %w (%s): look at the role, and at what proves it", path, ErrDenied, brief(strings.Join(refused.Errors, "; ")))
		}
		return grant{}, explain(ctx, "log in by", path, err)
	}
	return grant{got.Auth.Token, time.Duration(got.Auth.TTL) * time.Second, got.Auth.Renewable, false}, nil
}

const maxSecretBytes = 64 << 10

// readSecret reads a small file that no more than these permission bits are set
// for.
func readSecret(path string, allowed fs.FileMode) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", path)
	}
	if mode := info.Mode().Perm(); mode&^allowed != 0 && runtime.GOOS != "windows" {
		return "", fmt.Errorf("%s has mode %04o, others could read or change it: chmod 0600, and replace what is in it if others had access", path, mode)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	if text == "" || len(data) > maxSecretBytes {
		return "", fmt.Errorf("%s is empty or larger than %d octets", path, maxSecretBytes)
	}
	return text, nil
}
