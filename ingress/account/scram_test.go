package account

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	library "github.com/xdg-go/scram"
)

// speak lets the library's client log in.
func speak(t *testing.T, a *Authenticator, mechanism string, peer Peer, clientTLS *tls.ConnectionState, name, password, authzid string) (Exchange, error) {
	t.Helper()
	client, err := library.SHA256.NewClient(name, password, authzid)
	if err != nil {
		t.Fatal(err)
	}
	conversation := client.NewConversation()
	if mechanism == SCRAMPlus {
		bound, err := library.NewTLSExporterBinding(clientTLS)
		if err != nil {
			t.Fatal(err)
		}
		conversation = client.NewConversationWithChannelBinding(bound)
	}
	x, err := a.Begin(mechanism, peer)
	if err != nil {
		t.Fatal(err)
	}
	challenge := ""
	for {
		response, err := conversation.Step(challenge)
		if err != nil {
			t.Fatalf("the client gave up: %v", err)
		}
		octets, done, err := x.Next(t.Context(), []byte(response))
		if err != nil {
			return x, err
		}
		if done {
			if !conversation.Valid() {
				t.Error("the client does not know that it was us")
			}
			return x, nil
		}
		challenge = string(octets)
	}
}

// TestSCRAMWithAnotherClient brings the library's client through all that can
// happen to an account with two passwords.
func TestSCRAMWithAnotherClient(t *testing.T) {
	server, client := tlsPair(t, tls.VersionTLS13, nil)
	another, _ := tlsPair(t, tls.VersionTLS13, nil)
	_, otherClient := tlsPair(t, tls.VersionTLS13, nil)
	tests := []struct {
		name, mechanism          string
		peerTLS, clientTLS       *tls.ConnectionState
		user, password, identity string
		want                     error
		text                     string
	}{
		{"newest", SCRAM256, nil, nil, "web1", "another horse", "", nil, ""},
		{"old", SCRAM256, nil, nil, "web1", goodPassword, "", nil, ""},
		{"wrong", SCRAM256, nil, nil, "web1", wrongPassword, "", ErrCredentials, "wrong password"},
		{"name in capitals", SCRAM256, nil, nil, "WEB1", goodPassword, "", nil, ""},
		{"its own name to act for", SCRAM256, nil, nil, "web1", goodPassword, "web1", nil, ""},
		{"another name to act for", SCRAM256, nil, nil, "web1", goodPassword, "web2", ErrMalformed, "act for another"},
		{"unknown", SCRAM256, nil, nil, "nobody", goodPassword, "", ErrCredentials, "no such account"},
		{"a name that is none", SCRAM256, nil, nil, "a=b,c/d", goodPassword, "", ErrCredentials, "no such account"},
		{"disabled", SCRAM256, nil, nil, "disabled", goodPassword, "", ErrDisabled, ""},
		{"network", SCRAM256, nil, nil, "inside", goodPassword, "", ErrNetwork, ""},
		{"argon2id only", SCRAM256, nil, nil, "person", goodPassword, "", ErrCredentials, "no password for SCRAM"},
		{"bound", SCRAMPlus, server, client, "web1", goodPassword, "", nil, ""},
		{"bound, newest", SCRAMPlus, server, client, "web1", "another horse", "", nil, ""},
		{"bound, wrong", SCRAMPlus, server, client, "web1", wrongPassword, "", ErrCredentials, "wrong password"},
		{"bound to a connection with somebody in between", SCRAMPlus, another, otherClient, "web1", goodPassword, "", ErrCredentials, "another channel binding"},
		{"not bound", SCRAM256, server, client, "web1", goodPassword, "", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBook(t)
				b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
				b.change("person", func(c *Client) { b.set(t, c, goodPassword, Chosen, time.Hour) })
				peer := from("192.0.2.1")
				peer.TLS = tt.peerTLS
				began := time.Now()
				x, err := speak(t, newAuth(t, b, nil), tt.mechanism, peer, tt.clientTLS, tt.user, tt.password, tt.identity)
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Fatalf("got %v, want %v with %q", err, tt.want, tt.text)
				}
				took, wait := time.Since(began), firstStep
				switch {
				case errors.Is(err, ErrCredentials):
					wait += time.Second
				case errors.Is(err, ErrMalformed) && took == 0: // in the first message
					wait = 0
				}
				if took != wait {
					t.Errorf("took %v, want %v", took, wait)
				}
				if err != nil {
					return
				}
				c := x.Client()
				id, isNewest := x.Verifier()
				if c == nil || c.Name != "web1" || isNewest != (tt.password == "another horse") || isNewest != (id == c.Passwords[0].ID) {
					t.Errorf("got %v by %s, newest %t", c, id, isNewest)
				}
			})
		})
	}
}

// TestSCRAMEndsWithTheGrace: the old password passes to the second.
func TestSCRAMEndsWithTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
		a := newAuth(t, b, nil)
		old := func() error {
			_, err := speak(t, a, SCRAM256, from("192.0.2.1"), nil, "web1", goodPassword, "")
			return err
		}
		time.Sleep(time.Hour - firstStep - time.Nanosecond)
		if err := old(); err != nil {
			t.Errorf("before the end: got %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := old(); !errors.Is(err, ErrCredentials) {
			t.Errorf("at the end: got %v, want %v", err, ErrCredentials)
		}
		if _, err := speak(t, a, SCRAM256, from("192.0.2.1"), nil, "web1", "another horse", ""); err != nil {
			t.Errorf("the new one: got %v", err)
		}
	})
}

// TestSCRAMSeesTheLatestSalt although the source shows an old record.
func TestSCRAMSeesTheLatestSalt(t *testing.T) {
	b := newBook(t)
	a := newAuth(t, b, nil)
	b.lag()
	b.change("web1", func(c *Client) { b.set(t, c, "another horse", ChosenSCRAM, 0) })
	if _, err := speak(t, a, SCRAM256, from("192.0.2.1"), nil, "web1", "another horse", ""); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestSCRAMTellsNobodyWhoIsThere: the first answer for unknown names looks like
// that for known ones, and stays the same.
func TestSCRAMTellsNobodyWhoIsThere(t *testing.T) {
	b := newBook(t)
	b.change("person", func(c *Client) { b.set(t, c, goodPassword, Chosen, 0) })
	key := func(o *Options) { o.SaltKey = []byte("the same in both processes") }
	one, two := newAuth(t, b, key), newAuth(t, b, key)
	salts := make(map[string]string)
	for _, name := range []string{"web1", "nobody", "nobody2", "disabled", "inside", "person", "no/name"} {
		for _, a := range []*Authenticator{one, two, one} {
			x, err := a.Begin(SCRAM256, from("192.0.2.1"))
			if err != nil {
				t.Fatal(err)
			}
			challenge, _, err := x.Next(t.Context(), []byte("n,,n="+name+",r=abc"))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			fields := strings.Split(string(challenge), ",")
			if len(fields) != 3 || !strings.HasPrefix(fields[0], "r=abc") || len(decode(t, fields[1][2:])) != saltOctets || fields[2] != "i="+strconv.Itoa(GeneratedIterations) {
				t.Errorf("%s: got %q", name, challenge)
			}
			if salts[name] != "" && salts[name] != fields[1] {
				t.Errorf("%s: got the salts %s and %s", name, salts[name], fields[1])
			}
			salts[name] = fields[1]
		}
	}
	if salts["nobody"] == salts["nobody2"] {
		t.Error("two unknown names have one salt")
	}
}

// TestSCRAMThrottled: who guesses is not told a salt any more; who is known is
// heard.
func TestSCRAMThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, func(o *Options) { o.Forgive = time.Hour })
		known, guessing := from("192.0.2.1"), from("192.0.2.2")
		if _, err := speak(t, a, SCRAM256, known, nil, "web1", goodPassword, ""); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			for _, peer := range []Peer{known, guessing} {
				if _, err := speak(t, a, SCRAM256, peer, nil, "web1", strconv.Itoa(i), ""); !errors.Is(err, ErrCredentials) {
					t.Fatalf("guess %d: got %v", i, err)
				}
			}
		}
		if _, err := speak(t, a, SCRAM256, guessing, nil, "web1", goodPassword, ""); !errors.Is(err, ErrThrottled) {
			t.Errorf("got %v, want %v", err, ErrThrottled)
		}
		if _, err := speak(t, a, SCRAM256, known, nil, "web1", goodPassword, ""); err != nil {
			t.Errorf("got %v", err)
		}
		mustHaveHashed(t, a, 0)
	})
}

// TestSCRAMMalformed has what no client should send.
func TestSCRAMMalformed(t *testing.T) {
	server, _ := tlsPair(t, tls.VersionTLS13, nil)
	const start = "n,,n=web1,r=abc"
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	tests := []struct {
		name, mechanism, first, final string // % is the nonce
		want                          error
		text                          string
	}{
		{"empty", SCRAM256, "", "", ErrMalformed, "no gs2 header"},
		{"PLAIN", SCRAM256, "\x00web1\x00x", "", ErrMalformed, "not UTF-8"},
		{"bad UTF-8", SCRAM256, "n,,n=\xff,r=abc", "", ErrMalformed, "not UTF-8"},
		{"no header", SCRAM256, "n=web1,r=abc", "", ErrMalformed, "no gs2 header"},
		{"unknown flag", SCRAM256, "x,,n=web1,r=abc", "", ErrMalformed, "no gs2 header"},
		{"extension", SCRAM256, "n,,m=x,n=web1,r=abc", "", ErrMalformed, "extension"},
		{"no name", SCRAM256, "n,,n=,r=abc", "", ErrMalformed, "no name"},
		{"bad escape", SCRAM256, "n,,n=a=2c,r=abc", "", ErrMalformed, "not escaped"},
		{"bad escape at the end", SCRAM256, "n,,n=a=,r=abc", "", ErrMalformed, "not escaped"},
		{"bad identity", SCRAM256, "n,web1,n=web1,r=abc", "", ErrMalformed, "no name after a="},
		{"no nonce", SCRAM256, "n,,n=web1", "", ErrMalformed, "no nonce"},
		{"empty nonce", SCRAM256, "n,,n=web1,r=", "", ErrMalformed, "no nonce"},
		{"nonce with a blank", SCRAM256, "n,,n=web1,r=a b", "", ErrMalformed, "no nonce"},
		{"long nonce", SCRAM256, "n,,n=web1,r=" + strings.Repeat("x", 257), "", ErrMalformed, "no nonce"},
		{"binds without PLUS", SCRAM256, "p=tls-exporter,,n=web1,r=abc", "", ErrMalformed, "binds to the channel"},
		{"PLUS without binding", SCRAMPlus, "n,,n=web1,r=abc", "", ErrMalformed, "does not bind"},
		{"PLUS with another kind", SCRAMPlus, "p=tls-unique,,n=web1,r=abc", "", ErrMalformed, `unknown kind of channel binding "tls-unique"`},
		{"downgraded", SCRAM256, "y,,n=web1,r=abc", "", ErrMalformed, "somebody has changed our offer"},
		{"no proof", SCRAM256, start, "c=biws,r=%", ErrMalformed, "no proof"},
		{"proof that is no base64", SCRAM256, start, "c=biws,r=%,p=!", ErrMalformed, "no proof"},
		{"short proof", SCRAM256, start, "c=biws,r=%,p=AAAA", ErrCredentials, "wrong password"},
		{"wrong proof", SCRAM256, start, "c=biws,r=%,p=" + zeros, ErrCredentials, "wrong password"},
		{"extension before the proof", SCRAM256, start, "c=biws,r=%,x=y,p=" + zeros, ErrCredentials, "wrong password"},
		{"no binding", SCRAM256, start, "r=%,c=biws,p=" + zeros, ErrMalformed, "no channel binding"},
		{"other header", SCRAM256, start, "c=eSws,r=%,p=" + zeros, ErrCredentials, "another channel binding"},
		{"other nonce", SCRAM256, start, "c=biws,r=%x,p=" + zeros, ErrMalformed, "another nonce"},
		{"own nonce", SCRAM256, start, "c=biws,r=abc,p=" + zeros, ErrMalformed, "another nonce"},
		{"nothing", SCRAM256, start, "", ErrMalformed, "no proof"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peer := from("192.0.2.1")
				peer.TLS = server
				x, err := newAuth(t, newBook(t), nil).Begin(tt.mechanism, peer)
				if err != nil {
					t.Fatal(err)
				}
				challenge, done, err := x.Next(t.Context(), []byte(tt.first))
				if err == nil && !done {
					nonce, _, _ := strings.Cut(strings.TrimPrefix(string(challenge), "r="), ",")
					_, done, err = x.Next(t.Context(), []byte(strings.ReplaceAll(tt.final, "%", nonce)))
				}
				if done || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || x.Client() != nil {
					t.Errorf("got %t, %v, want %v with %q", done, err, tt.want, tt.text)
				}
			})
		})
	}
}

// TestSCRAMNeedsTheLastResponse: in SMTP the client answers our proof with
// nothing, and nothing else.
func TestSCRAMNeedsTheLastResponse(t *testing.T) {
	a := newAuth(t, newBook(t), nil)
	client, err := library.SHA256.NewClient("web1", goodPassword, "")
	if err != nil {
		t.Fatal(err)
	}
	conversation := client.NewConversation()
	x, err := a.Begin(SCRAM256, from("192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	challenge, _, err := x.Next(t.Context(), nil)
	if err != nil || len(challenge) != 0 {
		t.Fatalf("got %q, %v, want an empty challenge", challenge, err)
	}
	text := ""
	for range 2 {
		if text, err = conversation.Step(text); err != nil {
			t.Fatal(err)
		}
		if challenge, _, err = x.Next(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
		text = string(challenge)
	}
	if x.Client() != nil {
		t.Error("the login is done before its end")
	}
	if _, done, err := x.Next(t.Context(), []byte("more")); done || !errors.Is(err, ErrMalformed) {
		t.Errorf("got %t, %v, want %v", done, err, ErrMalformed)
	}
}

// TestLibraryServer pins why the server's side is our own: the library's takes
// one verifier for a name, so that a client with the other password fails, and
// it says who is unknown.
func TestLibraryServer(t *testing.T) {
	old, err := newSCRAM("old", []byte("0123456789abcdef"), minIterations)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := newSCRAM("new", old.Salt, minIterations)
	if err != nil {
		t.Fatal(err)
	}
	server, err := library.SHA256.NewServer(func(name string) (library.StoredCredentials, error) {
		if name != "web1" {
			return library.StoredCredentials{}, errors.New("unknown")
		}
		return library.StoredCredentials{KeyFactors: library.KeyFactors{Salt: string(fresh.Salt), Iters: fresh.Iterations},
			StoredKey: fresh.StoredKey[:], ServerKey: fresh.ServerKey[:]}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := server.NewConversation().Step("n,,n=nobody,r=abc"); err == nil || text != library.ErrUnknownUser {
		t.Errorf("unknown name: got %q, %v", text, err)
	}
	for password, want := range map[string]bool{"new": true, "old": false} {
		client, err := library.SHA256.NewClient("web1", password, "")
		if err != nil {
			t.Fatal(err)
		}
		c, s := client.NewConversation(), server.NewConversation()
		text := ""
		for !s.Done() {
			if text, err = c.Step(text); err != nil {
				t.Fatal(err)
			}
			text, _ = s.Step(text)
		}
		if s.Valid() != want {
			t.Errorf("password %s: got %t, want %t", password, s.Valid(), want)
		}
	}
}
