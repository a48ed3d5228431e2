package signer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
)

// The pitfalls D1 to D8 of the DKIM library. Each case pins what the library
// does, so that an upgrade tells when it changes, and shows our fence.

// bySelf signs with the library alone, as its options stand.
func bySelf(t *testing.T, o dkim.SignOptions, content string) (string, error) {
	t.Helper()
	k := testKeys()[1]
	o.Domain, o.Selector, o.Signer = k.Domain, k.Selector, k.Signer
	s, err := dkim.NewSigner(&o)
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := s.Write([]byte(content))
	if err := errors.Join(writeErr, s.Close()); err != nil {
		return "", err
	}
	return s.Signature(), nil
}

func relaxed(keys ...string) dkim.SignOptions {
	return dkim.SignOptions{HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed, HeaderKeys: keys}
}

// D1: the default is simple, which takes quadratic time over blank lines.
func TestLibraryDefaultsToSimple(t *testing.T) {
	text, err := bySelf(t, dkim.SignOptions{}, message)
	if err != nil || !strings.Contains(text, " c=simple/simple;") {
		t.Errorf("library: got %q, %v, want simple by default", text, err)
	}
	blank := strings.Repeat("\r\n", maxBlankOctets/2-1)
	content := message + blank + "x\r\n" + blank
	text = sign(t, newSigner(t, Options{}), testKeys(), content)
	if strings.Count(text, " c=relaxed/relaxed;") != 2 {
		t.Errorf("ours: got %q, want relaxed/relaxed", text)
	}
	mustVerify(t, text+content, testKeys(), 2)
}

// D2: a header without the empty line after it cannot be signed.
func TestLibraryNeedsEmptyLine(t *testing.T) {
	const content = "From: a@example.com\r\nSubject: x\r\n"
	if _, err := bySelf(t, relaxed("From"), content); err == nil {
		t.Error("library: signs a header without end now")
	}
	text := sign(t, newSigner(t, Options{}), testKeys(), content)
	mustVerify(t, text+content+"\r\n", testKeys(), 2)
}

// D3: quadratic in the lines of a field and in the fields of a header. The
// library gets only signed fields, each in one line.
func TestLibraryGetsBoundedHeader(t *testing.T) {
	for name, content := range map[string]string{
		"80,000 lines":  "From: a@example.com\r\nSubject: x\r\n" + strings.Repeat(" y\r\n", 80_000) + "\r\nbody\r\n",
		"60,000 fields": "From: a@example.com\r\n" + strings.Repeat("X: y\r\n", 60_000) + "\r\nbody\r\n",
		"many Resent":   "From: a@example.com\r\n" + strings.Repeat("Resent-To: y\r\n", 30_000) + "\r\nbody\r\n",
	} {
		head, _, _ := strings.Cut(content, "\r\nbody")
		h, err := parseHeader([]byte(head), signedFields())
		if err != nil {
			t.Fatal(err)
		}
		fields := 0
		for _, n := range h.count {
			fields += n
		}
		if lines := strings.Count(string(h.signed), "\n"); lines != fields {
			t.Errorf("%s: %d lines go to the library for %d fields", name, lines, fields)
		}
		if text := sign(t, newSigner(t, Options{}), testKeys(), content); strings.Count(text, "DKIM-Signature:") != 2 {
			t.Errorf("%s: got %q", name, text)
		}
	}
}

// D4: h= is never folded inside.
func TestLibraryDoesNotFoldHeaderList(t *testing.T) {
	longest := func(text string) (n int) {
		for line := range strings.SplitSeq(text, "\r\n") {
			n = max(n, len(line))
		}
		return n
	}
	keys := []string{"From"}
	for i := range 160 {
		keys = append(keys, fmt.Sprintf("X-Field-%d", i))
	}
	text, err := bySelf(t, relaxed(keys...), message)
	if err != nil || longest(text) <= maxLineOctets {
		t.Errorf("library: got longest line %d, %v: it folds now", longest(text), err)
	}
	// The most that we ever list.
	content := everything(1) + strings.Repeat("Resent-Message-ID: x\r\nList-Subscribe: y\r\n", 50) + "\r\n"
	text = sign(t, newSigner(t, Options{}), testKeys(), content)
	if longest(text) > maxLineOctets {
		t.Errorf("ours: got a line of %d octets, want at most %d", longest(text), maxLineOctets)
	}
	mustVerify(t, text+content, testKeys(), 2)
}

// D5: a bare LF is hashed as CRLF, a bare CR passes for a line end.
func TestLibrarySignsBareLineEnds(t *testing.T) {
	hash := func(body string) string {
		text, err := bySelf(t, relaxed("From"), "From: a@example.com\r\n\r\n"+body)
		if err != nil {
			t.Fatal(err)
		}
		return bodyHash(t, text)
	}
	if hash("a\nb\r\n") != hash("a\r\nb\r\n") {
		t.Error("library: tells LF from CRLF now")
	}
	if hash("a \rb\r\n") != hash("a\rb\r\n") {
		t.Error("library: does not take CR for a line end any more")
	}
	for _, body := range []string{"a\nb\r\n", "a\rb\r\n"} {
		_, _, err := newSigner(t, Options{}).signatures(t.Context(), choice{keys: testKeys()}, strings.NewReader(message+body))
		if _, is := errors.AsType[unsignableError](err); !is {
			t.Errorf("ours: %q: got %v, want no signature", body, err)
		}
	}
}

// D6: tags are in the order of their names, v= not first. RFC 6376 §3.5 allows
// any order.
func TestLibrarySortsTags(t *testing.T) {
	text := sign(t, newSigner(t, Options{}), testKeys(), message)
	if !strings.HasPrefix(text, "DKIM-Signature: a=") || strings.Index(text, " v=1") < strings.Index(text, " s=r1") {
		t.Errorf("got another order now: %q", text)
	}
	mustVerify(t, text+message, testKeys(), 2)
}

// D7: the errors of verification lose their kind when they are wrapped.
func TestLibraryErrorsDoNotWrap(t *testing.T) {
	text := sign(t, newSigner(t, Options{}), testKeys()[:1], message)
	verifications, err := verify(text+message, nil)
	if err != nil || len(verifications) != 1 {
		t.Fatalf("got %v, %v", verifications, err)
	}
	cause := verifications[0].Err
	if !dkim.IsPermFail(cause) || dkim.IsPermFail(fmt.Errorf("verify: %w", cause)) {
		t.Errorf("got %v: kinds survive wrapping now, or are gone", cause)
	}
}

// D8: signatures with l= are refused; we make none (RFC 6376 §8.2).
func TestLibraryRefusesBodyLength(t *testing.T) {
	text := sign(t, newSigner(t, Options{}), testKeys()[:1], message)
	if strings.Contains(text, " l=") {
		t.Errorf("ours has l=: %q", text)
	}
	verifications, err := verify(strings.Replace(text, " v=1;", " v=1; l=5;", 1)+message, testKeys())
	if err != nil || len(verifications) != 1 || verifications[0].Err == nil || !strings.Contains(verifications[0].Err.Error(), "insecure body length") {
		t.Errorf("library: got %v, %v, want l= refused", verifications, err)
	}
}

// The library keeps a run of blank lines in memory until a line with text
// follows; lines.check bounds it. This pins only that such a body is hashed
// rightly up to the bound.
func TestLibraryBlankRun(t *testing.T) {
	content := message + strings.Repeat("\r\n", maxBlankOctets/2-1) + "end\r\n"
	mustVerify(t, sign(t, newSigner(t, Options{}), testKeys(), content)+content, testKeys(), 2)
}
