package account

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNewOptions(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("an authenticator without a source was made")
	}
	if _, err := New(Options{Source: newBook(t), Mechanisms: []string{"CRAM-MD5"}}); err == nil || !strings.Contains(err.Error(), "CRAM-MD5") {
		t.Errorf("got %v, want that there is no such mechanism", err)
	}
}

func TestMechanisms(t *testing.T) {
	server, _ := tlsPair(t, tls.VersionTLS13, nil)
	older, _ := tlsPair(t, tls.VersionTLS12, nil)
	certified, _ := tlsPair(t, tls.VersionTLS13, newAuthority(t).certify(t, "web1.example.com"))
	tests := []struct {
		name string
		tls  *tls.ConnectionState
		only []string
		want string
	}{
		{"clear", nil, nil, "SCRAM-SHA-256 PLAIN LOGIN"},
		{"TLS 1.3", server, nil, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{"TLS 1.2", older, nil, "SCRAM-SHA-256 PLAIN LOGIN"},
		{"client certificate", certified, nil, "EXTERNAL SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{"restricted", certified, []string{Plain, External}, "EXTERNAL PLAIN"},
	}
	for _, tt := range tests {
		a := newAuth(t, newBook(t), func(o *Options) { o.Mechanisms = tt.only })
		peer := Peer{Addr: netip.MustParseAddr("192.0.2.1"), TLS: tt.tls}
		if diff := cmp.Diff(tt.want, strings.Join(a.Mechanisms(peer), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		for _, m := range append(AllMechanisms(), "CRAM-MD5", "") {
			_, err := a.Begin(strings.ToLower(m), peer)
			if want := slices.Contains(strings.Fields(tt.want), m); (err == nil) != want || err != nil && !errors.Is(err, ErrMechanism) {
				t.Errorf("%s: begin %s: got %v", tt.name, m, err)
			}
		}
	}
}

// TestConversations are PLAIN and LOGIN as clients speak them: what they say, a
// blank between; "-" is no response, "." an empty one. The answers are the
// challenges, and how it ended.
func TestConversations(t *testing.T) {
	long := strings.Repeat("x", 9300)
	tests := []struct{ mechanism, says, want string }{
		{Plain, "\x00web1\x00" + goodPassword, "ok"},
		{Plain, "-|\x00web1\x00" + goodPassword, "<>|ok"},
		{Plain, "web1\x00web1\x00" + goodPassword, "ok"},
		{Plain, "\x00WEB1\x00" + goodPassword, "ok"},
		{Plain, "Web1\x00WEB1\x00" + goodPassword, "ok"},
		{Plain, "other\x00web1\x00" + goodPassword, "refused: asks to act for another account"},
		{Plain, "\x00web1\x00" + wrongPassword, "refused: wrong password"},
		{Plain, "\x00web1\x00", "refused: the password is none: it is empty"},
		{Plain, "\x00web1\x00\xc2\xad", "refused: the password is none"},
		{Plain, "\x00web1\x00" + strings.Repeat("x", 1025), "refused: the password is none: it is longer"},
		{Plain, "\x00nobody\x00" + goodPassword, "refused: there is no such account"},
		{Plain, "\x00../web1\x00" + goodPassword, "refused: there is no such account"},
		{Plain, "\x00disabled\x00" + goodPassword, "disabled: "},
		{Plain, "\x00inside\x00" + goodPassword, "network: "},
		{Plain, "\x00bare\x00" + goodPassword, "refused: the account has no password that is good now"},
		{Plain, ".", "malformed: want two NUL octets, got 0"},
		{Plain, "web1\x00" + goodPassword, "malformed: want two NUL octets, got 1"},
		{Plain, "\x00web1\x00" + goodPassword + "\x00", "malformed: want two NUL octets, got 3"},
		{Plain, "\x00\x00" + goodPassword, "malformed: no name"},
		{Plain, "\x00web1\xff\x00" + goodPassword, "malformed: not UTF-8"},
		{Plain, long, "malformed: 9300 octets"},
		{Plain, "\x00web1\x00" + goodPassword + "|.", "ok|malformed: this login has ended"},
		{Login, "-|web1|" + goodPassword, "<Username:>|<Password:>|ok"},
		{Login, "web1|" + goodPassword, "<Password:>|ok"},
		{Login, "web1|" + wrongPassword, "<Password:>|refused: wrong password"},
		{Login, "nobody|" + goodPassword, "<Password:>|refused: there is no such account"},
		{Login, "web1|.", "<Password:>|refused: the password is none: it is empty"},
		{Login, ".", "malformed: no name"},
		{Login, "web1|a\x00b", "<Password:>|malformed: not UTF-8"},
		{Login, "web\xff|x", "<Password:>|malformed: not UTF-8"},
		{Login, "web1|" + long, "<Password:>|malformed: 9300 octets"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t)
			b.change("bare", func(*Client) {})
			x, err := newAuth(t, b, nil).Begin(tt.mechanism, from("192.0.2.1"))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for says := range strings.SplitSeq(tt.says, "|") {
				response := []byte(says)
				switch says {
				case "-":
					response = nil
				case ".":
					response = []byte{}
				}
				challenge, done, err := x.Next(t.Context(), response)
				switch {
				case err != nil:
					_, text, _ := strings.Cut(err.Error(), ": ")
					got = append(got, result(err)+": "+text)
				case done:
					got = append(got, "ok")
				default:
					got = append(got, "<"+string(challenge)+">")
				}
				if done && x.Client() == nil || x.Client() != nil && !strings.Contains(strings.Join(got, "|"), "ok") {
					t.Errorf("%s %q: got client %v", tt.mechanism, tt.says, x.Client())
				}
			}
			all := strings.Join(got, "|")
			if all != tt.want && !(strings.Contains(tt.want, ":") && strings.HasPrefix(all, tt.want)) {
				t.Errorf("%s %q: got %q, want %q", tt.mechanism, brief(tt.says), all, tt.want)
			}
		})
	}
}

// TestVerifier tells which password was used.
func TestVerifier(t *testing.T) {
	b := newBook(t)
	b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
	a := newAuth(t, b, nil)
	c, err := b.Latest(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]struct {
		id       string
		isNewest bool
	}{
		"another horse": {c.Passwords[0].ID, true},
		goodPassword:    {c.Passwords[1].ID, false},
	} {
		for range 2 { // by hash, and proven
			x, err := a.Begin(Plain, from("192.0.2.1"))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err = x.Next(t.Context(), []byte("\x00web1\x00"+password)); err != nil {
				t.Fatal(err)
			}
			if id, isNewest := x.Verifier(); id != want.id || isNewest != want.isNewest {
				t.Errorf("%s: got %s, %t, want %v", password, id, isNewest, want)
			}
		}
	}
}

// TestUnavailable: when nothing is known, nothing is refused, and nobody is
// blamed.
func TestUnavailable(t *testing.T) {
	for _, cause := range []error{fmt.Errorf("disk on fire: %w", ErrUnavailable), errors.New("a fault without a name")} {
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t)
			a := newAuth(t, b, nil)
			b.fail(cause)
			for range 100 {
				if took := mustRefuse(t, a, from("192.0.2.1"), "web1", goodPassword, ErrUnavailable); took > 0 {
					t.Fatalf("took %v, want an answer at once", took)
				}
			}
			b.fail(nil)
			mustLogIn(t, a, from("192.0.2.1"), "web1", goodPassword)
		})
	}
}

// TestProven: right credentials cost one hash, and whatever makes them wrong
// takes effect at once.
func TestProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, nil)
		peer := from("10.0.0.1")
		for range 100 {
			mustLogIn(t, a, peer, "web1", goodPassword)
			mustLogIn(t, a, from("10.0.0.2"), "WEB1", goodPassword)
		}
		mustHaveHashed(t, a, 1)

		// Another field of the record, and a second password, change nothing.
		b.change("web1", func(c *Client) { c.Class = "host" })
		b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
		mustLogIn(t, a, peer, "web1", goodPassword)
		mustHaveHashed(t, a, 1)
		mustLogIn(t, a, peer, "web1", "another horse")
		mustHaveHashed(t, a, 2)

		b.change("web1", func(c *Client) { c.Disabled = true })
		mustRefuse(t, a, peer, "web1", goodPassword, ErrDisabled)
		b.change("web1", func(c *Client) { c.Disabled = false })
		mustLogIn(t, a, peer, "web1", goodPassword)

		b.change("web1", func(c *Client) { c.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")} })
		mustRefuse(t, a, peer, "web1", goodPassword, ErrNetwork)
		mustLogIn(t, a, from("10.0.0.2"), "web1", goodPassword)
		b.change("web1", func(c *Client) { c.Networks = nil })

		// The end of the grace, to the second.
		for range 59 {
			time.Sleep(time.Minute)
			mustLogIn(t, a, peer, "web1", "another horse")
		}
		c, err := b.Latest(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		end := c.Passwords[1].NotAfter
		time.Sleep(time.Until(end) - time.Nanosecond)
		mustLogIn(t, a, peer, "web1", goodPassword)
		time.Sleep(time.Nanosecond)
		mustRefuse(t, a, peer, "web1", goodPassword, ErrCredentials)
		mustLogIn(t, a, peer, "web1", "another horse")

		// Another verifier for the same password is another password.
		before := count(t, a.metrics.hashes)
		b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, 0) })
		mustLogIn(t, a, peer, "web1", "another horse")
		mustHaveHashed(t, a, before+1)

		// What nobody used for long is forgotten.
		time.Sleep(59 * time.Minute)
		mustLogIn(t, a, peer, "web1", "another horse")
		time.Sleep(59 * time.Minute)
		mustLogIn(t, a, peer, "web1", "another horse")
		mustHaveHashed(t, a, before+1)
		time.Sleep(61 * time.Minute)
		mustLogIn(t, a, peer, "web1", "another horse")
		mustHaveHashed(t, a, before+2)

		b.change("web1", func(c *Client) { c.Passwords = nil })
		mustRefuse(t, a, peer, "web1", "another horse", ErrCredentials)
	})
}

// TestNewPasswordIsGoodAtOnce: the source shows old records for a while, but
// nobody is refused by one.
func TestNewPasswordIsGoodAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, nil)
		b.lag()
		b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, 0) })
		mustLogIn(t, a, from("192.0.2.1"), "web1", "another horse")
		b.change("new", func(c *Client) { b.set(t, c, goodPassword, Generated, 0) })
		mustLogIn(t, a, from("192.0.2.1"), "new", goodPassword)
		b.change("disabled", func(c *Client) { c.Disabled = false })
		mustLogIn(t, a, from("192.0.2.1"), "disabled", goodPassword)
		b.change("inside", func(c *Client) { c.Networks = nil })
		mustLogIn(t, a, from("192.0.2.1"), "inside", goodPassword)
	})
}

// TestPasswordsOfPeople go by argon2id, also beside one that goes by SCRAM.
func TestPasswordsOfPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		b.change("web1", func(c *Client) { b.set(t, c, "Grüße aus Köln", Chosen, time.Hour) })
		a := newAuth(t, b, nil)
		peer := from("192.0.2.1")
		for range 2 {
			mustLogIn(t, a, peer, "web1", "Grüße aus Köln")
			mustLogIn(t, a, peer, "web1", goodPassword)
			mustLogIn(t, a, peer, "web1", "Grüße aus Ko\u0308ln") // NFKC makes one of the two
		}
		mustHaveHashed(t, a, 2)
	})
}

// TestRefusalsTakeTheSameTime, whatever is wrong, and whatever had to be hashed.
func TestRefusalsTakeTheSameTime(t *testing.T) {
	for name, want := range map[string]error{"web1": ErrCredentials, "nobody": ErrCredentials, "disabled": ErrDisabled, "inside": ErrNetwork, "no/name": ErrCredentials, "person": ErrCredentials} {
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t)
			b.change("person", func(c *Client) { b.set(t, c, goodPassword, Chosen, 0) })
			a := newAuth(t, b, nil)
			var took []time.Duration
			for i := range 6 {
				took = append(took, mustRefuse(t, a, from("192.0.2.1"), name, fmt.Sprint("wrong", i), want))
				time.Sleep(time.Minute)
			}
			if slices.ContainsFunc(took, func(d time.Duration) bool { return d != time.Second }) {
				t.Errorf("%s: took %v, want 1s each", name, took)
			}
			mustHaveHashed(t, a, 6)
		})
	}
}

// TestRefusalEndsWithContext, so that nothing waits for a client that is gone.
func TestRefusalEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, newBook(t), nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := logIn(ctx, a, from("192.0.2.1"), "web1", wrongPassword)
		if took := time.Since(began); !errors.Is(err, ErrCredentials) || took != 100*time.Millisecond {
			t.Errorf("got %v after %v, want %v after 100ms", err, took, ErrCredentials)
		}
	})
}

// TestCurrent follows a client that stays connected.
func TestCurrent(t *testing.T) {
	b := newBook(t)
	a := newAuth(t, b, nil)
	addr := netip.MustParseAddr("192.0.2.1")
	c, err := logIn(t.Context(), a, from("192.0.2.1"), "web1", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		change func()
		class  string // of what Current returns
		want   error
	}{
		{"as it was", func() {}, "", nil},
		{"changed", func() { b.change("web1", func(c *Client) { c.Class = "host" }) }, "host", nil},
		{"out of reach", func() { b.fail(ErrUnavailable) }, "", nil},
		{"in reach again", func() { b.fail(nil) }, "host", nil},
		{"disabled", func() { b.change("web1", func(c *Client) { c.Disabled = true }) }, "host", ErrDisabled},
		{"elsewhere", func() {
			b.change("web1", func(c *Client) {
				c.Disabled, c.Networks = false, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			})
		}, "host", ErrNetwork},
		{"gone", func() { delete(b.clients, "web1") }, "", ErrCredentials},
	} {
		step.change()
		now, err := a.Current(t.Context(), c, addr)
		if !errors.Is(err, step.want) || now != nil && now.Class != step.class {
			t.Errorf("%s: got %+v, %v, want class %q, %v", step.name, now, err, step.class, step.want)
		}
	}
}

// TestMetrics counts each end of a login once.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, nil)
		peer := from("192.0.2.1")
		mustLogIn(t, a, peer, "web1", goodPassword)
		mustLogIn(t, a, peer, "web1", goodPassword)
		mustRefuse(t, a, peer, "web1", wrongPassword, ErrCredentials)
		mustRefuse(t, a, peer, "disabled", wrongPassword, ErrDisabled)
		mustRefuse(t, a, peer, "inside", wrongPassword, ErrNetwork)
		mustRefuse(t, a, peer, "", wrongPassword, ErrMalformed)
		b.fail(ErrUnavailable)
		mustRefuse(t, a, peer, "web1", wrongPassword, ErrUnavailable)
		if _, err := a.Begin("X", peer); err == nil {
			t.Error("mechanism X was begun")
		}
		want := map[string]int{"accepted": 2, "refused": 1, "disabled": 1, "network": 1, "malformed": 1, "unavailable": 1, "throttled": 0}
		got := make(map[string]int)
		for label := range maps.Keys(want) {
			got[label] = count(t, a.metrics.logins.WithLabelValues(Plain, label))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got := count(t, a.metrics.proven); got != 1 {
			t.Errorf("got %d proven, want 1", got)
		}
		if got := count(t, a.metrics.logins.WithLabelValues("other", "mechanism")); got != 1 {
			t.Errorf("got %d unknown mechanisms, want 1", got)
		}
	})
}
