package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/cmd/internal/secrets/acme/fakeacme"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zone is a DNS that shows at once what is published.
type zone struct {
	mu      sync.Mutex
	records map[string]string
	seen    int
	removed func() // unless nil, called when a record is removed
}

func (z *zone) Publish(_ context.Context, name, value string) (func() error, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[name] = value
	z.seen++
	return func() error {
		z.mu.Lock()
		defer z.mu.Unlock()
		delete(z.records, name)
		if z.removed != nil {
			z.removed()
		}
		return nil
	}, nil
}

func (z *zone) get(name string) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.records[name]
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func start(t *testing.T) (*fakeacme.Server, *zone, *Client) {
	t.Helper()
	s, z := fakeacme.New(t), &zone{records: map[string]string{}}
	s.Look = z.get
	c, err := New(Options{Directory: s.URL, CAFile: s.CAFile, Key: newKey(t), DNS: z, Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return s, z, c
}

// TestFaults: what an authority may say or do, and what of it the admin reads.
func TestFaults(t *testing.T) {
	day := 24 * time.Hour
	at := func(step string, p *fakeacme.Problem) func(string, int) *fakeacme.Problem {
		return func(is string, n int) *fakeacme.Problem {
			if is == step && n == 1 {
				return p
			}
			return nil
		}
	}
	limited := func(after string) *fakeacme.Problem {
		return &fakeacme.Problem{Status: 429, Type: "rateLimited", Detail: "too many certificates", RetryAfter: after}
	}
	for name, test := range map[string]struct {
		set    func(s *fakeacme.Server, c *Client) // c.o.DNS is a zone
		want   []string                            // of the error; nil: there is none
		counts map[string]int                      // how often a step is asked for
	}{
		"a nonce is refused once": {set: func(s *fakeacme.Server, _ *Client) {
			s.Fault = func(_ string, n int) *fakeacme.Problem {
				if n == 1 {
					return &fakeacme.Problem{Status: 400, Type: "badNonce", Detail: "old"}
				}
				return nil
			}
		}},
		"nonces are always refused": {set: func(s *fakeacme.Server, _ *Client) {
			s.Fault = func(string, int) *fakeacme.Problem {
				return &fakeacme.Problem{Status: 400, Type: "badNonce", Detail: "old"}
			}
		}, want: []string{"find the account", "400 badNonce: old", "again"}, counts: map[string]int{"account": maxTries + 1}},
		"a limit": {set: func(s *fakeacme.Server, _ *Client) { s.Fault = at("order", limited("7200")) },
			want: []string{"order a certificate for relay.example.com", "too many certificates", "try again after 2"}, counts: map[string]int{"order": 1}},
		"a limit without a time": {set: func(s *fakeacme.Server, _ *Client) { s.Fault = at("order", limited("")) },
			want: []string{"rateLimited", "try again in some hours"}, counts: map[string]int{"order": 1}},
		"a moment's limit": {set: func(s *fakeacme.Server, _ *Client) { s.Fault = at("order", limited("1")) }, counts: map[string]int{"order": 2}},
		"trouble that passes": {set: func(s *fakeacme.Server, _ *Client) {
			s.Fault = at("finalize", &fakeacme.Problem{Status: 503, Type: "serverInternal", Detail: "busy", RetryAfter: "1"})
		}, counts: map[string]int{"finalize": 2}},
		"a name that it refuses": {set: func(s *fakeacme.Server, _ *Client) {
			s.Fault = at("order", &fakeacme.Problem{Status: 400, Type: "rejectedIdentifier", Detail: "relay.example.com is forbidden"})
		}, want: []string{"relay.example.com is forbidden", "leave it out"}},
		"it takes a while": {set: func(s *fakeacme.Server, _ *Client) { s.Processing = 2 }},
		"it takes too long": {set: func(s *fakeacme.Server, c *Client) {
			s.Processing = 1 << 30
			c.o.DNS.(*zone).removed = func() { c.o.Patience = time.Second } // what was before is no matter of this machine's speed
		},
			want: []string{"have the certificate for relay.example.com issued", "not done it within 1s"}},
		"it does not see the record": {set: func(s *fakeacme.Server, _ *Client) { s.Look = func(string) string { return "" } },
			want: []string{"prove relay.example.com", "403 unauthorized: no TXT record [2J for relay.example.com", "see that name servers show everybody the same"}},
		"a name that was not ordered":  {set: func(s *fakeacme.Server, _ *Client) { s.AsksFor = "other.example.com" }, want: []string{"other.example.com proved, which was not ordered"}},
		"a chain that leads elsewhere": {set: func(s *fakeacme.Server, _ *Client) { s.Stranger = true }, want: []string{"has a chain in which", "is not issued by"}},
		"another key":                  {set: func(s *fakeacme.Server, _ *Client) { s.Key = newKey(t).Public() }, want: []string{"another key than ours", "nothing is done with it"}},
		"another name": {set: func(s *fakeacme.Server, _ *Client) {
			s.Template = func(c *x509.Certificate) { c.DNSNames = []string{"other.example.com"} }
		}, want: []string{"is not for relay.example.com, but for other.example.com"}},
		"it has ended": {set: func(s *fakeacme.Server, _ *Client) {
			s.Template = func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day) }
		}, want: []string{"has ended at", "by the clock of this machine"}},
		"it has not begun": {set: func(s *fakeacme.Server, _ *Client) {
			s.Template = func(c *x509.Certificate) { c.NotBefore = time.Now().Add(day) }
		}, want: []string{"yet to come by the clock of this machine"}},
		"it is not for servers": {set: func(s *fakeacme.Server, _ *Client) {
			s.Template = func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
		}, want: []string{"not for servers"}},
		"answers without an end": {set: func(s *fakeacme.Server, _ *Client) {
			s.Fault = at("order", &fakeacme.Problem{Status: 400, Type: "malformed", Detail: strings.Repeat("x", 2*maxBody)})
		}, want: []string{"order a certificate", "400"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, z, c := start(t)
			test.set(s, c)
			err := c.Login(t.Context(), Account{AcceptTerms: true})
			if err == nil {
				_, err = c.Issue(t.Context(), []string{"relay.example.com"})
			}
			if (err == nil) != (test.want == nil) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			for _, words := range test.want {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("got %q, want %q in it", err, words)
				}
			}
			if err != nil && (len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n")) {
				t.Errorf("the error is not for a terminal: %d octets", len(err.Error()))
			}
			for step, want := range test.counts {
				if got := s.Count(step); got != want {
					t.Errorf("%s was asked for %d times, want %d", step, got, want)
				}
			}
			if len(z.records) > 0 {
				t.Errorf("left in the DNS: %v", z.records)
			}
		})
	}
}

// TestLimitTellsWhen: a time of this machine, from Retry-After in either form.
func TestLimitTellsWhen(t *testing.T) {
	in := 2 * time.Hour
	for _, after := range []string{"7200", time.Now().Add(in).UTC().Format(http.TimeFormat)} {
		s, _, c := start(t)
		s.Fault = func(string, int) *fakeacme.Problem {
			return &fakeacme.Problem{Status: 429, Type: "rateLimited", Detail: "slowly", RetryAfter: after}
		}
		err := c.Login(t.Context(), Account{AcceptTerms: true})
		if err == nil {
			t.Fatal("got no error")
		}
		_, text, _ := strings.Cut(err.Error(), "try again after ")
		text, _, _ = strings.Cut(text, ";")
		at, parseErr := time.ParseInLocation(time.DateTime, text, time.Local)
		if parseErr != nil || (time.Until(at)-in).Abs() > time.Minute {
			t.Errorf("%q: got %v, %v from %q", after, at, parseErr, err)
		}
	}
}

// TestInterrupted: the record is removed, and the next time all goes well, with the same account.
func TestInterrupted(t *testing.T) {
	s, z, c := start(t)
	if err := c.Login(t.Context(), Account{}); err == nil || !strings.Contains(err.Error(), "read "+fakeacme.Terms+", then give --accept-terms") {
		t.Fatalf("got %v without the terms agreed to", err)
	}
	if err := c.Login(t.Context(), Account{AcceptTerms: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.Look = func(name string) string { cancel(); return z.get(name) }
	if _, err := c.Issue(ctx, []string{"relay.example.com"}); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Fatalf("got %v when interrupted", err)
	}
	if len(z.records) > 0 || z.seen != 1 {
		t.Errorf("left in the DNS: %v", z.records)
	}
	if err := c.Login(t.Context(), Account{}); err != nil { // it is known
		t.Fatal(err)
	}
	pair, err := c.Issue(t.Context(), []string{"relay.example.com", "*.relay.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.VerifyHostname("a.relay.example.com"); err != nil || len(pair.Chain) != 2 {
		t.Errorf("got %v and a chain of %d", err, len(pair.Chain))
	}
}

// TestPlaces: nobody is spoken to whom nothing proves.
func TestPlaces(t *testing.T) {
	s, z, c := start(t)
	if _, err := New(Options{Directory: "http://authority.example/dir"}); err == nil {
		t.Error("a directory without TLS is taken")
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://authority.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.http.Do(r); err == nil || !strings.Contains(err.Error(), "not https") {
		t.Errorf("got %v for a URL without TLS", err)
	}
	bare, err := New(Options{Directory: s.URL, Key: newKey(t), DNS: z})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if _, err := bare.Terms(t.Context()); err == nil || !strings.Contains(err.Error(), "give its root with --ca FILE") {
		t.Errorf("got %v for a root that nobody knows", err)
	}
}

// TestAnswersAreBounded: nobody fills the memory.
func TestAnswersAreBounded(t *testing.T) {
	s, _, c := start(t)
	s.Fault = func(string, int) *fakeacme.Problem {
		return &fakeacme.Problem{Status: 400, Type: "malformed", Detail: strings.Repeat("x", 2*maxBody)}
	}
	res, err := c.http.Post(strings.TrimSuffix(s.URL, "dir")+"order", "application/jose+json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil || !strings.Contains(err.Error(), "larger than 1048576 octets") || len(text) != maxBody {
		t.Errorf("got %d octets, %v", len(text), err)
	}
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "x": 0, "5": 5 * time.Second, "-5": -5 * time.Second, "99999999999": 24 * time.Hour,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour,
	} {
		got := retryAfter(http.Header{"Retry-After": {text}})
		if (got - want).Abs() > 2*time.Second {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}
