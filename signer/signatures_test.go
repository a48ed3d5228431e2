package signer

import (
	"context"
	"crypto"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/signer/keyring"
)

func TestSignaturesVerify(t *testing.T) {
	keys := testKeys()
	for _, c := range []struct{ name, content string }{
		{"plain", message},
		{"no body", strings.TrimSuffix(message, "Hello Bob.\r\n")},
		{"empty lines at the end", message + "\r\n\r\n\r\n"},
		{"white space", message + "a \t b  \r\n \r\n\tc\r\n"},
		{"no line end at the end", message + "tail"},
		{"dots", message + ".\r\n..\r\n"},
		{"8-bit", "From: Jörg <j@example.com>\r\nSubject: \xff\xfe\r\n\r\n\xc3\x28 ü\r\n"},
		{"folded", "From: Alice\r\n\t<alice@example.com>\r\nTo: a@example.net,\r\n b@example.net,\r\n   c@example.net\r\nSubject:\r\n x\r\n\r\nbody\r\n"},
		{"odd field names", "FROM : a@example.com\r\nsubject\t:x\r\nX!y: z\r\n\r\nbody\r\n"},
		{"several of a field", "Received: 1\r\nSubject: 1\r\nReceived: 2\r\nFrom: a@example.com\r\nSubject: 2\r\n\r\nbody\r\n"},
		{"foreign signature", "DKIM-Signature: v=1; a=rsa-sha256; d=other.example; s=r1;\r\n h=from; bh=x; b=y\r\n" + message},
		{"large", message + strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", 20_000)},
		{"long line", message + strings.Repeat("x", 100_000) + "\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSigner(t, Options{})
			text := sign(t, s, keys, c.content)
			if strings.Contains(c.name, "foreign") {
				verifications, err := verify(text+c.content, keys)
				if err != nil || len(verifications) != 3 || verifications[0].Err != nil || verifications[1].Err != nil {
					t.Errorf("got %v, %v, want two good signatures above the foreign one", verifications, err)
				}
			} else {
				mustVerify(t, text+c.content, keys, 2)
			}
			octets, _, err := s.signatures(t.Context(), choice{keys: keys}, iotest.OneByteReader(strings.NewReader(c.content[:min(len(c.content), 2000)])))
			if err != nil {
				t.Fatalf("sign octet by octet: %v", err)
			}
			if len(c.content) <= 2000 && bodyHash(t, octets) != bodyHash(t, text) {
				t.Errorf("the body hash depends on how the content is cut")
			}
		})
	}
}

func bodyHash(t *testing.T, signature string) string {
	t.Helper()
	_, after, _ := strings.Cut(signature, " bh=")
	hash, _, found := strings.Cut(after, ";")
	if !found {
		t.Fatalf("no bh= in %q", signature)
	}
	return hash
}

// TestSignatureFields pins the form of the fields that are put before the
// content: folded, CRLF, legal line lengths, only the tags that we mean.
func TestSignatureFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t, Options{Expiry: 8 * 24 * time.Hour})
		text := sign(t, s, testKeys()[1:], message)
		golden(t, "signature.golden", []byte(cutValue(t, text, "\r\n b=")))
		if !strings.HasSuffix(text, "\r\n") || strings.HasSuffix(text, "\r\n\r\n") {
			t.Errorf("got end %q, want one CRLF", text[len(text)-6:])
		}
	})
}

// cutValue replaces the value after a mark: it is of a random key.
func cutValue(t *testing.T, text, mark string) string {
	t.Helper()
	before, _, found := strings.Cut(text, mark)
	if !found {
		t.Fatalf("no %q in %q", mark, text)
	}
	return before + mark + "…\r\n"
}

// TestTags goes through every tag of every signature of a message with much to
// sign.
func TestTags(t *testing.T) {
	testKeys()
	synctest.Test(t, testTags)
}

func testTags(t *testing.T) {
	s := newSigner(t, Options{Expiry: 8 * 24 * time.Hour})
	before := time.Now().Truncate(time.Second)
	text := sign(t, s, testKeys(), everything(1)+"\r\nbody\r\n")
	fields := strings.Split(strings.TrimSuffix(text, "\r\n"), "DKIM-Signature:")[1:]
	if len(fields) != 2 {
		t.Fatalf("got %d fields, want 2", len(fields))
	}
	for i, want := range []map[string]string{
		{"a": "rsa-sha256", "s": "r1"},
		{"a": "ed25519-sha256", "s": "e1"},
	} {
		want["v"], want["c"], want["d"] = "1", "relaxed/relaxed", "example.com"
		got := make(map[string]string)
		for tag := range strings.SplitSeq(fields[i], ";") {
			if name, value, ok := strings.Cut(strings.TrimSpace(tag), "="); ok {
				got[name] = value
			}
		}
		verification := mustVerify(t, text+everything(1)+"\r\nbody\r\n", testKeys(), 2)[i]
		valid := verification.Expiration.Sub(verification.Time)
		if verification.Time.Before(before) || valid != 8*24*time.Hour {
			t.Errorf("got t=%v x=%v", verification.Time, verification.Expiration)
		}
		for _, other := range []string{"t", "x", "h", "b", "bh"} {
			if got[other] == "" {
				t.Errorf("tag %s is missing", other)
			}
			delete(got, other)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
	}
	for line := range strings.SplitSeq(text, "\r\n") {
		if len(line) > maxLineOctets {
			t.Errorf("line of %d octets: %.40q", len(line), line)
		}
	}
}

// TestOverSigning adds fields to a signed message: whatever a reader would see
// must break the signature.
func TestOverSigning(t *testing.T) {
	keys := testKeys()
	text := sign(t, newSigner(t, Options{}), keys, message)
	for _, c := range []struct {
		add  string
		good bool
	}{
		{"From: eve@example.com", false},
		{"Subject: another", false},
		{"To: eve@example.com", false},
		{"Date: now", false},
		{"Cc: eve@example.com", false}, // there was none
		{"Reply-To: eve@example.com", false},
		{"Content-Type: text/html", false},
		{"Message-ID: <2@example.com>", false}, // there was one
		{"Received: by mx", true},
		{"Return-Path: <alice@example.com>", true},
		{"List-Id: <list.example.net>", true},
		{"Resent-From: list@example.net", true},
		{"MIME-Version: 1.0", true},
		{"X-Spam: no", true},
	} {
		for place, content := range map[string]string{
			"on top":     c.add + "\r\n" + text + message,
			"at the end": text + strings.Replace(message, "\r\n\r\n", "\r\n"+c.add+"\r\n\r\n", 1),
		} {
			verifications, err := verify(content, keys)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range verifications {
				if (v.Err == nil) != c.good {
					t.Errorf("%s %s: got %v, want good %t", c.add, place, v.Err, c.good)
				}
			}
		}
	}
}

func TestPriorSignatures(t *testing.T) {
	keys := testKeys()
	s := newSigner(t, Options{})
	first := sign(t, s, keys[:1], message)
	// Ed25519 does not sign beside an RSA signature that may be anything.
	text, made, err := s.signatures(t.Context(), choice{keys: keys}, strings.NewReader(first+message))
	if err != nil || len(made) != 0 || text != "" {
		t.Errorf("got %q, %v, %v, want no Ed25519 signature without an RSA one", text, made, err)
	}
	both := sign(t, s, keys, message)
	text, made, err = s.signatures(t.Context(), choice{keys: keys}, strings.NewReader(both+message))
	if err != nil || len(made) != 0 || text != "" {
		t.Errorf("got %q, %v, %v, want nothing more to sign", text, made, err)
	}
	old := sign(t, s, keys[1:], message)
	second, made, err := s.signatures(t.Context(), choice{keys: keys}, strings.NewReader(old+message))
	if err != nil || len(made) != 1 || made[0].Selector != "r1" {
		t.Fatalf("got %v, %v, want the key that had not signed", made, err)
	}
	first = old
	mustVerify(t, second+first+message, keys, 2)
	other := sign(t, s, keysFor("relay.example"), second+first+message)
	mustVerify(t, other+second+first+message, append(keysFor("relay.example"), keys...), 4)
}

func TestUnsignable(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"no From", "To: b\r\n\r\nbody\r\n", "0 From fields"},
		{"two Froms", "From: a\r\nFrom: b\r\n\r\nbody\r\n", "2 From fields"},
		{"begins with a fold", " x\r\nFrom: a\r\n\r\nbody\r\n", "no field"},
		{"nothing", "", "0 From fields"},
		{"header without end", "From: a\r\n" + strings.Repeat("X: y\r\n", 100_000), "larger than 524288"},
		{"bare LF in the header", "From: a\nTo: b\r\n\r\nbody\r\n", "LF without CR"},
		{"bare LF in the body", message + "a\nb\r\n", "LF without CR"},
		{"bare LF late in the body", message + strings.Repeat("line\r\n", 20_000) + "a\nb\r\n", "LF without CR"},
		{"bare CR in the body", message + "a\rb\r\n", "CR without LF"},
		{"CR at the end", message + "a\r", "CR without LF"},
		{"blank lines without end", message + strings.Repeat("\r\n", 1_000_000) + "x\r\n", "blank lines"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, made, err := newSigner(t, Options{}).signatures(t.Context(), choice{keys: testKeys()}, strings.NewReader(c.content))
			if _, is := errors.AsType[unsignableError](err); !is || !strings.Contains(err.Error(), c.want) || text != "" || made != nil {
				t.Errorf("got %q, %v, %v, want %q", text, made, err, c.want)
			}
		})
	}
}

// brokenKey has a public key but does not sign.
type brokenKey struct{ crypto.Signer }

func (brokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("token removed")
}

// strangeKey is of no type that DKIM knows.
type strangeKey struct{ crypto.Signer }

func (strangeKey) Public() crypto.PublicKey { return 1 }

func TestKeyFails(t *testing.T) {
	good := testKeys()[0]
	for name, bad := range map[string]crypto.Signer{"does not sign": brokenKey{good.Signer}, "unknown type": strangeKey{}} {
		for _, first := range []bool{true, false} {
			keys := []keyring.Key{good, {Domain: "example.com", Selector: "bad", Algorithm: keyring.RSA, Signer: bad}}
			if first {
				keys[0], keys[1] = keys[1], keys[0]
			}
			text, _, err := newSigner(t, Options{}).signatures(t.Context(), choice{keys: keys}, strings.NewReader(message))
			failed, is := errors.AsType[*keyError](err)
			if !is || failed.key.Selector != "bad" || text != "" {
				t.Errorf("%s (first: %t): got %q, %v, want an error of key bad", name, first, text, err)
			}
		}
	}
}

// TestContentFails ends the content at every stage; nothing is signed, and no
// goroutine stays (TestMain looks).
func TestContentFails(t *testing.T) {
	broken := errors.New("chunk lost")
	for _, n := range []int{0, 10, len(message) - 3, len(message)} {
		r := io.MultiReader(strings.NewReader(message[:n]), iotest.ErrReader(broken))
		text, _, err := newSigner(t, Options{}).signatures(t.Context(), choice{keys: testKeys()}, r)
		if !errors.Is(err, broken) || text != "" {
			t.Errorf("after %d octets: got %q, %v, want %v", n, text, err, broken)
		}
	}
}

// endWith ends a context, then claims that the content is at its end.
type endWith struct{ cancel context.CancelFunc }

func (e endWith) Read([]byte) (int, error) { e.cancel(); return 0, io.EOF }

// TestContextEnds: content that looks complete because its context has ended is
// never signed.
func TestContextEnds(t *testing.T) {
	for _, n := range []int{0, 10, len(message) - 3} {
		ctx, cancel := context.WithCancel(t.Context())
		r := io.MultiReader(strings.NewReader(message[:n]), endWith{cancel})
		text, _, err := newSigner(t, Options{}).signatures(ctx, choice{keys: testKeys()}, r)
		if !errors.Is(err, context.Canceled) || text != "" {
			t.Errorf("after %d octets: got %q, %v, want %v", n, text, err, context.Canceled)
		}
	}
}

// silentKey is a key elsewhere that never answers.
type silentKey struct{ crypto.Signer }

func (silentKey) SignContext(ctx context.Context, _ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestSignaturesEndWithContext: nobody waits for a key longer than for the mail, which is left then.
func TestSignaturesEndWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := testKeys()[0]
		key.Signer = silentKey{key.Signer}
		s := newSigner(t, Options{Keys: &fakeSource{keys: map[string][]keyring.Key{"example.com": {key}}}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		w := &fakeWork{content: message}
		s.attempt(ctx, &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "example.com"}, work: w})
		if took := time.Since(began); took != time.Second || w.done != "" {
			t.Errorf("after %v got %q, want it left after a second", took, w.done)
		}
	})
}
