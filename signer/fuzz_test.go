package signer

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"postroad/signer/keyring"
)

// FuzzSign signs whatever it is given with an Ed25519 key. A message is either
// refused for a reason that lies in it, or signed so that the whole message
// verifies, and no line of the signature is too long.
func FuzzSign(f *testing.F) {
	for _, seed := range []string{
		message, "", "\r\n", "From: a\r\n", "From: a\r\n\r\n", "From:\r\n\r\n\r\n", " From: a\r\nFrom: b\r\n\r\n",
		"FROM : a\r\n\tb\r\n \r\nX\r\n\r\n a \t \r\n\r\n", "From: a\r\nDKIM-Signature: d=example.com; s=e1\r\n\r\n",
		"From: a\r\nDKIM-Signature: v=1; d=example.com;\r\n s=other; h=from\r\n\r\nx", everything(2) + "\r\nbody",
		"From: a\nTo: b\n\nbody", "From: a\r\n\r\na\rb", "From: \xff\r\nSubject: \x00\r\n\r\n\x80", "Subject:x\r\n:\r\nFrom:y\r\n\r\n.",
	} {
		f.Add([]byte(seed))
	}
	keys := testKeys()[1:]
	s := newSigner(f, Options{})
	f.Fuzz(func(t *testing.T, content []byte) {
		text, made, err := s.signatures(t.Context(), choice{keys: keys}, bytes.NewReader(content))
		if err != nil {
			if _, is := errors.AsType[unsignableError](err); !is {
				t.Fatalf("got error %v, want only those that lie in the message", err)
			}
			return
		}
		if len(made) == 0 {
			if text != "" {
				t.Fatalf("got %q of no key", text)
			}
			return
		}
		for line := range strings.SplitSeq(text, "\r\n") {
			if len(line) > maxLineOctets {
				t.Fatalf("line of %d octets", len(line))
			}
		}
		whole := text + string(content)
		if !strings.Contains("\r\n"+string(content), "\r\n\r\n") {
			if !strings.HasSuffix(whole, "\r\n") {
				whole += "\r\n"
			}
			whole += "\r\n" // as ingress would have
		}
		verifyFirst(t, whole, keys)
	})
}

// verifyFirst checks the topmost signature; those below it were in the input.
func verifyFirst(t *testing.T, content string, keys []keyring.Key) {
	t.Helper()
	verifications, err := verify(content, keys)
	if err != nil || len(verifications) == 0 {
		t.Fatalf("verify %q: %v", content, err)
	}
	if verifications[0].Err != nil {
		t.Fatalf("verify %q: %v", content, verifications[0].Err)
	}
}
