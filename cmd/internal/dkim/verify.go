package dkim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/signer/rotation"
)

// Resolver finds records as a receiver of mail does; *DNS is one.
type Resolver interface {
	// Resolve returns the TXT records of a name, each with its strings joined; none and no error: there are none.
	Resolve(ctx context.Context, name string) ([]string, error)
}

// Result is what came of the verification of one signature, in the words of Authentication-Results fields.
type Result string

// The results.
const (
	Pass      Result = "pass"
	Fail      Result = "fail"      // the signature does not fit the message
	PermError Result = "permerror" // it cannot be verified, now or later
	TempError Result = "temperror" // it could not be verified now
)

// Signature is one DKIM-Signature field of a message.
type Signature struct {
	Domain    string    `json:"domain"`    // d=
	Selector  string    `json:"selector"`  // s=
	Algorithm string    `json:"algorithm"` // a=
	Signed    time.Time `json:"signed,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	Result    Result    `json:"result,omitempty"`
	Why       string    `json:"why,omitempty"` // it did not pass
	Notes     []string  `json:"notes,omitempty"`
}

const (
	// maxSignatures bounds what is verified; further ones are not.
	maxSignatures = 50
	// maxMessage bounds a message that is verified.
	maxMessage = 200 << 20
)

// ErrNoSignature says that a message bears no DKIM-Signature.
var ErrNoSignature = errors.New("the message bears no DKIM-Signature")

// Verify verifies every DKIM-Signature of a message, in the order of the header. A message whose lines end with LF, as programs save it,
// is read as if they ended with CRLF. ErrNoSignature: there is none. The error is not for signatures that do not pass.
func Verify(ctx context.Context, dns Resolver, message io.Reader) ([]Signature, error) {
	content, err := readMessage(message)
	if err != nil {
		return nil, err
	}
	signatures := fieldsOf(string(headerOf(content)))
	if len(signatures) == 0 {
		return nil, ErrNoSignature
	}
	var mu sync.Mutex
	seen := make(map[string][]string) // records by name
	lookup := func(name string) ([]string, error) {
		records, err := dns.Resolve(ctx, name)
		if err != nil {
			return nil, temporary{err}
		}
		mu.Lock()
		defer mu.Unlock()
		if seen[name] = records; len(records) == 0 {
			return nil, fmt.Errorf("there is no record %s", name)
		}
		return records, nil
	}
	verified, err := dkim.VerifyWithOptions(bytes.NewReader(content), &dkim.VerifyOptions{LookupTXT: lookup, MaxVerifications: maxSignatures})
	if err != nil && !errors.Is(err, dkim.ErrTooManySignatures) {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(verified) != min(len(signatures), maxSignatures) {
		return nil, fmt.Errorf("verify: the header has %d signatures, of which %d were verified: is it damaged?", len(signatures), len(verified))
	}
	for i := range signatures {
		s := &signatures[i]
		if i >= len(verified) {
			s.Result, s.Why = PermError, fmt.Sprintf("not verified: it is beyond the first %d signatures", maxSignatures)
			continue
		}
		s.take(verified[i])
		s.note(seen[rotation.Name(s.Domain, s.Selector)])
	}
	return signatures, nil
}

// temporary is an error of the DNS that may pass. The library knows it by these methods.
type temporary struct{ error }

// Temporary is for net.Error.
func (temporary) Temporary() bool { return true }

// Timeout is for net.Error.
func (temporary) Timeout() bool { return false }

func (t temporary) Unwrap() error { return t.error }

// take puts into words what came of the verification.
func (s *Signature) take(v *dkim.Verification) {
	s.Signed, s.Expires = v.Time, v.Expiration
	if v.Err == nil {
		s.Result = Pass
		return
	}
	s.Why = strings.TrimPrefix(v.Err.Error(), "dkim: ")
	switch {
	case dkim.IsTempFail(v.Err):
		s.Result = TempError
	case dkim.IsPermFail(v.Err):
		s.Result = PermError
	default:
		s.Result = Fail
	}
	for text, plain := range map[string]string{
		"body hash did not verify":  "the body is not the one that was signed",
		"signature did not verify:": "a signed header field was changed, or another key signed: ",
		"no key for signature: ":    "",
		"key revoked":               "the key is revoked (empty p=)",
		"signature has expired":     "the signature has expired on " + s.Expires.UTC().Format(time.RFC1123),
	} {
		if rest, is := strings.CutPrefix(s.Why, text); is {
			s.Why = strings.TrimSpace(plain + strings.TrimSpace(rest))
		}
	}
}

// note adds what verifiers may think of a signature besides.
func (s *Signature) note(records []string) {
	if len(records) != 1 {
		return
	}
	for tag := range strings.SplitSeq(records[0], ";") {
		name, value, _ := strings.Cut(tag, "=")
		if strings.TrimSpace(name) != "t" {
			continue
		}
		for flag := range strings.SplitSeq(value, ":") {
			if strings.TrimSpace(flag) == "y" {
				s.Notes = append(s.Notes, "the record says that the domain is only testing (t=y): verifiers may take the mail for unsigned")
			}
		}
	}
}

// readMessage reads a message, with CRLF line ends afterwards. A line that mbox files begin messages with is left out.
func readMessage(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxMessage+1))
	if err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	if len(content) > maxMessage {
		return nil, fmt.Errorf("read message: it is larger than %d octets", maxMessage)
	}
	if bytes.HasPrefix(content, []byte("From ")) {
		_, content, _ = bytes.Cut(content, []byte("\n"))
	}
	if first, _, _ := bytes.Cut(content, []byte("\n")); bytes.HasSuffix(first, []byte("\r")) {
		return content, nil
	}
	return bytes.ReplaceAll(bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n")), nil
}

// headerOf is a message up to its empty line.
func headerOf(content []byte) []byte {
	if i := bytes.Index(content, []byte("\r\n\r\n")); i >= 0 {
		return content[:i+2]
	}
	return content
}

// fieldsOf finds the DKIM-Signature fields of a header with CRLF line ends.
func fieldsOf(header string) []Signature {
	var list []Signature
	var field strings.Builder
	end := func() {
		name, value, found := strings.Cut(field.String(), ":")
		if found && strings.EqualFold(strings.TrimRight(name, " \t"), "DKIM-Signature") {
			list = append(list, tagsOf(value))
		}
		field.Reset()
	}
	lines := bufio.NewScanner(strings.NewReader(header))
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			end()
		}
		field.WriteString(line)
	}
	end()
	return list
}

// tagsOf reads what names a signature (RFC 6376 §3.5).
func tagsOf(value string) Signature {
	var s Signature
	for tag := range strings.SplitSeq(value, ";") {
		name, text, _ := strings.Cut(tag, "=")
		text = strings.Join(strings.Fields(text), "")
		switch strings.TrimSpace(name) {
		case "d":
			s.Domain = strings.ToLower(text)
		case "s":
			s.Selector = strings.ToLower(text)
		case "a":
			s.Algorithm = strings.ToLower(text)
		}
	}
	return s
}
