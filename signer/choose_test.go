package signer

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue"
	"postroad/signer/keyring"
)

// from is a message of an author in a domain.
func from(domain string) string {
	return strings.Replace(message, "alice@example.com", "alice@"+domain, 1)
}

// signedBy verifies all signatures of a mail and returns d= and a= of each, from the top.
func signedBy(t testing.TB, content string, domains ...string) []string {
	t.Helper()
	var keys []keyring.Key
	for _, d := range domains {
		keys = append(keys, keysFor(d)...)
	}
	verifications, err := verify(content, keys)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	var list []string
	fields := strings.Split(content, "DKIM-Signature:")[1:]
	for i, v := range verifications {
		if v.Err != nil {
			t.Errorf("signature of %s: %v", v.Domain, v.Err)
		}
		_, algorithm, _ := strings.Cut(fields[i], "a=")
		algorithm, _, _ = strings.Cut(algorithm, "-")
		list = append(list, v.Domain+" "+algorithm)
	}
	return list
}

// everyDomain has keys of the author's domains, of the relay and of one above.
func everyDomain() *fakeSource {
	f := &fakeSource{keys: make(map[string][]keyring.Key), errs: make(map[string]error)}
	for _, d := range []string{"example.com", "xn--bcher-kva.example", "relay.example.net", "free.test", "dept.example.net"} {
		f.keys[d] = keysFor(d)
	}
	return f
}

// TestSignedByRules is the way from the rules to signatures that verify.
func TestSignedByRules(t *testing.T) {
	author := func(d string) []string { return []string{d + " rsa", d + " ed25519"} }
	both := func(d string) []string {
		return append(author(d), "relay.example.net rsa", "relay.example.net ed25519")
	}
	tests := []struct {
		name, from, client, class string
		spoil                     func(*fakeSource)
		head                      string // above the message
		want                      []string
		done, reason              string
	}{
		{name: "author alone", from: "example.com", client: "web1", want: author("example.com")},
		{name: "author and relay", from: "xn--bcher-kva.example", client: "shop", want: both("xn--bcher-kva.example")},
		{name: "relay alone for others", from: "xn--bcher-kva.example", client: "web1", want: author("relay.example.net")},
		{name: "others unsigned", from: "example.com", client: "web2"},
		{name: "others held", from: "news.example.com", client: "web1", done: "later", reason: "web1 may not have mail signed by news.example.com"},
		{name: "relay of one organisation does not stand in", from: "dept.example.net", client: "web1"},
		{name: "relay for a key that is missing", from: "xn--bcher-kva.example", client: "shop", want: author("relay.example.net"),
			spoil: func(f *fakeSource) { delete(f.keys, "xn--bcher-kva.example") }},
		{name: "neither key", from: "xn--bcher-kva.example", client: "shop", done: "later",
			reason: "no DKIM key for xn--bcher-kva.example, and no DKIM key for relay.example.net",
			spoil:  func(f *fakeSource) { delete(f.keys, "xn--bcher-kva.example"); delete(f.keys, "relay.example.net") }},
		{name: "relay alone, no key", from: "xn--bcher-kva.example", client: "web1", done: "later",
			reason: "web1 may not have mail signed by xn--bcher-kva.example, and no DKIM key for relay.example.net",
			spoil:  func(f *fakeSource) { delete(f.keys, "relay.example.net") }},
		{name: "relay alone, out of reach", from: "xn--bcher-kva.example", client: "web1", done: "later", reason: "keys of relay.example.net are out of reach: sealed",
			spoil: func(f *fakeSource) { f.errs["relay.example.net"] = errors.New("sealed") }},
		{name: "relay alone by Ed25519 only", from: "xn--bcher-kva.example", client: "web1", done: "later",
			reason: "relay.example.net has no RSA key, and Ed25519 must not sign alone: add an RSA key: unusable DKIM key",
			spoil:  func(f *fakeSource) { f.keys["relay.example.net"] = f.keys["relay.example.net"][1:] }},
		{name: "keys of another domain", from: "example.com", client: "web1", done: "later",
			reason: "asked for keys of example.com and got one of free.test: unusable DKIM key",
			spoil:  func(f *fakeSource) { f.keys["example.com"] = keysFor("free.test") }},
		{name: "bears a signature, whosever", from: "xn--bcher-kva.example", client: "shop", head: "DKIM-Signature : x\r\n"},
		{name: "bears a signature, no key, no lookup", from: "xn--bcher-kva.example", client: "shop", head: "DKIM-Signature: d=free.test; s=x\r\n",
			spoil: func(f *fakeSource) { f.setCut(errors.New("sealed")) }},
		{name: "bears a signature, to be held for its client", from: "news.example.com", client: "web1", head: "DKIM-Signature: x\r\n", done: "later",
			reason: "web1 may not have mail signed by news.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := office()
			source := everyDomain()
			if tt.spoil != nil {
				tt.spoil(source)
			}
			o.Keys = source
			s := newSigner(t, o)
			w := &fakeWork{content: tt.head + from(tt.from)}
			s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: tt.from, Client: tt.client, Class: tt.class}, work: w})
			if tt.done == "" {
				tt.done = "signed"
			}
			if w.done != tt.done || w.reason != tt.reason {
				t.Errorf("got %q %q, want %q %q", w.done, w.reason, tt.done, tt.reason)
			}
			if tt.head != "" {
				if w.signatures != "" {
					t.Errorf("got signatures %q, want none", w.signatures)
				}
				return
			}
			if diff := cmp.Diff(tt.want, signedBy(t, w.signatures+w.content, tt.from, "relay.example.net")); diff != "" {
				t.Errorf("signatures (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMetricsOfRules counts what the rules refuse, and whose signatures are made.
func TestMetricsOfRules(t *testing.T) {
	o := office()
	q := &fakeQueue{}
	o.Queue, o.Keys = q, everyDomain()
	s := newSigner(t, o)
	for _, m := range [][2]string{{"xn--bcher-kva.example", "shop"}, {"xn--bcher-kva.example", "web1"}, {"example.com", "web2"}, {"news.example.com", "web1"}} {
		s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: m[0], Client: m[1]}, work: &fakeWork{content: from(m[0])}})
	}
	s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindDSN, env: queue.Envelope{HeaderFrom: "example.com"}, work: &fakeWork{content: message}})
	for action, want := range map[Policy]float64{Relay: 1, Pass: 1, Hold: 1} {
		if got := value(t, s.metrics.refused.WithLabelValues(string(action))); got != want {
			t.Errorf("%s: got %v refused, want %v", action, got, want)
		}
	}
	for kind, want := range map[string]float64{kindAuthor: 2, kindRelay: 2} {
		if got := value(t, s.metrics.signatures.WithLabelValues("rsa-sha256", kind)); got != want {
			t.Errorf("%s: got %v signatures, want %v", kind, got, want)
		}
	}
	want := []string{
		"d=xn--bcher-kva.example s=r1 a=rsa-sha256, d=xn--bcher-kva.example s=e1 a=ed25519-sha256, d=relay.example.net s=r1 a=rsa-sha256, d=relay.example.net s=e1 a=ed25519-sha256",
		"d=relay.example.net s=r1 a=rsa-sha256, d=relay.example.net s=e1 a=ed25519-sha256 (web1 may not have mail signed by xn--bcher-kva.example)",
		"unsigned: web2 may not have mail signed by example.com",
		"d=relay.example.net s=r1 a=rsa-sha256, d=relay.example.net s=e1 a=ed25519-sha256",
	}
	if diff := cmp.Diff(want, q.texts()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// TestRelayIsTheAuthor: nothing signs twice, also where the relay signs as a parent.
func TestRelayIsTheAuthor(t *testing.T) {
	for _, author := range []string{"relay.example.net", "Relay.Example.NET.", "news.relay.example.net"} {
		s := newSigner(t, Options{OwnDomain: "relay.example.net", RelaySignature: true, AllowParent: true, MissingKey: Relay, Keys: everyDomain()})
		w := &fakeWork{content: from("relay.example.net")}
		s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: author}, work: w})
		want := []string{"relay.example.net rsa", "relay.example.net ed25519"}
		if diff := cmp.Diff(want, signedBy(t, w.signatures+w.content, "relay.example.net")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", author, diff)
		}
	}
}

// TestPriorOfEachDomain: a signature that is there already costs that of its own domain only.
func TestPriorOfEachDomain(t *testing.T) {
	s := newSigner(t, Options{})
	c := choice{keys: keysFor("example.com"), relay: keysFor("relay.example.net")}
	byAuthor := sign(t, s, c.keys, message)
	text, made, err := s.signatures(t.Context(), c, strings.NewReader(byAuthor+message))
	if err != nil || len(made) != 2 || made[0].Domain != "relay.example.net" {
		t.Errorf("author's is there: got %v, %v, want the relay's", made, err)
	}
	if got := signedBy(t, text+byAuthor+message, "example.com", "relay.example.net"); len(got) != 4 {
		t.Errorf("got %v, want four", got)
	}
	byRelay := sign(t, s, c.relay, message)
	if _, made, err = s.signatures(t.Context(), c, strings.NewReader(byRelay+message)); err != nil || len(made) != 2 || made[0].Domain != "example.com" {
		t.Errorf("relay's is there: got %v, %v, want the author's", made, err)
	}
	if text, made, err = s.signatures(t.Context(), c, strings.NewReader(byRelay+byAuthor+message)); err != nil || len(made) != 0 || text != "" {
		t.Errorf("both are there: got %q, %v, %v, want none", text, made, err)
	}
}

// slowKey signs when it is let.
type slowKey struct {
	crypto.Signer
	after time.Duration
}

func (k slowKey) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	time.Sleep(k.after)
	return k.Signer.Sign(r, digest, o)
}

// TestRelayNeverCostsTheAuthors: whatever is wrong with the relay's keys, the author's signatures are made, soon.
func TestRelayNeverCostsTheAuthors(t *testing.T) {
	const own = "relay.example.net"
	key := func(i int, signer func(crypto.Signer) crypto.Signer) func(*fakeSource) {
		return func(f *fakeSource) {
			keys := keysFor(own)
			keys[i].Signer = signer(keys[i].Signer)
			f.keys[own] = keys
		}
	}
	tests := []struct {
		name  string
		spoil func(*fakeSource)
		cause string
		pause bool
	}{
		{"no key", func(f *fakeSource) { delete(f.keys, own) }, causeNoKey, false},
		{"bad key", func(f *fakeSource) { f.errs[own] = fmt.Errorf("mode 0644: %w", keyring.ErrBadKey) }, causeBadKey, false},
		{"Ed25519 only", func(f *fakeSource) { f.keys[own] = keysFor(own)[1:] }, causeBadKey, false},
		{"out of reach", func(f *fakeSource) { f.errs[own] = errors.New("sealed") }, causeOutOfReach, true},
		{"source hangs", func(f *fakeSource) { f.hang = own }, causeOutOfReach, true},
		{"RSA does not sign", key(0, func(s crypto.Signer) crypto.Signer { return brokenKey{s} }), causeFailed, true},
		{"Ed25519 does not sign", key(1, func(s crypto.Signer) crypto.Signer { return brokenKey{s} }), causeFailed, true},
		{"unknown type", key(1, func(s crypto.Signer) crypto.Signer { return strangeKey{s} }), causeFailed, true},
		{"signs late", key(1, func(s crypto.Signer) crypto.Signer { return slowKey{s, time.Minute} }), causeFailed, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			testKeys() // outside of the bubble
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				source := everyDomain()
				tt.spoil(source)
				s := newSigner(t, Options{OwnDomain: own, RelaySignature: true, Keys: source, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				stopped := false
				s.reach.begin(func() { stopped = true })
				send := func(want ...string) time.Duration {
					t.Helper()
					began := time.Now()
					w := &fakeWork{content: from("free.test")}
					s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "free.test"}, work: w})
					if diff := cmp.Diff(want, signedBy(t, w.signatures+w.content, "free.test", own)); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
					return time.Since(began)
				}
				const mails = 20
				var waited time.Duration
				for range mails {
					waited += send("free.test rsa", "free.test ed25519")
				}
				if waited > relayPatience {
					t.Errorf("twenty mails waited %s, want %s at most", waited, relayPatience)
				}
				if got := value(t, s.metrics.noRelay.WithLabelValues(tt.cause)); got != mails {
					t.Errorf("counted %v, want %d", got, mails)
				}
				if n := strings.Count(log.String(), "without the signature of our own domain"); n != 1 {
					t.Errorf("got %d lines, want one:\n%s", n, log.String())
				}
				if _, lost := s.reach.lost(); lost != nil || stopped {
					t.Error("no mail is taken for the relay's keys")
				}
				time.Sleep(2 * time.Minute) // keys are right again
				source.mend(own)
				send("free.test rsa", "free.test ed25519", own+" rsa", own+" ed25519")
				if err := s.Stop(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestRelaySignsOnTime: the relay's key may be slower than the author's.
func TestRelaySignsOnTime(t *testing.T) {
	testKeys()
	synctest.Test(t, func(t *testing.T) {
		relay := keysFor("relay.example.net")
		relay[0].Signer = slowKey{relay[0].Signer, relayPatience - time.Millisecond}
		s := newSigner(t, Options{})
		text, made, err := s.signatures(t.Context(), choice{keys: keysFor("free.test"), relay: relay}, strings.NewReader(from("free.test")))
		if err != nil || len(made) != 4 {
			t.Fatalf("got %v, %v, want four", made, err)
		}
		signedBy(t, text+from("free.test"), "free.test", "relay.example.net")
	})
}

// TestSignaturesNeverForOthers draws rules, keys and mail, and looks at d= of what comes out: none that the client may not use, none twice, Ed25519 only
// beside RSA, the author's first.
func TestSignaturesNeverForOthers(t *testing.T) {
	source := &fakeSource{keys: make(map[string][]keyring.Key)}
	all := []string{"a.test", "b.a.test", "c.b.a.test", "xn--bcher-kva.test", "r.test", "m.r.test", "other.example", "free.example"}
	clients := rapid.SampledFrom([][2]string{{"one", ""}, {"two", ""}, {"three", "c"}, {"", ""}, {"net:10.0.0.0/8", "network"}, {"net:192.0.2.0/24", "network"}})
	ed := func(domain string) keyring.Key { k := keysFor(domain)[1]; return k }
	rapid.Check(t, func(t *rapid.T) {
		o, r := drawnRules(t)
		for _, d := range all {
			// An Ed25519 key that says it is RSA is as good here, and a hundred times faster.
			rsa := ed(d)
			rsa.Selector, rsa.Algorithm = "r1", keyring.RSA
			source.keys[d] = [][]keyring.Key{nil, {rsa}, {rsa, ed(d)}, {ed(d)}}[rapid.IntRange(0, 3).Draw(t, "keys of "+d)]
		}
		author, client := rapid.SampledFrom(all).Draw(t, "author"), clients.Draw(t, "client")
		kind := rapid.SampledFrom([]queue.Kind{queue.KindMail, queue.KindMail, queue.KindDSN}).Draw(t, "kind")
		s, err := New(Options{Queue: &fakeQueue{}, Keys: source, OwnDomain: o.OwnDomain, MissingKey: o.MissingKey, AllowParent: o.AllowParent,
			RelaySignature: o.RelaySignature, Domains: o.Domains})
		if err != nil {
			t.Fatal(err)
		}
		w := &fakeWork{content: from(author)}
		s.attempt(context.Background(), &attempt{id: "id", kind: kind, env: queue.Envelope{HeaderFrom: author, Client: client[0], Class: client[1]}, work: w})
		if w.done == "" {
			t.Errorf("nothing was done with the mail")
		}
		checkSignatures(t, o, r, w.signatures+w.content, kind, author, client[0], client[1])
	})
}

func checkSignatures(t *rapid.T, o Options, r *Rules, content string, kind queue.Kind, author, client, class string) {
	var made []tagged
	for field := range strings.SplitSeq(content, "DKIM-Signature:") {
		if tags := signatureTags([]byte(field)); tags.domain != "" {
			made = append(made, tags)
		}
	}
	for i, tags := range made {
		isOwn := tags.domain == r.own
		switch {
		case kind == queue.KindDSN && !isOwn:
			t.Errorf("a notification is signed by %s", tags.domain)
		case kind != queue.KindDSN && !allowed(o, tags.domain, client, class):
			t.Errorf("%s of class %q may not use %s, as %s: %v", client, class, tags.domain, author, made)
		case !isOwn && kind != queue.KindDSN && !allowed(o, author, client, class):
			t.Errorf("%s of class %q may not be %s: %v", client, class, author, made)
		case slices.Index(made, tags) != i:
			t.Errorf("two signatures of %v: %v", tags, made)
		case tags.selector == "e1" && !slices.Contains(made[:i], tagged{tags.domain, "r1"}):
			t.Errorf("Ed25519 of %s has no RSA before it: %v", tags.domain, made)
		case i > 0 && made[i-1].domain == r.own && !isOwn:
			t.Errorf("the author's is not first: %v", made)
		}
	}
}

// TestLibraryTakesOurFields pins that the library verifies four signatures of a message one by one.
func TestLibraryTakesOurFields(t *testing.T) {
	s := newSigner(t, Options{})
	text, _, err := s.signatures(t.Context(), choice{keys: keysFor("example.com"), relay: keysFor("relay.example.net")}, strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	_, err = dkim.VerifyWithOptions(strings.NewReader(text+message), &dkim.VerifyOptions{MaxVerifications: 3,
		LookupTXT: func(string) ([]string, error) { return nil, errors.New("no such name") }})
	if !errors.Is(err, dkim.ErrTooManySignatures) {
		t.Errorf("got %v, want %v: four fields", err, dkim.ErrTooManySignatures)
	}
}
