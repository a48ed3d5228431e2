package signer

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// TestHeaderListGolden shows h= for typical headers: the list is a promise to
// verifiers and a change of it should be seen in a review.
func TestHeaderListGolden(t *testing.T) {
	var out strings.Builder
	for _, c := range []struct{ name, header string }{
		{"From alone", "From: a@example.com\r\n"},
		{"plain message", message[:strings.Index(message, "\r\n\r\n")+4]},
		{"MIME reply", "Received: x\r\nFrom: a\r\nTo: b\r\nCc: c\r\nSubject: s\r\nDate: d\r\nMessage-ID: <m>\r\n" +
			"In-Reply-To: <n>\r\nReferences: <n>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n"},
		{"newsletter", "From: a\r\nTo: b\r\nSubject: s\r\nDate: d\r\nMessage-ID: <m>\r\nReply-To: r\r\n" +
			"List-Id: <l>\r\nList-Unsubscribe: <https://u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"},
		{"resent twice", "Resent-From: x\r\nResent-To: y\r\nResent-From: x\r\nResent-To: y\r\nFrom: a\r\nTo: b\r\n"},
		{"two subjects", "Subject: 1\r\nFrom: a\r\nSubject: 2\r\n"},
		{"never signed", "Return-Path: <a>\r\nReceived: x\r\nDKIM-Signature: v=1; d=other.example; s=x\r\nBcc: c\r\n" +
			"Authentication-Results: x\r\nX-Spam: no\r\nSender: s\r\nFrom: a\r\n"},
		{"everything", everything(1)},
	} {
		list, err := listOf(c.header)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		fmt.Fprintf(&out, "%s:\n  h=%s\n", c.name, strings.Join(list, ":"))
	}
	golden(t, "header-list.golden", []byte(out.String()))
}

func listOf(raw string) ([]string, error) {
	h, err := parseHeader([]byte(raw), signedFields())
	if err != nil {
		return nil, err
	}
	return headerList(signedFields(), h.count)
}

// everything is a header with each signed field n times, From once.
func everything(n int) string {
	var b strings.Builder
	for _, f := range signedFields() {
		repeats := n
		if f.name == "from" {
			repeats = 1
		}
		for i := range repeats {
			fmt.Fprintf(&b, "%s: %d\r\n", f.name, i)
		}
	}
	return b.String()
}

func TestHeaderListBounds(t *testing.T) {
	for _, c := range []struct {
		name   string
		header string
		want   string // of the error, "" for none
	}{
		{"no From", "To: b\r\n", "0 From fields"},
		{"two Froms", "From: a\r\nFrom: b\r\n", "2 From fields"},
		{"each field once", everything(1), ""},
		{"each field many times", everything(100), "repeats"},
		{"many subjects", "From: a\r\n" + strings.Repeat("Subject: s\r\n", 200), "repeats subject too often"},
		{"many resent blocks", "From: a\r\n" + strings.Repeat("Resent-From: s\r\nResent-To: x\r\nResent-Date: d\r\n", 1000), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := listOf(c.header)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
			if n := len(strings.Join(list, ":")); n > maxListOctets {
				t.Errorf("h= has %d octets, want at most %d", n, maxListOctets)
			}
		})
	}
}

// TestHeaderListFitsRegularHeaders: no header that keeps RFC 5322 §3.6, with as
// many resent blocks and list fields as are signed, comes near the bound.
func TestHeaderListFitsRegularHeaders(t *testing.T) {
	count := make(map[string]int)
	for _, f := range signedFields() {
		count[f.name] = 1
		if f.class == plain {
			count[f.name] = maxPlainRepeats
		}
	}
	if _, err := headerList(signedFields(), count); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestParseHeader(t *testing.T) {
	for _, c := range []struct {
		name   string
		header string
		signed string
		count  map[string]int
		prior  []tagged
	}{
		{"empty", "", "", nil, nil},
		{"only the empty line", "\r\n", "", nil, nil},
		{"no end", "From: a", "from: a\r\n", map[string]int{"from": 1}, nil},
		{"case and space", "FROM \t: a\r\nsUbject:\r\n\r\n", "from: a\r\nsubject:\r\n", map[string]int{"from": 1, "subject": 1}, nil},
		{"folded", "To: a,\r\n b,\r\n\tc\r\nFrom: d\r\n", "to: a, b,\tc\r\nfrom: d\r\n", map[string]int{"to": 1, "from": 1}, nil},
		{"folded before the value", "Subject:\r\n s\r\n", "subject: s\r\n", map[string]int{"subject": 1}, nil},
		{"folded to nothing", "Subject: s\r\n \r\nTo: b\r\n", "subject: s \r\nto: b\r\n", map[string]int{"subject": 1, "to": 1}, nil},
		{"fold of an unsigned field", "X: 1\r\n From: x\r\nFrom: a\r\n", "from: a\r\n", map[string]int{"from": 1}, nil},
		{"order kept", "To: 1\r\nX: x\r\nTo: 2\r\n", "to: 1\r\nto: 2\r\n", map[string]int{"to": 2}, nil},
		{"signatures", "DKIM-Signature: v=1; D=no; d=Example.COM;\r\n\ts = R1 ; b=x\r\ndkim-signature: junk\r\n", "", nil,
			[]tagged{{"example.com", "r1"}, {}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := parseHeader([]byte(c.header), signedFields())
			if err != nil {
				t.Fatal(err)
			}
			maps.DeleteFunc(h.count, func(_ string, n int) bool { return n == 0 })
			if len(h.count) != len(c.count) || !maps.Equal(h.count, c.count) {
				t.Errorf("count: got %v, want %v", h.count, c.count)
			}
			if diff := cmp.Diff(c.signed, string(h.signed)); diff != "" {
				t.Errorf("signed fields (-want +got):\n%s", diff)
			}
			if !slices.Equal(h.prior, c.prior) {
				t.Errorf("signatures: got %v, want %v", h.prior, c.prior)
			}
		})
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	for _, raw := range []string{
		" From: x\r\nFrom: a\r\n", "From: a\r\nTo\r\n\r\n", "From a@b Wed Nov 25 10:00:00 2026\r\nFrom: a\r\n", "From: a\r\nX y: z\r\n",
		"From\u00a0: a\r\n", ": a\r\n", "From: a\r\nno colon\r\n : b\r\n", "From: a\r\n\r\nX: y\r\n",
	} {
		_, err := parseHeader([]byte(raw), signedFields())
		if _, is := errors.AsType[unsignableError](err); !is || !strings.Contains(err.Error(), "no field") {
			t.Errorf("%q: got %v, want an error of the line", raw, err)
		}
	}
}

func TestReadHead(t *testing.T) {
	long := strings.Repeat("X: y\r\n", maxHeaderBytes/6+1)
	for _, c := range []struct {
		name, in, head string
		want           error
	}{
		{"usual", "From: a\r\n\r\nbody", "From: a\r\n\r\n", nil},
		{"no body", "From: a\r\n\r\n", "From: a\r\n\r\n", nil},
		{"no empty line", "From: a\r\n", "From: a\r\n", nil},
		{"no header", "\r\nbody\r\n\r\nmore", "\r\n", nil},
		{"nothing", "", "", nil},
		{"empty lines in the body", "A: b\r\n\r\n\r\n\r\n", "A: b\r\n\r\n", nil},
		{"too large", long, "", unsignableError("the header is larger than 524288 octets")},
		{"large but ends", long[:len(long)-12] + "\r\n", long[:len(long)-12] + "\r\n", nil},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "octets": iotest.OneByteReader, "eof with data": iotest.DataErrReader,
		} {
			t.Run(c.name+" "+name, func(t *testing.T) {
				r := wrap(strings.NewReader(c.in))
				head, body, _, err := readHead(t.Context(), r, nil, chunkBytes)
				if !errors.Is(err, c.want) {
					t.Fatalf("got error %v, want %v", err, c.want)
				}
				if err != nil {
					return
				}
				rest, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if string(head) != c.head || string(body)+string(rest) != c.in[len(c.head):] {
					t.Errorf("got header %.40q and body %.40q, want %.40q and %.40q", head, string(body)+string(rest), c.head, c.in[len(c.head):])
				}
			})
		}
	}
}

func TestLines(t *testing.T) {
	const bareCR, bareLF, blank = "CR without LF", "LF without CR", "blank lines"
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"a\r\nb\r\n", ""},
		{"\r\n\r\n", ""},
		{"no end", ""},
		{"a\nb", bareLF},
		{"\n", bareLF},
		{"a\r\n\n", bareLF},
		{"a\rb\r\n", bareCR},
		{"a\r\r\n", bareCR},
		{"\r", bareCR},
		{"a\r", bareCR},
		{strings.Repeat("\r\n", maxBlankOctets/2), ""},
		{strings.Repeat(" \t\r\n", maxBlankOctets/2+1), blank},
		{strings.Repeat("\r\n", maxBlankOctets/2) + "x" + strings.Repeat("\r\n", maxBlankOctets/2), ""},
		{strings.Repeat("\r\n", maxBlankOctets/2-5) + "  x\r\n" + strings.Repeat("\r\n", maxBlankOctets/2-5), ""},
		{strings.Repeat("\r\n", maxBlankOctets/2+1) + "x", blank},
	} {
		for _, chunk := range []int{1, 3, 4099, 1 << 30} {
			if chunk*10_000 < len(c.in) {
				continue
			}
			var l lines
			var err error
			for piece := range slices.Chunk([]byte(c.in), chunk) {
				if err = l.check(piece); err != nil {
					break
				}
			}
			if err == nil {
				err = l.end()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%.20q (%d octets) in chunks of %d: got %v, want %q", c.in, len(c.in), chunk, err, c.want)
			}
		}
	}
}
