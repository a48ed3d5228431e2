package vault

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secretFile writes a file that only its owner can read.
func secretFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	rewrite(t, path, text)
	return path
}

func rewrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// options are those of a client that logs in to a fake by AppRole.
func (f *fake) options(t testing.TB) Options {
	return Options{Address: f.URL, Timeout: 30 * time.Second, Login: &AppRole{RoleID: fakeRole, SecretIDFile: secretFile(t, fakeSecret1)}}
}

// start makes a client and starts it; how the start ended is for the caller.
func start(t testing.TB, o Options) (*Client, error) {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	return c, c.Start(t.Context())
}

func (f *fake) client(t testing.TB) *Client {
	t.Helper()
	c, err := start(t, f.options(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
